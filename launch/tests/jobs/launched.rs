//! `lockstep mpirun` on this host.

use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde_json::Value;

use crate::stage::{Running, Stage, said, send, wait_until};
use crate::{
    SETS, SLOW, STEPS, calm, hashes, is_mpich, lines, logs, mpiruns, no_trace, open_mpi, program, ranks, reach, summary,
};

/// `lockstep mpirun` with an mpirun of this name.
fn command(stage: &Stage, mpirun: &str, name: &str, words: &str) -> Command {
    let mut command = stage.command(&format!("mpirun run.toml {SETS} --set run.name={name} {words}"));
    command.env("LOCKSTEP_MPIRUN", mpirun);
    command
}

/// Runs it to its end and gives the hashes.
fn whole(stage: &Stage, mpirun: &str, name: &str, words: &str) -> Vec<String> {
    let output = command(stage, mpirun, name, words).output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{mpirun} {words}: {}{}",
        said(&output),
        logs(stage, name)
    );
    hashes(stage, name)
}

/// Starts one that lasts, and waits until it is well under way.
fn lasting(stage: &Stage, mpirun: &str, name: &str, words: &str) -> Running {
    let mut command = command(stage, mpirun, name, &format!("--json {words}"));
    let mut run = stage.start(command.env(SLOW.0, SLOW.1));
    reach(stage, &mut run, name, 12);
    run
}

/// The process of mpirun, as the launcher told it.
fn pid_of_mpirun(run: &Running) -> u32 {
    let out = run.out();
    let events = out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let event = events.into_iter().find(|event| event["event"] == "mpirun").unwrap();
    event["pid"].as_u64().unwrap() as u32
}

/// Where the files are of the mpirun of a launcher.
fn scratch_of(launcher: u32) -> PathBuf {
    PathBuf::from(format!("/dev/shm/lockstep-{launcher}"))
}

/// Goes on with a run that has not come to its end, and compares the whole of it with one that nothing disturbed.
fn goes_on_to_the_same_hashes(stage: &Stage, mpirun: &str, name: &str, words: &str) {
    let made = lines(stage, name).len();
    assert!(made < STEPS, "it was disturbed before its end");
    let resumed = whole(stage, mpirun, name, &format!("{words} --resume"));
    assert!(resumed == calm(stage), "the resumed run made other bits");
    no_trace(stage);
}

#[test]
fn any_mpirun_makes_the_hashes_of_lockstep_run() {
    let stage = Stage::new();
    let calm = calm(&stage);
    for mpirun in mpiruns() {
        for ranks in [2, 4] {
            let name = format!("{mpirun}-{ranks}");
            assert!(whole(&stage, mpirun, &name, &format!("-n {ranks}")) == calm, "{name}");
            let world = &summary(&stage, &name)["worlds"][0];
            assert_eq!(
                (world["ranks"].as_u64(), world["backend"].as_str()),
                (Some(ranks), Some("host"))
            );
            for rank in 0..ranks {
                let log = stage.read(&format!("runs/{name}/logs/rank-{rank}.log"));
                assert!(log.contains("INFO"), "each rank has a log of its own: {log}");
            }
        }
    }
    if let Some(mpirun) = open_mpi() {
        program("lockstep-trainer-mpi");
        for ranks in [2, 4] {
            let name = format!("mpi-{ranks}");
            assert!(
                whole(&stage, mpirun, &name, &format!("-n {ranks} --backend mpi")) == calm,
                "{name}"
            );
            assert_eq!(summary(&stage, &name)["worlds"][0]["backend"], "mpi");
        }
    }
    no_trace(&stage);
}

#[test]
fn mpiexec_is_another_name_and_words_behind_two_hyphens_reach_it() {
    let stage = Stage::new();
    let calm = calm(&stage);
    for mpirun in mpiruns() {
        let mpiexec = mpirun.replace("mpirun", "mpiexec");
        let words = if is_mpich(mpirun) {
            "-genv RUST_LOG debug"
        } else {
            "-x RUST_LOG=debug"
        };
        assert!(
            whole(&stage, &mpiexec, &mpiexec, &format!("-n 2 -- {words}")) == calm,
            "{mpiexec}"
        );
        let log = stage.read(&format!("runs/{mpiexec}/logs/rank-1.log"));
        assert!(log.contains("DEBUG"), "{log}");
    }
    no_trace(&stage);
}

#[test]
fn a_killed_rank_leaves_the_others_alive_and_the_run_goes_on() {
    for mpirun in mpiruns() {
        let stage = Stage::new();
        let mut run = lasting(&stage, mpirun, "killed", "-n 3");
        let victim = ranks(&stage)[1];
        send(victim, Signal::KILL);
        assert_eq!(run.wait(), 0, "{}{}{}", run.out(), run.err(), logs(&stage, "killed"));
        assert!(
            run.out().contains(&format!("(pid {victim}")),
            "it is named: {}",
            run.out()
        );
        let lines = lines(&stage, "killed");
        let worlds: Vec<_> = lines.iter().filter_map(|line| line["ranks"].as_u64()).collect();
        assert_eq!((worlds[0], worlds[STEPS - 1]), (3, 2), "{worlds:?}");
        assert!(
            hashes(&stage, "killed") == calm(&stage),
            "the survivors made other bits"
        );
        no_trace(&stage);
    }
}

#[test]
fn over_mpi_a_killed_rank_ends_the_run_which_goes_on_when_it_is_started_again() {
    let Some(mpirun) = open_mpi() else { return };
    let stage = Stage::new();
    let mut run = lasting(&stage, mpirun, "killed", "-n 2 --backend mpi");
    let victim = ranks(&stage)[1];
    send(victim, Signal::KILL);
    assert_eq!(run.wait(), 1, "{}{}", run.out(), run.err());
    assert!(run.err().contains(&format!("(pid {victim}")), "{}", run.err());
    no_trace(&stage);
    goes_on_to_the_same_hashes(&stage, mpirun, "killed", "-n 2 --backend mpi");
}

#[test]
fn sigterm_and_ctrl_c_stop_it_in_order_and_mpirun_ends_last() {
    for (mpirun, signal) in mpiruns().into_iter().zip([Signal::TERM, Signal::INT]) {
        let stage = Stage::new();
        let mut run = lasting(&stage, mpirun, "stopped", "-n 2");
        run.signal(signal);
        assert_eq!(run.wait(), 3, "{}{}{}", run.out(), run.err(), logs(&stage, "stopped"));
        assert!(stage.path("runs/stopped/final/tokenizer.json").is_file());
        assert!(!stage.path("runs/stopped/coordinator.json").exists());
        no_trace(&stage);
        goes_on_to_the_same_hashes(&stage, mpirun, "stopped", "-n 2");
    }
}

#[test]
fn a_signal_to_mpirun_alone_ends_the_run_with_the_runs_own_code_whatever_mpiruns_is() {
    for mpirun in mpiruns() {
        let stage = Stage::new();
        let mut run = lasting(&stage, mpirun, "asked", "-n 2");
        send(pid_of_mpirun(&run), Signal::TERM);
        let code = run.wait();
        let told = format!("{mpirun}: {}{}{}", run.out(), run.err(), logs(&stage, "asked"));
        // Stopped in order where mpirun waits for its ranks, else failed; complete it is not.
        match code {
            3 => assert_eq!(summary(&stage, "asked")["exit"], "stopped", "{told}"),
            code => {
                assert_eq!(code, 1, "{told}");
                assert!(run.err().contains("run asked failed: "), "{told}");
            }
        }
        no_trace(&stage);
        goes_on_to_the_same_hashes(&stage, mpirun, "asked", "-n 2");
    }
}

#[test]
fn nothing_is_left_of_a_killed_mpirun_nor_of_a_killed_launcher() {
    for mpirun in mpiruns() {
        let stage = Stage::new();
        let mut run = lasting(&stage, mpirun, "killed", "-n 2");
        let launcher = run.pid();
        assert!(scratch_of(launcher).is_dir());
        send(pid_of_mpirun(&run), Signal::KILL);
        assert_eq!(run.wait(), 1, "{}{}", run.out(), run.err());
        assert!(run.err().contains("mpirun (pid "), "{}", run.err());
        no_trace(&stage);
        assert!(!scratch_of(launcher).exists());
        goes_on_to_the_same_hashes(&stage, mpirun, "killed", "-n 2");

        let stage = Stage::new();
        let mut run = lasting(&stage, mpirun, "orphan", "-n 2");
        let launcher = run.pid();
        run.signal(Signal::KILL);
        run.wait();
        no_trace(&stage);
        assert!(
            !scratch_of(launcher).exists(),
            "its janitor has ended, and so the folder has gone"
        );
        goes_on_to_the_same_hashes(&stage, mpirun, "orphan", "-n 2");
    }
}

#[test]
fn what_a_launcher_and_its_janitor_leave_that_are_killed_at_once_goes_with_the_next_start() {
    let Some(mpirun) = mpiruns().first().copied() else {
        return;
    };
    let stage = Stage::new();
    let mut run = lasting(&stage, mpirun, "first", "-n 2");
    let left = scratch_of(run.pid());
    for janitor in janitors(&stage) {
        send(janitor, Signal::KILL);
    }
    run.signal(Signal::KILL);
    run.wait();
    no_trace(&stage);
    // A process is gone to all eyes a moment before its last thread is.
    wait_until("nobody holds the folder", || match std::fs::File::open(&left) {
        Ok(folder) => flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(_) => true,
    });
    whole(&stage, mpirun, "second", "-n 2");
    assert!(!left.exists());
}

/// Processes that remove files when nobody uses them.
fn janitors(stage: &Stage) -> Vec<u32> {
    let is_janitor = |pid: &u32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).nth(1) == Some(b"janitor")
    };
    let found: Vec<u32> = stage.processes().into_iter().filter(is_janitor).collect();
    assert_eq!(found.len(), 1);
    found
}

#[test]
fn what_cannot_work_is_one_sentence_and_nothing_is_written() {
    let Some(mpirun) = mpiruns().first().copied() else {
        return;
    };
    let stage = Stage::new();
    std::fs::write(stage.path("hosts"), "203.0.113.7 slots=2\n").unwrap();
    std::fs::write(stage.path("empty"), "# nobody\n").unwrap();
    let before = stage.listing();
    for (words, part) in [
        ("-n 9", "run.lanes"),
        ("-n 2 --hostfile no-such-file", "no-such-file"),
        ("-n 2 --hostfile empty", "names no host"),
        ("-n 2 --hostfile hosts", "coordinator.bind"),
        ("-n 2 -- -np 3", "-np is not for mpirun alone"),
        ("-n 0", "0 is not in 1.."),
    ] {
        let output = command(&stage, mpirun, "refused", words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words}: {}", said(&output));
        assert!(said(&output).contains(part), "{words}: {}", said(&output));
    }
    let output = command(&stage, "no-such-mpirun", "refused", "-n 2").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("no-such-mpirun"), "{}", said(&output));
    assert!(stage.listing() == before);
}

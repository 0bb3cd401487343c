//! `mpirun -n N lockstep-trainer CONFIG`, and what else starts ranks together: rank 0 hosts the coordinator.

use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::stage::{Running, Stage, said, send, wait_until};
use crate::{
    SETS, SLOW, STEPS, calm, hashes, is_mpich, lines, mpiruns, no_trace, open_mpi, program, ranks, reach, running,
    summary,
};

/// What an mpirun needs so that this machine may be small and the user root.
fn mpirun(stage: &Stage, mpirun: &str, ranks: u32) -> Command {
    let mut command = Command::new(mpirun);
    if !is_mpich(mpirun) {
        command.args(["--oversubscribe", "--bind-to", "none", "--tag-output"]);
    }
    command
        .args(["-n", &ranks.to_string()])
        .current_dir(stage.path(""))
        .envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
    command
}

/// The words of a trainer that is started with a config.
fn trainer(command: &mut Command, program_name: &str, name: &str, words: &str) {
    command.arg(program(program_name)).arg("run.toml");
    command.args(format!("{SETS} --set run.name={name} {words}").split_whitespace());
}

fn plain(stage: &Stage, mpirun_name: &str, ranks: u32, name: &str, words: &str) -> Command {
    let mut command = mpirun(stage, mpirun_name, ranks);
    trainer(&mut command, "lockstep-trainer", name, words);
    command
}

/// Starts one that lasts, and waits until it is well under way.
fn lasting(stage: &Stage, mpirun: &str, name: &str) -> Running {
    let mut command = plain(stage, mpirun, 2, name, "");
    let mut run = stage.start(command.env(SLOW.0, SLOW.1));
    reach(stage, &mut run, name, 12);
    run
}

/// One that lasts until its mpirun's signals have come. Open MPI tells its ranks of a SIGTERM so many seconds later, and kills
/// them after as many again: long enough for steps and files on any machine.
fn signalled(stage: &Stage, mpirun: &str, name: &str, signal: Signal) -> Running {
    let mut command = plain(stage, mpirun, 2, name, "");
    command
        .env(SLOW.0, SLOW_FOR_SIGNALS)
        .env("OMPI_MCA_odls_base_sigkill_timeout", "10");
    let mut run = stage.start(&mut command);
    reach(stage, &mut run, name, 5);
    run.signal(signal);
    run
}

/// Longer than Open MPI waits with its signals.
const SLOW_FOR_SIGNALS: &str = "slow@1*500";

/// Starts the same again, which goes on by itself, and compares all of it with a run that nothing disturbed.
fn started_again(stage: &Stage, mpirun: &str, name: &str) {
    assert!(lines(stage, name).len() < STEPS, "it was disturbed before its end");
    let output = plain(stage, mpirun, 2, name, "").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(
        hashes(stage, name) == calm(stage),
        "the run that goes on made other bits"
    );
    no_trace(stage);
}

#[test]
fn plain_mpirun_makes_the_hashes_of_lockstep_run_and_a_complete_run_is_not_made_again() {
    let stage = Stage::new();
    let calm = calm(&stage);
    for mpirun in mpiruns() {
        for ranks in [2, 4] {
            let name = format!("{mpirun}-{ranks}");
            let output = plain(&stage, mpirun, ranks, &name, "").output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{}", said(&output));
            assert!(hashes(&stage, &name) == calm, "{name}");
            assert_eq!(summary(&stage, &name)["worlds"][0]["ranks"], ranks);
            assert!(!stage.path(&format!("runs/{name}/coordinator.json")).exists());
        }
        let name = format!("{mpirun}-2");
        let output = plain(&stage, mpirun, 2, &name, "").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert!(said(&output).contains("nothing left to train"), "{}", said(&output));
        assert!(hashes(&stage, &name) == calm, "{name}");
    }
    if let Some(name) = open_mpi() {
        let mut command = mpirun(&stage, name, 2);
        trainer(
            &mut command,
            "lockstep-trainer-mpi",
            "mpi",
            "--set collective.backend=mpi",
        );
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert!(hashes(&stage, "mpi") == calm);
        assert_eq!(summary(&stage, "mpi")["worlds"][0]["backend"], "mpi");
    }
    no_trace(&stage);
}

/// Two processes with the words of torchrun.
fn torchrun(stage: &Stage, name: &str) -> Vec<Child> {
    let rank = |rank: u32| {
        let mut command = Command::new(program("lockstep-trainer"));
        command
            .arg("run.toml")
            .args(format!("{SETS} --set run.name={name}").split_whitespace());
        command
            .current_dir(stage.path(""))
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        for (variable, word) in [
            ("WORLD_SIZE", 2),
            ("LOCAL_WORLD_SIZE", 2),
            ("RANK", rank),
            ("LOCAL_RANK", rank),
        ] {
            command.env(variable, word.to_string());
        }
        command.env("TORCHELASTIC_RUN_ID", "one").env("MASTER_PORT", "29500");
        command.spawn().unwrap()
    };
    vec![rank(1), rank(0)]
}

#[test]
fn ranks_of_torchrun_and_a_trainer_by_hand_are_runs_too() {
    let stage = Stage::new();
    let calm = calm(&stage);
    // An address of an earlier job lies there; nobody must believe it.
    std::fs::create_dir_all(stage.path("runs/torchrun")).unwrap();
    let stale = r#"{"version":1,"url":"http://127.0.0.1:1","pid":1,"job":"another"}"#;
    std::fs::write(stage.path("runs/torchrun/coordinator.json"), stale).unwrap();
    for mut rank in torchrun(&stage, "torchrun") {
        assert_eq!(rank.wait().unwrap().code(), Some(0));
    }
    assert!(hashes(&stage, "torchrun") == calm);

    let mut command = Command::new(program("lockstep-trainer"));
    command
        .arg("run.toml")
        .args(format!("{SETS} --set run.name=alone").split_whitespace());
    let output = command.current_dir(stage.path("")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(hashes(&stage, "alone") == calm);
    no_trace(&stage);
}

#[test]
fn a_live_one_is_found_by_the_commands_of_an_operator_whose_stop_is_exit_code_3() {
    for mpirun in mpiruns() {
        let stage = Stage::new();
        let mut run = lasting(&stage, mpirun, "steered");
        let output = stage.lockstep("status steered");
        assert!(
            said(&output).contains("2 ranks") || said(&output).contains("steered"),
            "{}",
            said(&output)
        );
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let output = stage.lockstep("stop steered");
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert_eq!(run.wait(), 3, "{}{}", run.out(), run.err());
        assert!(stage.path("runs/steered/final/tokenizer.json").is_file());
        no_trace(&stage);
        started_again(&stage, mpirun, "steered");
    }
}

#[test]
fn a_signal_to_mpirun_stops_the_run_in_order_where_mpirun_waits_for_its_ranks() {
    for mpirun in mpiruns() {
        let signals: &[Signal] = match is_mpich(mpirun) {
            true => &[Signal::TERM],
            // Open MPI passes this one on and ends nobody.
            false => &[Signal::USR1, Signal::TERM],
        };
        for signal in signals {
            let stage = Stage::new();
            let mut run = signalled(&stage, mpirun, "stopped", *signal);
            let code = run.wait();
            let told = format!("{mpirun} {signal:?} ({code}): {}{}", run.out(), run.err());
            // The run's own word, which is the one that counts.
            assert_eq!(summary(&stage, "stopped")["exit"], "stopped", "{told}");
            match (is_mpich(mpirun), *signal) {
                // That it was signalled itself.
                (false, Signal::TERM) => assert_eq!(code, 1, "{told}"),
                // Rank 0's code, or none where it did not wait for that.
                (true, _) => assert!([0, 3].contains(&code), "{told}"),
                _ => assert_eq!(code, 3, "{told}"),
            }
            assert!(stage.path("runs/stopped/final/tokenizer.json").is_file(), "{told}");
            no_trace(&stage);
            started_again(&stage, mpirun, "stopped");
        }
    }
}

#[test]
fn a_killed_rank_ends_the_job_and_the_next_start_goes_on() {
    for mpirun in mpiruns() {
        for victim in [0, 1] {
            let stage = Stage::new();
            let mut run = lasting(&stage, mpirun, "killed");
            send(ranks(&stage)[victim], Signal::KILL);
            assert_ne!(run.wait(), 0, "{}{}", run.out(), run.err());
            no_trace(&stage);
            started_again(&stage, mpirun, "killed");
        }
    }
}

#[test]
fn a_killed_mpirun_leaves_nothing_and_the_next_start_goes_on() {
    for mpirun in mpiruns() {
        let stage = Stage::new();
        let mut run = lasting(&stage, mpirun, "killed");
        run.signal(Signal::KILL);
        run.wait();
        no_trace(&stage);
        started_again(&stage, mpirun, "killed");
    }
}

#[test]
fn a_killed_coordinator_is_started_again_by_rank_0_and_nothing_is_lost() {
    let Some(mpirun) = mpiruns().first().copied() else {
        return;
    };
    let stage = Stage::new();
    let mut run = lasting(&stage, mpirun, "term");
    let before = running(&stage, "lockstep-coordinator");
    assert_eq!(before.len(), 1);
    send(before[0], Signal::KILL);
    wait_until("there is another coordinator", || {
        let now = running(&stage, "lockstep-coordinator");
        now.len() == 1 && now != before
    });
    assert_eq!(run.wait(), 0, "{}{}", run.out(), run.err());
    assert!(hashes(&stage, "term") == calm(&stage));
    no_trace(&stage);
}

#[test]
fn what_cannot_work_ends_every_rank_with_exit_code_2_and_says_why() {
    let Some(mpirun) = mpiruns().first().copied() else {
        return;
    };
    let stage = Stage::new();
    for (words, part) in [
        ("--set run.lanes=zero", "run.lanes"),
        ("--set data.path=nowhere", "nowhere"),
        ("--set collective.backend=mpi", "lockstep-trainer-mpi"),
        ("--ranks 3", "2 processes were started together"),
        ("--hostfile nobody", "nobody"),
    ] {
        let output = plain(&stage, mpirun, 2, "refused", words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words}: {}", said(&output));
        assert!(said(&output).contains(part), "{words}: {}", said(&output));
    }
    no_trace(&stage);
}

#[test]
fn a_coordinator_of_another_run_is_refused_by_name() {
    let stage = Stage::new();
    let mut other = stage.start(
        stage
            .command(&format!("run run.toml {SETS} --set run.name=other -n 1"))
            .env(SLOW.0, SLOW.1),
    );
    reach(&stage, &mut other, "other", 1);
    let address: serde_json::Value = serde_json::from_str(&stage.read("runs/other/coordinator.json")).unwrap();
    let mut command = Command::new(program("lockstep-trainer"));
    command
        .arg("run.toml")
        .args(["--coordinator", address["url"].as_str().unwrap(), "--member", "astray"]);
    let output = command.current_dir(stage.path("")).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    for part in ["\"other\"", "\"first\"", "--coordinator"] {
        assert!(said(&output).contains(part), "{part} is missing in: {}", said(&output));
    }
    assert_eq!(other.wait(), 0, "{}{}", other.out(), other.err());
}

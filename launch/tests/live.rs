//! `lockstep run` around trainers that never train: what the launcher alone promises. Stand-ins take the trainers'
//! places, so nothing here needs libtorch.
#![allow(clippy::unwrap_used)]

mod stage;

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use stage::{Running, Stage, is_alive, said, send, wait_at_most, wait_until};

/// A run whose trainers wait for ever, once it can be asked.
fn waiting_run(stage: &Stage, words: &str) -> Running {
    let trainer = stage.stand_in("exec sleep 600");
    let mut run = stage.start(
        stage
            .command(&format!("run run.toml {words}"))
            .env("LOCKSTEP_TRAINER", &trainer),
    );
    wait_until("the trainers are there", || {
        stage.processes().len() == 3 || !run.is_running()
    });
    assert!(run.is_running(), "{}", run.err());
    run
}

fn trainers(stage: &Stage, run: &Running) -> Vec<u32> {
    stage.processes().into_iter().filter(|pid| *pid != run.pid()).collect()
}

#[test]
fn a_live_run_is_found_without_an_address_and_asked() {
    let stage = Stage::new();
    let run = waiting_run(&stage, "-n 2");
    let url = serde_json::from_str::<Value>(&stage.read("runs/first/coordinator.json")).unwrap()["url"]
        .as_str()
        .unwrap()
        .to_owned();
    for words in [
        "status",
        "status first",
        "status ./runs/first",
        &format!("status --coordinator {url}"),
    ] {
        let output = stage.lockstep(words);
        assert_eq!(output.status.code(), Some(0), "{words}: {}", said(&output));
        for part in ["first", "waiting-for-members", "0 of 6", "2 (0 present)", "host"] {
            assert!(
                said(&output).contains(part),
                "{words}: {part:?} is missing in: {}",
                said(&output)
            );
        }
    }
    let output = stage.lockstep("members");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    drop(run);
}

#[test]
fn without_a_live_run_a_command_says_so() {
    let stage = Stage::new();
    for words in ["status", "watch", "members", "pause", "resume", "stop"] {
        let output = stage.lockstep(words);
        assert_eq!(output.status.code(), Some(2), "{words}: {}", said(&output));
        assert!(said(&output).contains("no live run"), "{words}: {}", said(&output));
        let output = stage.lockstep(&format!("{words} nameless"));
        assert_eq!(output.status.code(), Some(2), "{words}: {}", said(&output));
        assert!(said(&output).contains("nameless"), "{words}: {}", said(&output));
    }
    let output = stage.lockstep("status --coordinator http://127.0.0.1:1");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("http://127.0.0.1:1"), "{}", said(&output));
}

#[test]
fn of_several_live_runs_the_one_that_is_meant_must_be_named() {
    let stage = Stage::new();
    let first = waiting_run(&stage, "-n 2");
    let trainer = stage.path("stand-in");
    let words = "run run.toml -n 1 --set run.name=second";
    let second = stage.start(stage.command(words).env("LOCKSTEP_TRAINER", trainer));
    wait_until("the second run is live", || {
        stage.path("runs/second/coordinator.json").exists()
    });
    let output = stage.lockstep("status");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("first, second"), "{}", said(&output));
    let output = stage.lockstep("status second");
    assert!(
        output.status.success() && said(&output).contains("second"),
        "{}",
        said(&output)
    );
    drop((first, second));
}

#[test]
fn a_stop_before_the_first_step_ends_the_run_with_exit_code_3() {
    let stage = Stage::new();
    // A trainer that never joins cannot say farewell: the launcher ends it.
    let mut run = waiting_run(&stage, "-n 2");
    let output = stage.lockstep("stop");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(run.wait(), 3, "{}{}", run.out(), run.err());
    stage.nothing_runs();
    assert!(!stage.path("runs/first/coordinator.json").exists());
}

#[test]
fn interrupted_twice_it_ends_at_once_and_reaps() {
    let stage = Stage::new();
    let mut run = waiting_run(&stage, "-n 2");
    let trainers = trainers(&stage, &run);
    run.signal(Signal::INT);
    wait_until("the first interrupt is told", || run.out().contains("once more"));
    run.signal(Signal::TERM);
    assert_eq!(run.wait(), 1, "{}{}", run.out(), run.err());
    assert!(run.err().contains("second Ctrl-C"), "{}", run.err());
    for pid in trainers {
        assert!(!is_alive(pid));
    }
    assert!(!stage.path("runs/first/coordinator.json").exists());
}

#[test]
fn a_terminal_that_hangs_up_stops_a_run_unless_it_was_started_to_outlive_it() {
    // `env` and `nohup` say what the run inherits, whatever this test was started under.
    let started = |stage: &Stage, by: &[&str]| {
        let mut command = std::process::Command::new(by[0]);
        command
            .args(&by[1..])
            .arg(env!("CARGO_BIN_EXE_lockstep"))
            .args(["run", "run.toml", "-n", "2"])
            .current_dir(stage.path("."))
            .env("LOCKSTEP_TRAINER", stage.stand_in("exec sleep 600"));
        let mut run = stage.start(&mut command);
        wait_until("the trainers are there", || {
            stage.processes().len() == 3 || !run.is_running()
        });
        run
    };
    let stage = Stage::new();
    let run = started(&stage, &["env", "--default-signal=HUP"]);
    run.signal(Signal::HUP);
    wait_until("the hang-up is told", || run.out().contains("once more"));
    drop(run);

    let stage = Stage::new();
    let run = started(&stage, &["nohup"]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", run.pid())).unwrap();
    let hangup = |mask: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(mask)).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1
    };
    assert!(hangup("SigIgn:") && !hangup("SigCgt:"), "{status}");
}

#[test]
fn a_trainer_that_is_killed_before_it_joins_ends_the_run_and_is_named() {
    let stage = Stage::new();
    let mut run = waiting_run(&stage, "-n 2 --json --set fault.max_restarts=0");
    let mut pid = 0;
    wait_until("rank 1 is told", || {
        let text = run.out();
        let mut events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let trainer = events.find(|event| event["event"] == "trainer" && event["rank"] == 1);
        pid = trainer.and_then(|trainer| trainer["pid"].as_u64()).unwrap_or(0) as u32;
        pid > 0
    });
    send(pid, Signal::KILL);
    wait_at_most(Duration::from_secs(5), "the run has ended", &mut || !run.is_running());
    assert_eq!(run.wait(), 1);
    for part in ["rank 1", &format!("pid {pid}"), "SIGKILL"] {
        assert!(run.err().contains(part), "{part:?} is missing in: {}", run.err());
    }
    stage.nothing_runs();
}

#[test]
fn a_trainer_that_fails_at_its_start_is_told_with_the_last_lines_of_its_log() {
    let stage = Stage::new();
    let trainer = stage.stand_in("echo the wheel came off >&2; exit 7");
    let output = stage
        .command("run run.toml -n 2")
        .env("LOCKSTEP_TRAINER", &trainer)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    for part in ["rank 0", "exit code 7", "the wheel came off", "rank-0.log"] {
        assert!(
            said(&output).contains(part),
            "{part:?} is missing in: {}",
            said(&output)
        );
    }
    stage.nothing_runs();
    // No step was made: the folder may be used again.
    let again = stage
        .command("run run.toml -n 2")
        .env("LOCKSTEP_TRAINER", &trainer)
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(1), "{}", said(&again));
}

#[test]
fn trainers_get_their_threads_and_their_parent() {
    let stage = Stage::new();
    let trainer = stage.stand_in(
        "echo \"$@\"; echo $LOCKSTEP_COORDINATOR; echo $OMP_NUM_THREADS $MKL_NUM_THREADS; test $LOCKSTEP_PARENT_PID = $PPID && echo parent; echo $LOCKSTEP_RUN_DIR; exit 1",
    );
    let words = "run run.toml -n 1 --set run.intra_op_threads=3";
    let output = stage.command(words).env("LOCKSTEP_TRAINER", &trainer).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let log = stage.read("runs/first/logs/rank-0.log");
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], "train --member trainer-0", "{log}");
    assert!(lines[1].starts_with("http://127.0.0.1:"), "{log}");
    let folder = stage.path("runs/first").canonicalize().unwrap();
    assert_eq!(lines[2..], ["3 3", "parent", folder.to_str().unwrap()]);
}

#[test]
fn what_needs_libtorch_is_passed_to_the_trainer_as_it_is() {
    let stage = Stage::new();
    let trainer = stage.stand_in("echo \"$@\"; exit 5");
    let words = "generate runs/first/final --prompt -x --help";
    let output = stage.command(words).env("LOCKSTEP_TRAINER", &trainer).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(said(&output).trim(), words);
    let output = stage
        .command("inspect run.toml")
        .env("LOCKSTEP_TRAINER", &trainer)
        .output()
        .unwrap();
    assert_eq!(said(&output).trim(), "inspect run.toml");
}

#[test]
fn the_resolved_config_is_kept_in_the_run_folder() {
    let stage = Stage::new();
    let run = waiting_run(&stage, "-n 2 --set run.seed=9");
    let path = stage.path("runs/first/config.toml");
    let config = lockstep_config::RunConfig::read(&path, &[]).unwrap();
    assert_eq!(config.run.seed, 9);
    assert_eq!(config.model.vocab, Some(256));
    assert!(
        config.data.path.is_absolute() && config.data.path.ends_with("data"),
        "{:?}",
        config.data.path
    );
    drop(run);
}

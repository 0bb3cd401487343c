//! Whole runs over MPI: `lockstep-trainer` and `lockstep-trainer-mpi` must lie beside the binary under test, and an mpirun must
//! be on the search path. Where LOCKSTEP_WITHOUT_MPI is set (`cargo xtask test` sets it on a machine that has no MPI, and
//! says so), all of this is left out.
#![allow(clippy::unwrap_used)]

mod stage;

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use stage::{Running, Stage, real_trainer, said, send, wait_until};

/// Words of a run that lasts until it is stopped.
const ENDLESS: &str = "run run.toml -n 2 --backend mpi --json --set run.steps=1000000 --set validation.every=0";

/// Whether these tests are left out; checks the programs if not.
fn left_out() -> bool {
    if std::env::var_os("LOCKSTEP_WITHOUT_MPI").is_some() {
        println!("left out: LOCKSTEP_WITHOUT_MPI is set");
        return true;
    }
    let path = real_trainer().with_file_name("lockstep-trainer-mpi");
    assert!(
        path.is_file(),
        "{} is not there: build it first with `cargo build --release -p lockstep-trainer-mpi`",
        path.display()
    );
    false
}

fn lines(text: &str) -> Vec<Value> {
    // The last line may still be on its way.
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// Starts an endless run and waits for its third step.
fn endless(stage: &Stage) -> Running {
    let mut run = stage.start(&mut stage.command(ENDLESS));
    let steps = |run: &Running| {
        lines(&run.out())
            .iter()
            .filter(|event| event["event"] == "step")
            .count()
    };
    wait_until("the run has made three steps", || steps(&run) >= 3 || !run.is_running());
    assert!(run.is_running(), "{}{}{}", run.out(), run.err(), logs(stage));
    run
}

fn logs(stage: &Stage) -> String {
    let logs = ["mpirun", "rank-0", "rank-1"].map(|name| stage.path(&format!("runs/first/logs/{name}.log")));
    logs.map(|log| {
        format!(
            "\n{}:\n{}",
            log.display(),
            std::fs::read_to_string(&log).unwrap_or_default()
        )
    })
    .concat()
}

/// Processes of the stage with this name.
fn called(stage: &Stage, name: &str) -> Vec<u32> {
    let is = |pid: &u32| {
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        // mpirun is often a link to another name.
        let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let first = words.split('\0').next().unwrap_or_default().to_owned();
        [program, PathBuf::from(first)]
            .iter()
            .any(|path| path.file_name().is_some_and(|file| file == name))
    };
    stage.processes().into_iter().filter(is).collect()
}

/// No process is left, and no file of mpirun's.
fn no_trace(stage: &Stage, launcher: u32) {
    wait_until("every process has ended", || stage.processes().is_empty());
    assert!(!Path::new(&format!("/dev/shm/lockstep-{launcher}")).exists());
}

#[test]
fn every_step_has_the_same_hash_over_mpi_as_on_one_rank() {
    if left_out() {
        return;
    }
    let stage = Stage::new();
    for sets in [
        "run.precision=fp32",
        "run.precision=bf16 --set optimizer.method=muonmax",
    ] {
        let hashes = |name: &str, words: &str| -> Vec<String> {
            let name = format!("{name}-{}", sets.len());
            let output = stage.lockstep(&format!("run run.toml --set {sets} --set run.name={name} {words}"));
            assert_eq!(output.status.code(), Some(0), "{}", said(&output));
            let metrics = lines(&stage.read(&format!("runs/{name}/metrics.jsonl")));
            let summary: Value = serde_json::from_str(&stage.read(&format!("runs/{name}/summary.json"))).unwrap();
            let backend = if words.contains("mpi") { "mpi" } else { "solo" };
            assert_eq!(summary["worlds"][0]["backend"], backend);
            metrics
                .iter()
                .filter_map(|line| Some(line["parameter_hash"].as_str()?.to_owned()))
                .collect()
        };
        let alone = hashes("alone", "-n 1");
        assert_eq!(alone.len(), 6);
        for ranks in [2, 4] {
            assert_eq!(
                hashes(&format!("mpi-{ranks}"), &format!("-n {ranks} --backend mpi")),
                alone,
                "{ranks} ranks, {sets}"
            );
        }
    }
    stage.nothing_runs();
}

#[test]
fn an_interrupt_stops_it_in_order_with_its_files_written() {
    if left_out() {
        return;
    }
    for signal in [Signal::INT, Signal::TERM] {
        let stage = Stage::new();
        let mut run = endless(&stage);
        run.signal(signal);
        assert_eq!(run.wait(), 3, "{}{}{}", run.out(), run.err(), logs(&stage));
        assert!(stage.path("runs/first/final/tokenizer.json").is_file());
        for log in ["rank-0.log", "rank-1.log", "mpirun.log"] {
            assert!(stage.path("runs/first/logs").join(log).is_file(), "{log}");
        }
        no_trace(&stage, run.pid());
    }
}

#[test]
fn a_second_interrupt_ends_it_at_once() {
    if left_out() {
        return;
    }
    let stage = Stage::new();
    let mut run = endless(&stage);
    // A rank that does not move keeps the run from stopping in order.
    send(called(&stage, "lockstep-trainer-mpi")[0], Signal::STOP);
    run.signal(Signal::INT);
    wait_until("the first interrupt was heard", || {
        (run.out() + &run.err()).contains("once more")
    });
    run.signal(Signal::INT);
    assert_eq!(run.wait(), 1, "{}{}", run.out(), run.err());
    no_trace(&stage, run.pid());
}

#[test]
fn a_killed_trainer_ends_the_run_and_is_named() {
    if left_out() {
        return;
    }
    let stage = Stage::new();
    let mut run = endless(&stage);
    let victim = called(&stage, "lockstep-trainer-mpi")[1];
    send(victim, Signal::KILL);
    assert_eq!(run.wait(), 1);
    assert!(run.err().contains(&format!("(pid {victim}")), "{}", run.err());
    no_trace(&stage, run.pid());
}

#[test]
fn nothing_is_left_when_mpirun_is_killed_nor_when_the_launcher_is() {
    if left_out() {
        return;
    }
    let stage = Stage::new();
    let mut run = endless(&stage);
    send(called(&stage, "mpirun")[0], Signal::KILL);
    assert_eq!(run.wait(), 1);
    assert!(run.err().contains("mpirun (pid "), "{}", run.err());
    no_trace(&stage, run.pid());

    let stage = Stage::new();
    let mut run = endless(&stage);
    run.signal(Signal::KILL);
    run.wait();
    no_trace(&stage, run.pid());
}

#[test]
fn what_is_not_installed_is_one_sentence_and_nothing_is_written() {
    if left_out() {
        return;
    }
    let stage = Stage::new();
    let before = stage.listing();
    for (variable, parts) in [
        (
            "LOCKSTEP_TRAINER_MPI",
            ["cargo build --release -p lockstep-trainer-mpi", "--backend host"],
        ),
        ("LOCKSTEP_MPIRUN", ["install the MPI", "--backend host"]),
    ] {
        let mut command = stage.command("run run.toml -n 2 --backend mpi");
        let output = command.env(variable, "no-such-program").output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        for part in parts.iter().chain(&["no-such-program"]) {
            assert!(
                said(&output).contains(part),
                "{part:?} is missing in: {}",
                said(&output)
            );
        }
        assert!(stage.listing() == before);
    }
}

//! Runs that an mpirun, a Slurm or their like starts, by the real programs: the same hash at every step as by `lockstep run`,
//! and one end with one exit code whatever is killed. What a machine lacks is left out where a variable says so; `cargo xtask
//! test` sets those, and says what is missing.
#![allow(clippy::unwrap_used)]

mod documented;
mod far;
mod launched;
#[allow(dead_code)] // The test of all pages uses the rest of both.
#[path = "../commands/pages.rs"]
mod pages;
#[allow(dead_code)]
#[path = "../commands/place.rs"]
mod place;
mod plain;
mod slurm;
#[path = "../stage/mod.rs"]
mod stage;

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use stage::{Running, Stage, real_trainer, said, wait_until};

/// Four lanes; snapshots and checkpoints often enough to go on from.
const SETS: &str = "--set run.precision=bf16 --set optimizer.method=muonmax --set batch.schedule=16 --set model.layers=2 \
                    --set validation.every=0 --set fault.snapshot_every=5 --set checkpoint.every=10 --set run.steps=60";
/// Its steps.
const STEPS: usize = 60;
/// Makes each step so slow that what disturbs a run comes long before its end, on any machine.
const SLOW: (&str, &str) = ("LOCKSTEP_DRILL", "slow@1*60");

/// The mpiruns of this machine, by their names on the search path.
fn mpiruns() -> Vec<&'static str> {
    let mut found = Vec::new();
    for (variable, names) in [
        ("LOCKSTEP_WITHOUT_MPI", ["mpirun.openmpi", "mpirun"]),
        ("LOCKSTEP_WITHOUT_MPICH", ["mpirun.mpich", "mpiexec.hydra"]),
    ] {
        if is_without(variable) {
            continue;
        }
        let there = names.into_iter().find(|name| on_path(name).is_some());
        found.push(there.unwrap_or_else(|| panic!("{} is not there; install it, or set {variable}", names[0])));
    }
    found
}

/// Whether a variable leaves out what needs a program that this machine does not have; says so.
fn is_without(variable: &str) -> bool {
    let is_set = std::env::var_os(variable).is_some();
    if is_set {
        println!("left out: {variable} is set");
    }
    is_set
}

/// Open MPI's mpirun, which the trainer for MPI is linked with, if it is not left out.
fn open_mpi() -> Option<&'static str> {
    mpiruns().into_iter().find(|name| !is_mpich(name))
}

/// Whether an mpirun is MPICH's, as it says itself: `mpirun` alone may be either's.
fn is_mpich(mpirun: &str) -> bool {
    let output = Command::new(mpirun).arg("--version").output().unwrap();
    said(&output).contains("HYDRA")
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// A program that lies beside the binary under test.
fn program(name: &str) -> PathBuf {
    let path = real_trainer().with_file_name(name);
    assert!(path.is_file(), "{} is not there: build it first", path.display());
    path
}

fn lines(stage: &Stage, name: &str) -> Vec<Value> {
    let metrics = std::fs::read_to_string(stage.path(&format!("runs/{name}/metrics.jsonl"))).unwrap_or_default();
    let lines = metrics
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["parameter_hash"].is_string()).collect()
}

/// The parameter hash of every step.
fn hashes(stage: &Stage, name: &str) -> Vec<String> {
    let hash = |line: &Value| line["parameter_hash"].as_str().unwrap_or_default().to_owned();
    lines(stage, name).iter().map(hash).collect()
}

/// The hashes of a run of `lockstep run` that nothing disturbs.
fn calm(stage: &Stage) -> Vec<String> {
    let output = stage.lockstep(&format!("run run.toml {SETS} --set run.name=calm -n 2"));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let hashes = hashes(stage, "calm");
    assert_eq!(hashes.len(), STEPS);
    hashes
}

/// Waits until `step` is committed.
fn reach(stage: &Stage, run: &mut Running, name: &str, step: usize) {
    wait_until(&format!("step {step} of {name} is committed"), || {
        assert!(run.is_running(), "{}{}{}", run.out(), run.err(), logs(stage, name));
        lines(stage, name).len() >= step
    });
}

/// What the processes of a run have said.
fn logs(stage: &Stage, name: &str) -> String {
    let folder = std::fs::read_dir(stage.path(&format!("runs/{name}/logs")))
        .into_iter()
        .flatten()
        .flatten();
    let text = |path: PathBuf| {
        format!(
            "\n{}:\n{}",
            path.display(),
            std::fs::read_to_string(&path).unwrap_or_default()
        )
    };
    folder.map(|entry| text(entry.path())).collect()
}

/// The ranks among the processes of a stage; not the guards before them.
fn ranks(stage: &Stage) -> Vec<u32> {
    let mut pids = stage.processes();
    pids.retain(|pid| {
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let is_guard = environment
            .split(|byte| *byte == 0)
            .any(|word| word.starts_with(b"LOCKSTEP_GUARD="));
        name.starts_with("lockstep-trainer") && !is_guard
    });
    pids.sort_unstable();
    pids
}

/// The processes of a stage that run this program.
fn running(stage: &Stage, name: &str) -> Vec<u32> {
    let is_it = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program.ends_with(name));
    stage.processes().into_iter().filter(is_it).collect()
}

/// No process is left, and no address of a coordinator.
fn no_trace(stage: &Stage) {
    wait_until("every process has ended", || stage.processes().is_empty());
}

/// The end of a run as its summary has it.
fn summary(stage: &Stage, name: &str) -> Value {
    serde_json::from_str(&stage.read(&format!("runs/{name}/summary.json"))).unwrap()
}

//! Runs that end, by a stop or by death, and go on from their checkpoints on other numbers of ranks.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;

use crate::stage::{Stage, said};
use crate::{SETS, calm, hashes, lines, reach};

const STEPS: u32 = 60;

fn words(name: &str, ranks: u32, more: &str) -> String {
    format!(
        "run run.toml {SETS} --set run.steps={STEPS} --set run.name={name} --set checkpoint.every=10 \
         --set fault.snapshot_every=0 -n {ranks} {more}"
    )
}

/// Runs until `step` is committed, and then sends the launcher a signal.
fn run_until(stage: &Stage, name: &str, (ranks, more): (u32, &str), step: usize, signal: Signal) -> String {
    // Slow enough that the signal comes long before the end, on any machine.
    let mut command = stage.command(&words(name, ranks, more));
    let mut run = stage.start(command.env("LOCKSTEP_DRILL", "slow@1*30"));
    reach(stage, &mut run, name, step);
    run.signal(signal);
    run.wait();
    format!("{}{}", run.out(), run.err())
}

fn manifests(stage: &Stage, name: &str) -> Vec<PathBuf> {
    let folder = stage.path(&format!("runs/{name}/checkpoints"));
    let steps = fs::read_dir(folder).unwrap().flatten();
    let of_steps = steps.filter(|entry| entry.file_name().to_string_lossy().starts_with("step-"));
    let mut files: Vec<PathBuf> = of_steps
        .flat_map(|entry| fs::read_dir(entry.path()).unwrap().flatten())
        .map(|entry| entry.path())
        .collect();
    files.sort_by_key(|path| step_of(path));
    files
}

fn step_of(manifest: &std::path::Path) -> u64 {
    let folder = manifest
        .parent()
        .unwrap()
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    folder.trim_start_matches("step-").parse().unwrap()
}

#[test]
fn a_run_goes_on_after_stops_and_a_killed_launcher_on_four_one_three_and_eight_ranks() {
    let stage = Stage::new();
    let expected = calm(&stage, STEPS);
    let name = "resumed";
    let said_first = run_until(&stage, name, (4, ""), 13, Signal::INT);
    let stopped_at = lines(&stage, name).len() as u64;
    assert!(stopped_at < u64::from(STEPS), "{said_first}");
    let newest = manifests(&stage, name).last().map(|path| step_of(path));
    assert_eq!(
        newest,
        Some(stopped_at),
        "a stopped run has a checkpoint of its last step"
    );
    let output = stage.lockstep(&format!("inspect runs/{name}/checkpoints"));
    let told = said(&output);
    assert!(
        output.status.success() && told.contains(&format!("after step {stopped_at}")) && told.contains("momentum"),
        "{told}"
    );
    run_until(&stage, name, (1, "--resume"), 26, Signal::INT);
    let stopped_again = lines(&stage, name).len();
    assert!(stopped_again < STEPS as usize);
    run_until(&stage, name, (3, "--resume"), stopped_again + 13, Signal::KILL);
    let output = stage.lockstep(&words(name, 8, "--resume"));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(hashes(&stage, name) == expected, "resumes made other bits");
    for proof in ["audit", "replay"] {
        let output = stage.lockstep(&format!("ledger {proof} runs/{name}"));
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    }
    let ranks: Vec<u64> = lines(&stage, name)
        .iter()
        .map(|line| line["ranks"].as_u64().unwrap())
        .collect();
    for world in [4, 1, 3, 8] {
        assert!(ranks.contains(&world), "{ranks:?}");
    }
    let output = stage.lockstep(&words(name, 2, "--resume"));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("is over"), "{}", said(&output));
    stage.nothing_runs();
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_used() {
    let stage = Stage::new();
    let expected = calm(&stage, STEPS);
    run_until(&stage, "damaged", (2, ""), 26, Signal::INT);
    let files = manifests(&stage, "damaged");
    assert!(files.len() >= 2, "{files:?}");
    let newest = files.last().unwrap();
    let mut bytes = fs::read(newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(newest, bytes).unwrap();
    let output = stage.lockstep(&words("damaged", 2, "--resume"));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(hashes(&stage, "damaged") == expected, "other bits");
    let step = step_of(newest);
    let told = said(&output);
    assert!(
        told.contains(&format!("checkpoint step-{step}/")) && told.contains("is damaged"),
        "{told}"
    );
    stage.nothing_runs();
}

#[test]
fn a_checkpoint_that_an_operator_asks_for_is_written_after_the_step_that_the_answer_names() {
    let stage = Stage::new();
    let sets = format!("run run.toml {SETS} --set run.steps=200 --set run.name=asked --set checkpoint.every=0 -n 2");
    let mut run = stage.start(&mut stage.command(&sets));
    reach(&stage, &mut run, "asked", 5);
    let output = stage.lockstep("checkpoint asked");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let told = said(&output);
    let step: u64 = told.trim().rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(run.wait(), 0, "{}{}", run.out(), run.err());
    let steps: Vec<u64> = manifests(&stage, "asked").iter().map(|path| step_of(path)).collect();
    assert_eq!(steps, [step], "{told}");
    stage.nothing_runs();
}

#[test]
fn a_run_without_resume_leaves_an_earlier_one_alone() {
    let stage = Stage::new();
    run_until(&stage, "alone", (1, ""), 5, Signal::INT);
    let before = lines(&stage, "alone");
    let output = stage.lockstep(&words("alone", 1, ""));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("--resume"), "{}", said(&output));
    assert_eq!(lines(&stage, "alone"), before);
}

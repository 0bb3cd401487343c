//! Orders for a run that trains, through the real binary and real trainers.
#![allow(clippy::unwrap_used)]

mod stage;

use std::collections::BTreeMap;

use serde_json::Value;
use stage::{Running, Stage, real_trainer, said, wait_until};

/// A run of 2 ranks with a short plan window, started and training.
fn started(stage: &Stage, steps: u64) -> Running {
    let words = format!(
        "run run.toml -n 2 --set run.steps={steps} --set coordinator.plan_window_seconds=0.05 --set validation.every=0 \
         --set learning_rate.schedule={{kind=\"cosine\",peak=0.002}}"
    );
    let run = stage.start(stage.command(&words).env("LOCKSTEP_TRAINER", real_trainer()));
    wait_for_step(stage, 3);
    run
}

/// The lines of `metrics.jsonl` so far that are steps, by step.
fn steps(stage: &Stage) -> BTreeMap<u64, Value> {
    let path = stage.path("runs/first/metrics.jsonl");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter(|line| line.get("loss").is_some())
        .map(|line| (line["step"].as_u64().unwrap(), line))
        .collect()
}

fn wait_for_step(stage: &Stage, step: u64) {
    wait_until(&format!("step {step} is committed"), || {
        steps(stage).contains_key(&step)
    });
}

/// Gives an order that is carried out; the answer, and the step that it names.
fn ordered(stage: &Stage, words: &str) -> (String, u64) {
    let output = stage.lockstep(words);
    let said = said(&output);
    assert!(output.status.success(), "{words}: {said}");
    let step = said.split_once("from step ").and_then(|(_, rest)| rest.split_once(' '));
    let step = step.map_or(0, |(step, _)| step.parse().unwrap());
    (said, step)
}

fn proven(stage: &Stage) {
    for what in ["audit", "replay"] {
        let output = stage.lockstep(&format!("ledger {what} runs/first"));
        assert!(output.status.success(), "{what}: {}", said(&output));
    }
}

#[test]
fn what_is_set_holds_from_the_step_that_was_said_and_the_ledger_proves_it() {
    let stage = Stage::new();
    let mut run = started(&stage, 400);
    let (answer, rate_from) = ordered(&stage, "set learning_rate=0.0005 batch=12 --order-key one");
    assert!(
        answer.contains("learning rate 0.0005 (was ") && answer.contains("batch 12 (was 8)"),
        "{answer}"
    );
    let again = ordered(&stage, "set learning_rate=0.0005 batch=12 --order-key one");
    assert_eq!(again, (answer, rate_from), "said again, answered again");
    let refused = stage.lockstep("set learning_rate=0.1 --order-key one");
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    let dry = ordered(&stage, "set first learning_rate=9.0 --dry-run").0;
    assert!(dry.starts_with("dry run, nothing is changed: from step"), "{dry}");
    let refused = stage.lockstep("set learning_rate=9.0 --if-step-before 2");
    assert!(said(&refused).contains("not before step 2"), "{}", said(&refused));
    let (answer, skip_from) = ordered(&stage, "skip --samples 5");
    assert!(
        answer.contains("5 of them") || answer.contains("are skipped"),
        "{answer}"
    );
    let (answer, _) = ordered(&stage, "extend --steps 7");
    assert!(answer.contains("steps of the run 407 (was 400)"), "{answer}");
    let (_, back_from) = ordered(&stage, "set learning_rate=schedule momentum=0.5 validate_every=100");
    assert_eq!(run.wait(), 0, "{}", run.err());
    let steps = steps(&stage);
    assert_eq!(steps.len(), 407);
    let of = |step: u64, key: &str| steps[&step][key].as_f64().unwrap();
    for step in 1..=407 {
        let set = (rate_from..back_from).contains(&step);
        assert_eq!(
            of(step, "lr") == 0.0005,
            set,
            "step {step}, set for {rate_from} to {back_from}"
        );
        assert_eq!(
            of(step, "batch"),
            if step < rate_from { 8.0 } else { 12.0 },
            "step {step}"
        );
    }
    assert!(
        rate_from <= skip_from && skip_from <= back_from,
        "{rate_from} {skip_from} {back_from}"
    );
    proven(&stage);
    let shown = said(&stage.lockstep("ledger show runs/first"));
    assert!(shown.contains("an operator's change 1: from step"), "{shown}");
    stage.nothing_runs();
}

#[test]
fn a_run_stops_after_the_step_that_was_named_and_goes_on_from_there_to_the_same_bits() {
    let stage = Stage::new();
    let mut run = started(&stage, 90);
    let (_, from) = ordered(&stage, "stop --after 60");
    assert!(from < 60);
    assert_eq!(run.wait(), 3, "stopped by an operator, and resumable: {}", run.err());
    assert_eq!(steps(&stage).keys().max(), Some(&60));
    let words = "run run.toml -n 1 --resume --set run.steps=90 --set coordinator.plan_window_seconds=0.05 --set \
                 validation.every=0 --set learning_rate.schedule={kind=\"cosine\",peak=0.002}";
    let output = stage
        .command(words)
        .env("LOCKSTEP_TRAINER", real_trainer())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(steps(&stage).len(), 90);
    proven(&stage);
    let other = Stage::new();
    let mut undisturbed = started(&other, 90);
    assert_eq!(undisturbed.wait(), 0, "{}", undisturbed.err());
    assert_eq!(
        steps(&other)[&90]["parameter_hash"],
        steps(&stage)[&90]["parameter_hash"]
    );
}

#[test]
fn a_run_that_goes_back_and_changes_nothing_comes_to_the_same_bits() {
    let stage = Stage::new();
    let mut run = started(&stage, 120);
    wait_for_step(&stage, 20);
    let refused = stage.lockstep("rewind --to 100000");
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(
        said(&refused).contains("step 100000 is not committed yet"),
        "{}",
        said(&refused)
    );
    let dry = ordered(&stage, "rewind first --to 0 --dry-run").0;
    assert!(
        dry.starts_with("dry run, nothing is changed: the run goes back from step "),
        "{dry}"
    );
    let (answer, _) = ordered(&stage, "rewind --to 0 --order-key back");
    assert!(
        answer.contains("to step 0: every rank begins with the initial parameters, and step 1 is the first"),
        "{answer}"
    );
    assert_eq!(ordered(&stage, "rewind --to 0 --order-key back").0, answer);
    assert_eq!(run.wait(), 0, "{}", run.err());
    assert_eq!(steps(&stage).len(), 120);
    proven(&stage);
    let shown = said(&stage.lockstep("ledger show runs/first"));
    assert!(shown.contains("an operator's rewind: the run goes back"), "{shown}");
    let other = Stage::new();
    let mut undisturbed = started(&other, 120);
    assert_eq!(undisturbed.wait(), 0, "{}", undisturbed.err());
    let hash = |stage: &Stage| steps(stage)[&120]["parameter_hash"].clone();
    assert_eq!(hash(&stage), hash(&other));
    stage.nothing_runs();
}

#[test]
fn a_drained_trainer_leaves_and_the_others_lose_no_step() {
    let stage = Stage::new();
    let mut run = started(&stage, 300);
    let refused = stage.lockstep("drain --member nobody");
    assert!(
        said(&refused).contains("there are: trainer-0, trainer-1"),
        "{}",
        said(&refused)
    );
    let (answer, _) = ordered(&stage, "drain --member trainer-1");
    assert!(answer.contains("trainer-1 leaves"), "{answer}");
    wait_until("one rank trains", || {
        steps(&stage)
            .values()
            .next_back()
            .is_some_and(|step| step["ranks"] == 1)
            || !run.is_running()
    });
    assert_eq!(run.wait(), 0, "{}", run.err());
    assert_eq!(steps(&stage).len(), 300);
    proven(&stage);
    stage.nothing_runs();
}

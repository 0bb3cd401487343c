//! `lockstep plan` says what a run will take before it is started. The trainer must lie beside the binary under test.
#![allow(clippy::unwrap_used)]

mod stage;

use serde_json::Value;
use stage::{Stage, real_trainer, said};

fn planned(stage: &Stage, words: &str) -> Value {
    real_trainer();
    let output = stage.lockstep(&format!("plan run.toml --json {words}"));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn sum(of: &Value) -> f64 {
    of.as_object()
        .unwrap()
        .values()
        .map(|value| value.as_f64().unwrap())
        .sum()
}

#[test]
fn a_calibration_here_accounts_for_memory_and_time_part_by_part_and_leaves_nothing_behind() {
    let stage = Stage::new();
    let before = stage.listing();
    let plan = planned(&stage, "-n 1,2 --set model.layers=4");
    assert_eq!(plan["micro_batches"], 4, "a batch of 8 in micro-batches of 2");
    let worlds = plan["worlds"].as_array().unwrap();
    for (world, ranks) in worlds.iter().zip([1, 2]) {
        assert_eq!(world["ranks"], ranks);
        assert_eq!(sum(&world["memory"]), world["memory_bytes"].as_f64().unwrap());
        let step = world["step_ms"].as_f64().unwrap();
        // The parts, and the step itself.
        assert!((sum(&world["times_ms"]) - 2.0 * step).abs() < 1e-6 * step, "{world}");
        for part in ["forward", "backward", "norms", "apply"] {
            assert!(
                world["times_ms"][part].as_f64().unwrap() > 0.0,
                "{part} takes time: {world}"
            );
        }
        assert!(world["hours"].as_f64().unwrap() > 0.0);
        assert_eq!((&world["fits"], &world["nearest"]), (&Value::Bool(true), &Value::Null));
    }
    let of = |name: &str| {
        worlds
            .iter()
            .map(|world| world[name].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(of("received_bytes")[0], 0, "a rank alone receives nothing");
    assert!(of("received_bytes")[1] > 0 && of("gathered_bytes")[1] > 0);
    assert!(stage.listing() == before, "nothing is written");
    stage.nothing_runs();
}

#[test]
fn the_memory_that_is_predicted_is_the_memory_that_a_run_takes() {
    let stage = Stage::new();
    let sets = "--set model.layers=6 --set model.width=256 --set data.sequence_length=128 --set batch.micro_batch=8 \
                --set batch.schedule=32 --set validation.every=0";
    let plan = planned(&stage, &format!("-n 2 {sets}"));
    let predicted = plan["worlds"][0]["memory_bytes"].as_f64().unwrap() / f64::from(1 << 20);
    let output = stage.lockstep(&format!("run run.toml -n 2 {sets}"));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let summary: Value = serde_json::from_str(&stage.read("runs/first/summary.json")).unwrap();
    let taken = summary["peak_memory_mib"].as_f64().unwrap();
    let ratio = predicted / taken;
    assert!(
        (0.85..1.15).contains(&ratio),
        "predicted {predicted:.0} MiB, taken {taken:.0}"
    );
}

#[test]
fn a_device_by_its_data_sheet_is_measured_by_nobody_and_what_does_not_fit_is_told_with_what_does() {
    let stage = Stage::new();
    let large = "--set model.layers=48 --set model.heads=25 --set model.width=1600 --set data.sequence_length=1024 \
                 --set batch.micro_batch=64 --set batch.schedule=256 --set run.precision=bf16";
    let plan = planned(&stage, &format!("-n 1,4 --device rtx4090 {large}"));
    for world in plan["worlds"].as_array().unwrap() {
        assert_eq!(
            (&world["measured_on_ranks"], &world["fits"]),
            (&Value::from(0), &Value::Bool(false))
        );
    }
    let nearest = plan["worlds"][1]["nearest"].as_str().unwrap();
    assert!(nearest.starts_with("--set batch.micro_batch="), "{nearest}");
    // What is said to fit does.
    let again = planned(&stage, &format!("-n 4 --device rtx4090 {large} {nearest}"));
    assert_eq!(again["worlds"][0]["fits"], true, "{again}");
    let faster = planned(&stage, &format!("-n 4 --device h100 {large}"));
    let step = |plan: &Value, world: usize| plan["worlds"][world]["step_ms"].as_f64().unwrap();
    assert!(step(&faster, 0) < step(&plan, 1));
}

#[test]
fn what_cannot_be_planned_is_one_sentence() {
    let stage = Stage::new();
    for (words, part) in [
        ("-n 5", "run.lanes, which is 4"),
        ("-n 0", "run.lanes, which is 4"),
        ("--device abacus", "h100"),
        ("--step 7", "which has 6"),
        ("--set run.device=cuda", "--device"),
        ("--set model.layer=2", "model.layers"),
    ] {
        real_trainer();
        let output = stage.lockstep(&format!("plan run.toml {words}"));
        assert_eq!(output.status.code(), Some(2), "{words}: {}", said(&output));
        assert!(said(&output).contains(part), "{words}: {}", said(&output));
    }
}

//! TensorBoard's own reader opens the files of a run, and finds in them what the run measured.
#![allow(clippy::unwrap_used)]

mod stage;

use std::process::Command;

use serde_json::Value;
use stage::{Stage, real_trainer, said};

/// The folder that holds packages of Python; `cargo xtask test` puts it there.
const PACKAGES: &str = "LOCKSTEP_PYTHON_PACKAGES";

/// Prints every scalar as `{tag: [[step, value], …]}`.
const READER: &str = "
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0})
events.Reload()
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}))
";

#[test]
fn its_reader_finds_every_step_of_a_run() {
    let Some(packages) = std::env::var_os(PACKAGES) else {
        println!("left out: {PACKAGES} names no folder with packages of Python (`cargo xtask test` makes one)");
        return;
    };
    real_trainer();
    let stage = Stage::new();
    let output = stage.lockstep("run run.toml -n 2");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let read = Command::new("python3")
        .args(["-c", READER])
        .arg(stage.path("runs/first"))
        .env("PYTHONPATH", packages)
        .output()
        .unwrap();
    assert!(read.status.success(), "{}", said(&read));
    let text = String::from_utf8(read.stdout).unwrap();
    let scalars: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let metrics = stage.read("runs/first/metrics.jsonl");
    let lines: Vec<Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for tag in [
        "loss",
        "lr",
        "effective_lr",
        "grad_norm",
        "tokens_per_second",
        "validation_loss",
    ] {
        let expected: Vec<(u64, f32)> = lines
            .iter()
            .filter_map(|line| Some((line["step"].as_u64()?, line.get(tag)?.as_f64()? as f32)))
            .collect();
        let found: Vec<(u64, f32)> = scalars[tag]
            .as_array()
            .unwrap_or_else(|| panic!("{tag} is missing in {scalars}"))
            .iter()
            .map(|pair| (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap() as f32))
            .collect();
        assert!(!expected.is_empty());
        assert_eq!(found, expected, "{tag}");
    }
}

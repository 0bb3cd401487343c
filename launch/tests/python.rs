//! The program of `docs/steering.md`, as it stands there, steers a real run.
#![allow(clippy::unwrap_used)]

mod stage;

use std::fs::File;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use stage::{Stage, real_trainer, said, wait_until};

/// The folder that holds packages of Python; `cargo xtask test` puts them there.
const PACKAGES: &str = "LOCKSTEP_PYTHON_PACKAGES";
const NAME: &str = "tiny";

fn steps(stage: &Stage) -> Vec<Value> {
    let text = std::fs::read_to_string(stage.path(&format!("runs/{NAME}/metrics.jsonl"))).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["parameter_hash"].is_string()).collect()
}

#[test]
fn a_program_in_python_reads_the_status_halves_the_rate_and_watches_to_the_end() {
    let Some(packages) = std::env::var_os(PACKAGES) else {
        println!("left out: {PACKAGES} names no folder with packages of Python (`cargo xtask test` makes one)");
        return;
    };
    real_trainer();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(root.join("docs/steering.md")).unwrap();
    let (_, program) = page.split_once("```python\n").unwrap();
    let (program, _) = program.split_once("```").unwrap();

    let stage = Stage::new();
    std::os::unix::fs::symlink(root.join("proto"), stage.path("proto")).unwrap();
    let words =
        format!("run run.toml -n 1 --json --set run.name={NAME} --set run.steps=1000000 --set validation.every=0");
    // Slow enough that step 10,000 is far away, on any machine.
    let mut run = stage.start(stage.command(&words).env("LOCKSTEP_DRILL", "slow@1*20"));
    wait_until("the run trains", || steps(&stage).len() >= 3);
    let output = stage.path("python.out");
    let mut python = Command::new("python3")
        .args(["-u", "-c", program])
        .env("PYTHONPATH", packages)
        .current_dir(stage.path(""))
        .stdout(File::create(&output).unwrap())
        .stderr(File::create(stage.path("python.err")).unwrap())
        .spawn()
        .unwrap();
    let halved = || steps(&stage).last().is_some_and(|step| step["lr"] == 0.001);
    wait_until("the rate is halved and the program has seen steps since", || {
        let ended = python.try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?}: {}", stage.read("python.err"));
        halved() && stage.read("python.out").lines().count() > 5
    });
    let stopped = stage.lockstep(&format!("stop {NAME}"));
    assert_eq!(stopped.status.code(), Some(0), "{}", said(&stopped));
    let mut ended = None;
    wait_until("the program has seen the end", || {
        ended = python.try_wait().unwrap();
        ended.is_some()
    });
    let text = stage.read("python.out");
    assert!(ended.unwrap().success(), "{text}{}", stage.read("python.err"));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains("training 1000000 steps"), "{text}");
    let (step, sentence) = lines[1].split_once(' ').unwrap();
    assert!(sentence.contains("learning rate 0.001 (was 0.002)"), "{text}");
    let step: usize = step.parse().unwrap();
    let made = steps(&stage);
    assert_eq!(
        (&made[step - 2]["lr"], &made[step - 1]["lr"]),
        (&Value::from(0.002), &Value::from(0.001))
    );
    assert_eq!(run.wait(), 3, "{}{}", run.out(), run.err());
    stage.nothing_runs();
}

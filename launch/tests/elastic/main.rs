//! Trainers come and go while a run lives, by real signals on real processes: every step has the hash that it has in a run
//! that nothing disturbs.
#![allow(clippy::unwrap_used)]

mod adaptive;
mod coordinator;
mod faults;
mod resume;
#[path = "../stage/mod.rs"]
mod stage;
mod status;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use stage::{Running, Stage, real_trainer, said, send, wait_at_most, wait_until};

/// Eight lanes, so that eight ranks find work, and snapshots often enough to resume from.
const SETS: &str = "--set run.lanes=8 --set run.precision=bf16 --set optimizer.method=muonmax --set batch.schedule=64 \
                    --set model.layers=2 --set model.width=64 \
                    --set validation.every=0 --set fault.snapshot_every=5";

fn lines(stage: &Stage, name: &str) -> Vec<Value> {
    let metrics = stage.read(&format!("runs/{name}/metrics.jsonl"));
    metrics
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["parameter_hash"].is_string())
        .collect()
}

/// The parameter hash of every step.
fn hashes(stage: &Stage, name: &str) -> Vec<String> {
    let hash = |line: &Value| line["parameter_hash"].as_str().unwrap_or_default().to_owned();
    lines(stage, name).iter().map(hash).collect()
}

/// Waits until `step` is committed.
fn reach(stage: &Stage, run: &mut Running, name: &str, step: usize) {
    wait_until(&format!("step {step} is committed"), || {
        assert!(run.is_running(), "{}{}", run.out(), run.err());
        let metrics = stage.path(&format!("runs/{name}/metrics.jsonl"));
        std::fs::read_to_string(metrics).is_ok_and(|text| text.lines().count() >= step)
    });
}

fn calm(stage: &Stage, steps: u32) -> Vec<String> {
    let words = format!("run run.toml {SETS} --set run.steps={steps} --set run.name=calm -n 1");
    let output = stage.lockstep(&words);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    hashes(stage, "calm")
}

/// The process of a rank, as the launcher told it last.
fn pid_of(run: &Running, rank: u64) -> u32 {
    let text = run.out();
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut of_rank = events.filter(|event| event["event"] == "trainer" && event["rank"] == rank);
    of_rank.next_back().unwrap()["pid"].as_u64().unwrap() as u32
}

/// Another trainer, started by hand. It is killed when this is dropped.
struct ByHand(Child);

impl ByHand {
    fn start(stage: &Stage, coordinator: &str, member: &str) -> ByHand {
        let mut command = Command::new(real_trainer());
        command
            .args(["train", "--coordinator", coordinator, "--member", member])
            .envs([("OMP_NUM_THREADS", "1"), ("MKL_NUM_THREADS", "1")])
            .current_dir(stage.path(""))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        ByHand(command.spawn().unwrap())
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_killed_trainer_is_started_again_and_no_hash_is_another_one() {
    let stage = Stage::new();
    let expected = calm(&stage, 120);
    let words = format!("run run.toml {SETS} --set run.steps=120 --set run.name=killed -n 3 --json");
    let mut run = stage.start(&mut stage.command(&words));
    for (step, rank) in [(20, 1), (55, 0)] {
        reach(&stage, &mut run, "killed", step);
        send(pid_of(&run, rank), Signal::KILL);
    }
    assert_eq!(run.wait(), 0, "{}{}", run.out(), run.err());
    assert_eq!(run.out().matches("it is started again").count(), 2, "{}", run.out());
    assert!(hashes(&stage, "killed") == expected, "the killed run made other bits");
    let worlds: Vec<u64> = lines(&stage, "killed")
        .iter()
        .map(|line| line["ranks"].as_u64().unwrap())
        .collect();
    assert!(worlds.contains(&2) && worlds[119] == 3, "{worlds:?}");
    let summary: Value = serde_json::from_str(&stage.read("runs/killed/summary.json")).unwrap();
    assert!(summary["worlds"].as_array().unwrap().len() >= 3, "{summary}");
    stage.nothing_runs();
}

#[test]
fn without_restarts_the_run_goes_on_with_the_ranks_that_are_left() {
    let stage = Stage::new();
    let expected = calm(&stage, 60);
    let words =
        format!("run run.toml {SETS} --set run.steps=60 --set run.name=left -n 2 --set fault.max_restarts=0 --json");
    let mut run = stage.start(&mut stage.command(&words));
    reach(&stage, &mut run, "left", 12);
    send(pid_of(&run, 0), Signal::KILL);
    assert_eq!(run.wait(), 0, "{}{}", run.out(), run.err());
    assert!(run.out().contains("the run goes on with 1 rank"), "{}", run.out());
    assert!(hashes(&stage, "left") == expected, "the survivor made other bits");
    stage.nothing_runs();
}

#[test]
fn two_ranks_become_four_three_one_and_four_again_in_one_run() {
    let stage = Stage::new();
    let expected = calm(&stage, 160);
    let words =
        format!("run run.toml {SETS} --set run.steps=160 --set run.name=grown -n 2 --set fault.max_restarts=0 --json");
    let mut run = stage.start(&mut stage.command(&words));
    reach(&stage, &mut run, "grown", 15);
    let address: Value = serde_json::from_str(&stage.read("runs/grown/coordinator.json")).unwrap();
    let url = address["url"].as_str().unwrap().to_owned();
    let ranks_are = |run: &mut Running, ranks: u64| {
        wait_at_most(Duration::from_secs(60), &format!("{ranks} ranks train"), &mut || {
            assert!(run.is_running(), "{}{}", run.out(), run.err());
            lines(&stage, "grown").last().is_some_and(|line| line["ranks"] == ranks)
        });
    };
    let two = ByHand::start(&stage, &url, "trainer-2");
    let three = ByHand::start(&stage, &url, "trainer-3");
    ranks_are(&mut run, 4);
    send(pid_of(&run, 0), Signal::KILL);
    ranks_are(&mut run, 3);
    drop(two);
    drop(three);
    ranks_are(&mut run, 1);
    let _more = ["trainer-5", "trainer-6", "trainer-7"].map(|member| ByHand::start(&stage, &url, member));
    ranks_are(&mut run, 4);
    wait_until("the run has ended", || lines(&stage, "grown").len() == 160);
    assert_eq!(run.wait(), 0, "{}{}", run.out(), run.err());
    assert!(hashes(&stage, "grown") == expected, "a world made other bits");
}

#[test]
fn a_trainer_that_is_asked_to_go_goes_after_a_step_and_no_step_is_made_again() {
    let stage = Stage::new();
    let expected = calm(&stage, 100);
    let words = format!("run run.toml {SETS} --set run.steps=100 --set run.name=drained -n 3 --json");
    let mut run = stage.start(&mut stage.command(&words));
    reach(&stage, &mut run, "drained", 20);
    send(pid_of(&run, 0), Signal::TERM);
    assert_eq!(run.wait(), 0, "{}{}", run.out(), run.err());
    assert!(run.out().contains("ended with exit code 3"), "{}", run.out());
    assert!(!run.out().contains("it is started again"), "{}", run.out());
    // Nothing was aborted: the generation ended in order, with what its ranks held.
    let log = stage.read("runs/drained/logs/rank-1.log");
    assert!(!log.contains("this generation is over"), "{log}");
    assert!(hashes(&stage, "drained") == expected, "the run made other bits");
    let worlds: Vec<u64> = lines(&stage, "drained")
        .iter()
        .map(|line| line["ranks"].as_u64().unwrap())
        .collect();
    assert_eq!((worlds[0], worlds[99]), (3, 2), "{worlds:?}");
    stage.nothing_runs();
}

#[test]
fn the_last_trainer_that_is_asked_to_go_stops_the_run_with_its_files_written() {
    let stage = Stage::new();
    let words = format!("run run.toml {SETS} --set run.steps=100000 --set run.name=last -n 1 --json");
    let mut run = stage.start(&mut stage.command(&words));
    reach(&stage, &mut run, "last", 5);
    send(pid_of(&run, 0), Signal::TERM);
    assert_eq!(run.wait(), 3, "{}{}", run.out(), run.err());
    assert!(stage.path("runs/last/final").is_dir());
    stage.nothing_runs();
}

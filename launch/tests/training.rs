//! Whole runs with real trainers: `lockstep-trainer` must lie beside the binary under test.
#![allow(clippy::unwrap_used)]

mod stage;

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use stage::{Running, Stage, is_alive, real_trainer, said, wait_at_most, wait_until};

/// Words of a run that lasts until it is stopped.
const ENDLESS: &str = "run run.toml -n 2 --json --set run.steps=1000000 --set validation.every=0";

fn lines(text: &str) -> Vec<Value> {
    // The last line may still be on its way.
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

fn steps(run: &Running) -> u64 {
    lines(&run.out())
        .iter()
        .filter(|event| event["event"] == "step")
        .count() as u64
}

/// Starts an endless run and waits for its third step.
fn endless(stage: &Stage) -> Running {
    real_trainer();
    let mut run = stage.start(&mut stage.command(ENDLESS));
    wait_until("the run has made three steps", || steps(&run) >= 3 || !run.is_running());
    assert!(run.is_running(), "{}{}", run.out(), run.err());
    run
}

fn trainer_pids(run: &Running) -> Vec<u32> {
    let events = lines(&run.out());
    events
        .iter()
        .filter(|event| event["event"] == "trainer")
        .map(|event| event["pid"].as_u64().unwrap() as u32)
        .collect()
}

fn no_trace(stage: &Stage) {
    stage.nothing_runs();
    assert!(!stage.path("runs/first/coordinator.json").exists());
}

#[test]
fn a_run_trains_to_its_end_and_leaves_its_files() {
    real_trainer();
    let stage = Stage::new();
    let output = stage.lockstep("run run.toml -n 2 --json");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let events = lines(&said(&output));
    let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).collect::<Vec<_>>();
    assert_eq!(
        of("step")
            .iter()
            .map(|event| event["step"].as_u64().unwrap())
            .collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6]
    );
    assert_eq!(
        of("validation")
            .iter()
            .map(|event| event["step"].as_u64().unwrap())
            .collect::<Vec<_>>(),
        [3, 6]
    );
    assert_eq!(of("ended")[0]["outcome"], "completed");
    assert_eq!(of("exit")[0]["code"], 0);

    let metrics = lines(&stage.read("runs/first/metrics.jsonl"));
    let committed: Vec<&Value> = metrics.iter().filter(|line| line.get("loss").is_some()).collect();
    assert_eq!(committed.len(), 6);
    for (line, step) in committed.iter().zip(1..) {
        assert_eq!(line["step"], step);
        assert_eq!(line["samples"], step * 8);
        assert_eq!(line["ranks"], 2);
    }
    let summary: Value = serde_json::from_str(&stage.read("runs/first/summary.json")).unwrap();
    assert_eq!(
        (&summary["steps"], &summary["exit"]),
        (&Value::from(6), &Value::from("completed"))
    );
    assert_eq!(summary["parameter_hash"], committed[5]["parameter_hash"]);
    assert!(std::fs::read_dir(stage.path("runs/first/final")).unwrap().count() > 0);
    no_trace(&stage);

    let again = stage.lockstep("run run.toml -n 2");
    assert_eq!(again.status.code(), Some(2), "{}", said(&again));
    assert!(said(&again).contains("earlier run"), "{}", said(&again));
}

#[test]
fn final_weights_write_text_and_refuse_a_prompt_longer_than_their_context() {
    real_trainer();
    let stage = Stage::new();
    let output = stage.lockstep("run run.toml -n 1");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(
        said(&output).matches("all 6 steps were made").count(),
        1,
        "the end is told once: {}",
        said(&output)
    );

    let generate = |prompt: &str| {
        let mut command = stage.command("generate runs/first/final --tokens 5 --prompt");
        command.arg(prompt).output().unwrap()
    };
    let written = generate("7 bottles");
    assert_eq!(written.status.code(), Some(0), "{}", said(&written));
    assert!(said(&written).starts_with("7 bottles"), "{}", said(&written));

    let before = stage.listing();
    let refused = generate(&"x".repeat(33));
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    for part in ["33 tokens", "context is 32", "shorten --prompt"] {
        assert!(
            said(&refused).contains(part),
            "{part:?} is missing in: {}",
            said(&refused)
        );
    }
    assert!(stage.listing() == before);
}

#[test]
fn one_rank_and_two_ranks_make_the_same_bits() {
    real_trainer();
    let stage = Stage::new();
    let hashes = |ranks: u32| -> Vec<String> {
        let output = stage.lockstep(&format!("run run.toml -n {ranks} --json --set run.name=world-{ranks}"));
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let events = lines(&said(&output));
        let steps = events.iter().filter(|event| event["event"] == "step");
        steps
            .map(|event| event["parameter_hash"].as_str().unwrap().to_owned())
            .collect()
    };
    let one = hashes(1);
    assert_eq!(one.len(), 6);
    assert_eq!(one, hashes(2));
}

#[test]
fn a_validation_takes_no_more_memory_however_many_micro_batches_it_has() {
    let stage = Stage::new();
    real_trainer();
    // The logits of a micro-batch are 12 MiB, and 36 kB of text make dozens of micro-batches of it.
    let memory = |name: &str, every: u32| {
        let words = format!(
            "run run.toml -n 1 --set run.name={name} --set run.steps=2 --set validation.every={every} --set model.vocab=50304 \
             --set data.sequence_length=32 --set batch.micro_batch=2 --set run.lanes=1 --set batch.schedule=2"
        );
        let output = stage.lockstep(&words);
        assert!(output.status.success(), "{}", said(&output));
        let summary: Value = serde_json::from_str(&stage.read(&format!("runs/{name}/summary.json"))).unwrap();
        summary["peak_memory_mib"].as_u64().unwrap()
    };
    let text: String = (0..6000)
        .map(|line| format!("{line} bottles of beer on the wall.\n"))
        .collect();
    let short = memory("short", 0);
    std::fs::write(stage.path("text.txt"), text).unwrap();
    std::fs::remove_dir_all(stage.path("data")).unwrap();
    let output = stage.lockstep("data prepare --tokenizer byte --out data text.txt");
    assert!(output.status.success(), "{}", said(&output));
    let long = memory("long", 0);
    assert!(
        long < short + 100,
        "{short} MiB with a short validation, {long} MiB with a long one"
    );
}

/// The float32 values of a safetensors file.
fn weights(file: &std::path::Path) -> Vec<f32> {
    let bytes = std::fs::read(file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let mut values = Vec::new();
    for (name, tensor) in tensors.as_object().unwrap() {
        if name != "__metadata__" {
            assert_eq!(tensor["dtype"], "F32", "{name}");
            let at = |which: usize| header + tensor["data_offsets"][which].as_u64().unwrap() as usize;
            let words = bytes[at(0)..at(1)].chunks_exact(4);
            values.extend(words.map(|word| f32::from_le_bytes(word.try_into().unwrap())));
        }
    }
    values
}

#[test]
fn a_trainer_takes_subnormal_numbers_for_zero() {
    real_trainer();
    let stage = Stage::new();
    // Biases begin at zero, and AdamW's first steps are as long as the rate.
    let train = |rate: &str| {
        let name =
            format!("run run.toml -n 2 --set model.bias=true --set run.name=at-{rate} --set optimizer.method=adamw");
        let output = stage.lockstep(&format!("{name} --set learning_rate.schedule={rate}"));
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        weights(&stage.path(&format!("runs/at-{rate}/final/model.safetensors")))
    };
    let is_tiny = |limit: f32| move |value: &&f32| **value != 0.0 && value.abs() < limit;
    let normal = train("1e-35");
    assert!(
        normal.iter().any(|value| is_tiny(1e-30)(&value)),
        "normal numbers are kept"
    );
    let subnormal = train("1e-40");
    let left = subnormal.iter().filter(is_tiny(f32::MIN_POSITIVE)).count();
    assert_eq!(left, 0, "of {} parameters", subnormal.len());
}

#[test]
fn people_see_lines_and_where_everything_is() {
    real_trainer();
    let stage = Stage::new();
    let output = stage.lockstep("run run.toml -n 2");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    for part in [
        "step 6/6",
        "validation loss",
        "runs/first/final",
        "runs/first/summary.json",
        "runs/first/metrics.jsonl",
    ] {
        assert!(
            said(&output).contains(part),
            "{part:?} is missing in: {}",
            said(&output)
        );
    }
}

#[test]
fn interrupted_once_it_stops_at_a_step_with_final_files_and_exit_code_3() {
    for signal in [Signal::INT, Signal::TERM] {
        let stage = Stage::new();
        let mut run = endless(&stage);
        run.signal(signal);
        assert_eq!(run.wait(), 3, "{}{}", run.out(), run.err());
        assert!(std::fs::read_dir(stage.path("runs/first/final")).unwrap().count() > 0);
        let summary: Value = serde_json::from_str(&stage.read("runs/first/summary.json")).unwrap();
        let last = lines(&run.out())
            .iter()
            .filter(|event| event["event"] == "step")
            .count();
        assert_eq!(summary["steps"], last);
        no_trace(&stage);
    }
}

#[test]
fn interrupted_twice_it_ends_at_once() {
    let stage = Stage::new();
    let mut run = endless(&stage);
    run.signal(Signal::INT);
    run.signal(Signal::TERM);
    let code = run.wait();
    // The first may already have stopped the run when the second came.
    assert!(code == 1 || code == 3, "{code}: {}{}", run.out(), run.err());
    no_trace(&stage);
}

#[test]
fn no_trainer_outlives_a_killed_launcher() {
    let stage = Stage::new();
    let run = endless(&stage);
    let pids = trainer_pids(&run);
    assert!(pids.len() == 2 && pids.iter().all(|pid| is_alive(*pid)));
    run.signal(Signal::KILL);
    wait_at_most(Duration::from_secs(5), "the trainers are gone", &mut || {
        !pids.iter().any(|pid| is_alive(*pid))
    });
    // Its address is still there, but nobody takes it for a live run.
    let output = stage.lockstep("status");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}

#[test]
fn a_live_run_is_watched_paused_resumed_and_stopped() {
    let stage = Stage::new();
    let mut run = endless(&stage);
    let mut watch = stage.start(&mut stage.command("watch"));
    wait_until("watch shows steps", || watch.out().contains("step "));

    let members = stage.lockstep("members");
    for pid in trainer_pids(&run) {
        assert!(said(&members).contains(&pid.to_string()), "{}", said(&members));
    }
    assert!(
        said(&members).contains("0..2") && said(&members).contains("2..4"),
        "{}",
        said(&members)
    );

    let paused = stage.lockstep("pause first");
    assert!(paused.status.success(), "{}", said(&paused));
    wait_until("the run is paused", || {
        said(&stage.lockstep("status")).contains("paused")
    });
    let mut before = steps(&run);
    wait_until("no step is made any more", || {
        let now = steps(&run);
        std::thread::sleep(Duration::from_millis(500));
        std::mem::replace(&mut before, now) == steps(&run)
    });

    let resumed = stage.lockstep("resume");
    assert!(resumed.status.success(), "{}", said(&resumed));
    wait_until("steps are made again", || steps(&run) > before);

    let stopped = stage.lockstep("stop");
    assert!(stopped.status.success(), "{}", said(&stopped));
    assert_eq!(run.wait(), 3, "{}{}", run.out(), run.err());
    assert_eq!(watch.wait(), 0, "{}{}", watch.out(), watch.err());
    assert!(watch.out().contains("ended after step"), "{}", watch.out());
    no_trace(&stage);
}

#[test]
fn inspect_shows_every_tensor_with_its_owners_and_refuses_more_ranks_than_lanes() {
    real_trainer();
    let stage = Stage::new();
    let output = stage.lockstep("inspect run.toml -n 3");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let text = said(&output);
    for part in [
        "wte.weight",
        "blocks.0.qkv.weight",
        "optimizer: muon, adamw on other tensors",
        "4 polar factors a step",
        "because the model says hidden",
        "polar cost",
        "gradient buffers",
        "working copies",
    ] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    let before = stage.listing();
    for (words, sentence) in [
        ("inspect run.toml -n 5", "run.lanes, which is 4"),
        ("inspect absent.toml", "absent.toml"),
        ("inspect run.toml --set model.widht=3", "model.width"),
    ] {
        let refused = stage.lockstep(words);
        assert_eq!(refused.status.code(), Some(2), "{words}: {}", said(&refused));
        assert!(said(&refused).contains(sentence), "{words}: {}", said(&refused));
    }
    assert!(stage.listing() == before);

    assert_eq!(stage.lockstep("run run.toml -n 1").status.code(), Some(0));
    let weights = stage.lockstep("inspect runs/first/final");
    assert_eq!(weights.status.code(), Some(0), "{}", said(&weights));
    assert!(said(&weights).contains("after step 6"), "{}", said(&weights));

    // Weights that were cut short are refused by name.
    let file = stage.path("runs/first/final/model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    for words in ["inspect runs/first/final", "generate runs/first/final --prompt a"] {
        let refused = stage.lockstep(words);
        assert_eq!(refused.status.code(), Some(2), "{words}: {}", said(&refused));
        assert!(
            said(&refused).contains("model.safetensors"),
            "{words}: {}",
            said(&refused)
        );
    }
}

#[test]
fn a_run_whose_loss_is_not_finite_ends_with_one_sentence() {
    real_trainer();
    let stage = Stage::new();
    let output = stage.lockstep("run run.toml -n 2 --set learning_rate.schedule=1e30");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("no parameter has changed"), "{}", said(&output));
    stage.nothing_runs();
}

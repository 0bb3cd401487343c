//! A batch that follows the noise of the gradient: the same sizes at the same steps, and the same bits, on any world and through
//! failures, since what is decided follows from the committed steps alone.

use rustix::process::Signal;
use serde_json::Value;

use crate::stage::{Stage, said, send};
use crate::{SETS, hashes, lines, pid_of, reach};

const STEPS: usize = 70;

fn words(name: &str, ranks: u32, more: &str) -> String {
    format!(
        "run run.toml {SETS} --set run.steps={STEPS} --set run.name={name} --set checkpoint.every=10 --set batch.schedule=8 \
         --set batch.micro_batch=1 --set batch.adaptive={{every=5,most=64,patience=1,smooth=10,target=100}} -n {ranks} {more}"
    )
}

fn numbers(stage: &Stage, name: &str, key: &str) -> Vec<Value> {
    lines(stage, name).iter().map(|line| line[key].clone()).collect()
}

/// The same steps, batches, noise and bits; and the ledger proves and repeats it.
fn is_the_same(stage: &Stage, name: &str) {
    for key in [
        "step",
        "batch",
        "samples",
        "gradient_variance",
        "gradient_square",
        "noise_scale",
    ] {
        assert_eq!(numbers(stage, name, key), numbers(stage, "one", key), "{name}: {key}");
    }
    assert!(hashes(stage, name) == hashes(stage, "one"), "{name} made other bits");
    for command in ["audit", "replay"] {
        let output = stage.lockstep(&format!("ledger {command} runs/{name}"));
        assert_eq!(output.status.code(), Some(0), "{name}: {}", said(&output));
    }
}

#[test]
fn a_batch_that_grows_with_the_noise_is_the_same_on_one_two_and_four_ranks_and_over_kills_and_resumes() {
    let stage = Stage::new();
    let output = stage.lockstep(&words("one", 1, ""));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let batches: Vec<u64> = (numbers(&stage, "one", "batch").iter())
        .map(|batch| batch.as_u64().unwrap())
        .collect();
    assert_eq!(&batches[..10], &[8; 10], "the first decision holds one interval later");
    assert_eq!((batches[10], batches[STEPS - 1]), (16, 64), "{batches:?}");
    assert!(
        numbers(&stage, "one", "noise_scale")
            .iter()
            .all(|scale| scale.as_f64().is_some_and(|scale| scale > 0.0))
    );
    let told = said(&stage.lockstep("ledger show runs/one"));
    assert!(
        told.contains("the gradient noise scale after step 5 is")
            && told.contains("grows from 8 to 16 samples from step 11 on"),
        "{told}"
    );

    let mut run = stage.start(&mut stage.command(&words("two", 2, "--json")));
    for (step, rank) in [(12, 1), (40, 0)] {
        reach(&stage, &mut run, "two", step);
        send(pid_of(&run, rank), Signal::KILL);
    }
    assert_eq!(run.wait(), 0, "{}{}", run.out(), run.err());
    is_the_same(&stage, "two");

    let name = "four";
    for (ranks, more, step, signal) in [(4, "", 13, Signal::INT), (2, "--resume", 33, Signal::KILL)] {
        // Slow enough that the signal comes long before the end, on any machine.
        let mut command = stage.command(&words(name, ranks, more));
        let mut run = stage.start(command.env("LOCKSTEP_DRILL", "slow@1*30"));
        reach(&stage, &mut run, name, step);
        run.signal(signal);
        run.wait();
        assert!(lines(&stage, name).len() < STEPS, "{}{}", run.out(), run.err());
    }
    let output = stage.lockstep(&words(name, 3, "--resume"));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    is_the_same(&stage, name);
    stage.nothing_runs();
}

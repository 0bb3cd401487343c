//! Optimisers through the binary: what is refused before anything starts, what a run's files say, and that a model of the
//! loss keeps a run with too large a learning rate from diverging.
#![allow(clippy::unwrap_used)]

mod stage;

use std::fs;

use serde_json::Value;
use stage::{Stage, real_trainer, said};

/// Writes a config with this `[optimizer]` table under `name`.
fn with_optimizer(stage: &Stage, name: &str, optimizer: &str) {
    let text = format!("{}\n[optimizer]\n{optimizer}\n", stage::CONFIG);
    fs::write(stage.path(name), text).unwrap();
}

/// `lockstep run` with this table is refused with exit code 2 and one sentence that holds `parts`, before anything starts.
fn refused(stage: &Stage, optimizer: &str, parts: &[&str]) {
    with_optimizer(stage, "refused.toml", optimizer);
    let output = stage
        .command("run refused.toml -n 2")
        .env("LOCKSTEP_TRAINER", "/bin/sleep")
        .output()
        .unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(2), "{optimizer}: {said}");
    for part in parts {
        assert!(said.contains(part), "{optimizer}: {part:?} is missing in: {said}");
    }
    assert_eq!(said.trim().lines().count(), 1, "one sentence: {said}");
    assert!(!stage.path("runs").exists(), "{optimizer} left a run folder");
    stage.nothing_runs();
}

#[test]
fn combinations_that_break_the_model_of_the_loss_are_refused_with_the_reason() {
    let stage = Stage::new();
    for (optimizer, parts) in [
        (
            "method = \"muonmax\"\nclip_norm = 1.0\nmomo = {}",
            ["optimizer.clip_norm", "clipped gradient"],
        ),
        (
            "method = \"muonmax\"\nnesterov = true\nmomo = {}",
            ["optimizer.nesterov", "model of the loss"],
        ),
        (
            "method = \"muonadam\"\ncautious = true\nmomo = {}",
            ["optimizer.cautious", "evaluated"],
        ),
        ("method = \"normuon\"\nmomo = {}", ["optimizer.momo", "rows"]),
        (
            "method = \"scion\"\nmomentum = 0.9\nbetas = [0.95, 0.95]\nmomo = {}",
            ["optimizer.momentum", "optimizer.betas[0]"],
        ),
        ("method = \"muon\"\nmomo = {}", ["optimizer.momo", "muonadam"]),
    ] {
        refused(&stage, optimizer, &parts);
    }
}

#[test]
fn rules_that_match_nothing_hidden_vectors_and_splits_that_do_not_divide_are_refused() {
    let stage = Stage::new();
    refused(
        &stage,
        "hidden = [\"layers.*\"]",
        &["layers.*", "decides about no tensor", "inspect"],
    );
    refused(
        &stage,
        "groups = [{ match = \"head*\", lr_scale = 2.0 }]",
        &["head*", "decides about no tensor"],
    );
    refused(
        &stage,
        "hidden = [\"blocks.*\"]",
        &["blocks.0.norm1.weight", "[32]", "singular values"],
    );
    refused(
        &stage,
        "hidden = [{ match = \"*.qkv.weight\", split = 7 }]",
        &["blocks.0.qkv.weight", "7 parts", "96 rows"],
    );
}

#[test]
fn negative_values_and_values_that_are_no_numbers_are_refused() {
    let stage = Stage::new();
    for (optimizer, key) in [
        ("weight_decay = -0.1", "optimizer.weight_decay"),
        ("weight_decay = nan", "optimizer.weight_decay"),
        ("hidden_scale = -1.0", "optimizer.hidden_scale"),
        ("hidden_scale = inf", "optimizer.hidden_scale"),
        (
            "method = \"muonmax\"\nmomo = { lower_bound = nan }",
            "optimizer.momo.lower_bound",
        ),
        (
            "method = \"muonmax\"\nmomo = { lower_bound = -inf }",
            "optimizer.momo.lower_bound",
        ),
        (
            "groups = [{ match = \"wte.*\", lr_scale = nan }]",
            "optimizer.groups[0].lr_scale",
        ),
        ("epsilon = nan", "optimizer.epsilon"),
        ("momentum = nan", "optimizer.momentum"),
        ("betas = [nan, 0.9]", "optimizer.betas"),
        ("clip_norm = nan", "optimizer.clip_norm"),
    ] {
        refused(&stage, optimizer, &[key]);
    }
}

fn lines(stage: &Stage, run: &str) -> Vec<Value> {
    let text = stage.read(&format!("runs/{run}/metrics.jsonl"));
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.filter(|line: &Value| line.get("loss").is_some()).collect()
}

#[test]
fn a_lower_bound_above_the_first_loss_stops_the_run_before_anything_has_changed() {
    real_trainer();
    let stage = Stage::new();
    with_optimizer(
        &stage,
        "high.toml",
        "method = \"muonmax\"\nmomo = { lower_bound = 20.0 }",
    );
    let output = stage.lockstep("run high.toml -n 2");
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "optimizer.momo.lower_bound is 20",
        "the loss starts at 5.",
        "Set a bound",
    ] {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
    assert!(lines(&stage, "first").is_empty(), "no step was committed");
    stage.nothing_runs();
}

#[test]
fn with_too_large_a_learning_rate_the_plain_member_diverges_and_its_momo_form_does_not() {
    real_trainer();
    let stage = Stage::new();
    for method in ["muonmax", "muonadam", "scion"] {
        for momo in [false, true] {
            let table = if momo { "\nmomo = {}" } else { "" };
            with_optimizer(&stage, "large.toml", &format!("method = \"{method}\"{table}"));
            let name = format!("{method}-{momo}");
            let sets = "--set run.steps=30 --set learning_rate.schedule=10.0 --set validation.every=0";
            let output = stage.lockstep(&format!("run large.toml -n 2 --set run.name={name} {sets}"));
            let steps = lines(&stage, &name);
            let first = steps[0]["loss"].as_f64().unwrap();
            let last = steps.last().unwrap()["loss"].as_f64().unwrap();
            if momo {
                assert_eq!(output.status.code(), Some(0), "{}", said(&output));
                assert!(last < first - 0.3, "{name}: from {first} to {last}");
                assert!(
                    steps.iter().all(|step| step["effective_lr"].as_f64().unwrap() < 10.0),
                    "{name}: every step was truncated"
                );
            } else {
                let refused = said(&output).contains("not finite");
                assert!(refused || last > 10.0 * first, "{name}: from {first} to {last}");
            }
        }
    }
}

#[test]
fn every_step_leaves_its_proof_of_work_and_what_the_model_of_the_loss_said() {
    real_trainer();
    let stage = Stage::new();
    let rules = "hidden = [{ match = \"*.qkv.weight\", split = \"thirds\" }, \"*.up.weight\"]";
    with_optimizer(
        &stage,
        "momo.toml",
        &format!("method = \"muonmax\"\nmomo = {{ lower_bound = 1.0 }}\n{rules}"),
    );
    let output = stage.lockstep("run momo.toml -n 2");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let steps = lines(&stage, "first");
    let mut probed: Vec<&str> = Vec::new();
    for step in &steps {
        assert_eq!(step["polar_factors"], 4, "{step}");
        let number = |key: &str| step[key].as_f64().unwrap();
        assert_eq!(number("lower_bound"), 1.0);
        assert!(number("dual_norm") > 0.0 && number("orthogonality_error") < 1.0);
        let fall = (number("model_value") - 1.0) / number("dual_norm").powi(2);
        let expected = number("lr").min(fall.max(0.0));
        assert!((number("effective_lr") / expected - 1.0).abs() < 1e-9, "{step}");
        probed.push(step["orthogonality_tensor"].as_str().unwrap());
    }
    let first = steps[0]["model_value"].as_f64().unwrap() / steps[0]["loss"].as_f64().unwrap();
    assert!(
        (first - 1.0).abs() < 1e-6,
        "the first model is the loss itself: {first}"
    );
    probed.sort_unstable();
    probed.dedup();
    let name = |part: u32| format!("blocks.0.qkv.weight[{part}]");
    assert_eq!(
        probed,
        [
            "blocks.0.qkv.weight[0]".to_owned(),
            name(1),
            name(2),
            "blocks.0.up.weight".to_owned()
        ]
    );
}

#[test]
fn inspect_says_which_tensor_goes_where_and_why() {
    real_trainer();
    let stage = Stage::new();
    let rules = "method = \"muonmax\"\nweight_decay = 0.1\n\
        hidden = [{ match = \"*.qkv.weight\", split = \"heads\" }, \"*.up.weight\", \"!*.down.weight\"]\n\
        groups = [{ match = \"wte.*\", lr_scale = 0.5, weight_decay = 0.0 }]";
    with_optimizer(&stage, "rules.toml", rules);
    let output = stage.lockstep("inspect rules.toml -n 2");
    let said = said(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let line = |name: &str| said.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let reason = |name: &str| {
        let after = said.lines().skip_while(|line| !line.starts_with(name)).nth(1);
        after.unwrap().trim().to_owned()
    };
    assert!(line("blocks.0.qkv.weight").contains("6 × [16, 32]"), "{said}");
    assert_eq!(
        reason("blocks.0.qkv.weight"),
        "because optimizer.hidden \"*.qkv.weight\""
    );
    assert!(line("blocks.0.up.weight").contains("hidden matrix"), "{said}");
    assert!(line("blocks.0.down.weight").contains("other"), "{said}");
    assert_eq!(
        reason("blocks.0.down.weight"),
        "because optimizer.hidden \"!*.down.weight\""
    );
    assert_eq!(
        reason("blocks.0.out.weight"),
        "because no rule of optimizer.hidden matches"
    );
    assert!(line("wte.weight").contains("0.5"), "{said}");
    assert!(reason("wte.weight").ends_with("optimizer.groups \"wte.*\""), "{said}");
    assert!(said.contains("polar cost") && said.contains("master + state"), "{said}");
}

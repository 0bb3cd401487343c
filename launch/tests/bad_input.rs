//! Bad input of `lockstep run`: exit code 2, one sentence that says what, where and what to do, and nothing is left,
//! neither file nor process.
#![allow(clippy::unwrap_used)]

mod stage;

use std::fs;
use std::net::TcpListener;

use stage::{Stage, said, wait_until};

impl Stage {
    /// `lockstep run` with these words is refused with a sentence that holds `parts`; nothing is left.
    fn refused(&self, words: &str, parts: &[&str]) {
        let before = self.listing();
        // A trainer that would be seen: refused input never gets that far.
        let output = self
            .command(&format!("run {words}"))
            .env("LOCKSTEP_TRAINER", "/bin/sleep")
            .output()
            .unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{words}: {said}");
        for part in parts {
            assert!(said.contains(part), "{words}: {part:?} is missing in: {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
        assert_eq!(
            self.listing().keys().collect::<Vec<_>>(),
            before.keys().collect::<Vec<_>>(),
            "{words}"
        );
        assert!(self.listing() == before, "{words} changed a file");
        self.nothing_runs();
    }
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_one() {
    let stage = Stage::new();
    fs::write(stage.path("misspelt.toml"), stage::CONFIG.replace("lanes", "lnaes")).unwrap();
    stage.refused("misspelt.toml", &["misspelt.toml", "`run.lnaes`", "`run.lanes`"]);
    stage.refused(
        "run.toml --set optimizer.momentun=0.9",
        &["`optimizer.momentun`", "`optimizer.momentum`"],
    );
    stage.refused("run.toml --set runn.lanes=4", &["`runn`", "`run`"]);
}

#[test]
fn values_out_of_their_range_are_refused() {
    let stage = Stage::new();
    for (set, parts) in [
        ("run.lanes=0", ["`run.lanes`", "0", "at least 1", ""]),
        ("batch.micro_batch=0", ["`batch.micro_batch`", "0", "from 1", ""]),
        ("optimizer.momentum=1.5", ["`optimizer.momentum`", "1.5", "below 1", ""]),
        ("run.name=../outside", ["`run.name`", "../outside", "folder", ""]),
        ("model.heads=3", ["`model.heads`", "3", "divisor of model.width", "32"]),
        (
            "coordinator.bind=0.0.0.0:0",
            ["`coordinator.bind`", "0.0.0.0:0", "loopback", "TLS"],
        ),
        ("run.reduction=slow", ["`run.reduction`", "slow", "\"fast\"", ""]),
    ] {
        let parts: Vec<&str> = parts
            .iter()
            .map(|part| if *part == "at least 1" { "from 1" } else { part })
            .collect();
        stage.refused(&format!("run.toml --set {set}"), &parts);
    }
}

#[test]
fn a_set_that_does_not_parse_is_refused() {
    let stage = Stage::new();
    for set in ["run.lanes", "=4", "lanes=4", "run.lanes=", "optimizer.betas=[0.9"] {
        stage.refused(&format!("run.toml --set {set}"), &["--set", set, "section.key=value"]);
    }
}

#[test]
fn a_config_that_cannot_be_read_is_named() {
    let stage = Stage::new();
    stage.refused("absent.toml", &["absent.toml", "No such file"]);
    stage.refused("data", &["data", "cannot read the config"]);
    fs::write(stage.path("broken.toml"), "[run]\nname = \"x\nlanes = 4\n").unwrap();
    stage.refused("broken.toml", &["broken.toml", "line 2, column"]);
    fs::write(stage.path("binary.toml"), [0xff, 0xfe]).unwrap();
    stage.refused("binary.toml", &["binary.toml", "UTF-8"]);
}

#[test]
fn more_ranks_than_lanes_and_other_strange_ranks_are_refused() {
    let stage = Stage::new();
    stage.refused("run.toml -n 5", &["-n 5", "run.lanes", "4"]);
    stage.refused("run.toml -n 2 --set run.lanes=1", &["-n 2", "run.lanes", "1"]);
    for ranks in ["0", "-1", "many", "1.5"] {
        stage.refused(&format!("run.toml -n={ranks}"), &["RANKS", ranks]);
    }
    stage.refused("run.toml --backend carrier-pigeon", &["carrier-pigeon", "host"]);
}

#[test]
fn a_vocabulary_smaller_than_the_data_s_is_refused() {
    let stage = Stage::new();
    stage.refused("run.toml --set model.vocab=255", &["model.vocab", "255", "256"]);
}

#[test]
fn too_little_data_is_refused() {
    let stage = Stage::new();
    stage.refused(
        "run.toml --set data.sequence_length=100000",
        &["data.sequence_length = 100000", "training tokens"],
    );
}

#[test]
fn missing_truncated_and_edited_data_is_refused_by_file() {
    let stage = Stage::new();
    stage.refused("run.toml --set data.path=absent", &["absent", "No such file"]);
    stage.refused(
        "run.toml --set data.path=.",
        &["not a data folder", "lockstep data prepare"],
    );
    let shard = stage.path("data/train-00000.shard");
    let good = fs::read(&shard).unwrap();
    fs::write(&shard, &good[..good.len() - 100]).unwrap();
    stage.refused("run.toml", &["train-00000.shard", "truncated"]);
    let mut edited = good.clone();
    edited[500] ^= 1;
    fs::write(&shard, edited).unwrap();
    stage.refused("run.toml", &["train-00000.shard", "was changed", "BLAKE3"]);
    fs::remove_file(&shard).unwrap();
    stage.refused("run.toml", &["train-00000.shard", "No such file"]);
    fs::write(&shard, good).unwrap();
    let manifest = stage.read("data/manifest.json");
    fs::write(
        stage.path("data/manifest.json"),
        manifest.replace("\"version\": 1", "\"version\": 2"),
    )
    .unwrap();
    stage.refused("run.toml", &["manifest.json", "version 2"]);
}

#[test]
fn validation_data_of_another_tokenizer_is_refused() {
    let stage = Stage::new();
    let output = stage.lockstep("data prepare --tokenizer gpt2 --out other text.txt");
    assert!(output.status.success(), "{}", said(&output));
    stage.refused(
        "run.toml --set data.validation=other",
        &["data.validation", "another tokenizer"],
    );
}

#[test]
fn a_port_that_is_taken_is_refused() {
    let stage = Stage::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    stage.refused(
        &format!("run.toml --set coordinator.bind={address}"),
        &[&address, "coordinator.bind", "already in use"],
    );
}

#[test]
fn a_folder_that_holds_an_earlier_run_or_other_things_is_refused() {
    let stage = Stage::new();
    fs::create_dir_all(stage.path("runs/first")).unwrap();
    fs::write(stage.path("runs/first/ledger.redb"), "a ledger").unwrap();
    fs::write(stage.path("runs/first/metrics.jsonl"), "{\"step\":1}\n").unwrap();
    stage.refused("run.toml", &["runs/first", "earlier run", "run.name"]);
    fs::create_dir(stage.path("runs/notes")).unwrap();
    fs::write(stage.path("runs/notes/diary.txt"), "precious").unwrap();
    stage.refused(
        "run.toml --set run.name=notes",
        &["runs/notes", "diary.txt", "run.name"],
    );
}

#[test]
fn a_folder_in_use_by_another_run_is_refused() {
    let stage = Stage::new();
    let trainer = stage.stand_in("exec sleep 600");
    let mut first = stage.start(stage.command("run run.toml -n 2").env("LOCKSTEP_TRAINER", &trainer));
    wait_until("two trainers are there", || {
        stage.processes().len() == 3 || !first.is_running()
    });
    let before = stage.listing().into_keys().collect::<Vec<_>>();
    let output = stage
        .command("run run.toml -n 2")
        .env("LOCKSTEP_TRAINER", &trainer)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    for part in ["runs/first", "in use", &first.pid().to_string()] {
        assert!(
            said(&output).contains(part),
            "{part:?} is missing in: {}",
            said(&output)
        );
    }
    assert_eq!(stage.listing().into_keys().collect::<Vec<_>>(), before);
    assert!(first.is_running(), "the first run goes on: {}", first.err());
    assert_eq!(stage.processes().len(), 3);
}

#[test]
fn a_trainer_that_is_not_built_is_said_so() {
    let stage = Stage::new();
    let before = stage.listing();
    let output = stage
        .command("run run.toml")
        .env("LOCKSTEP_TRAINER", "/absent/trainer")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("/absent/trainer") && said(&output).contains("build it"),
        "{}",
        said(&output)
    );
    assert!(stage.listing() == before);
}

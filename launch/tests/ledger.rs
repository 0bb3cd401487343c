//! `lockstep ledger` through the real binary, on the ledger of a run with real services: while it goes on, when it is
//! over, and after its process was killed.
#![allow(clippy::unwrap_used)]

mod stage;
#[path = "../../coordinator/tests/trainers/mod.rs"]
mod trainers;

use lockstep_config::RunConfig;
use lockstep_coordinator::{BegunRun, Coordinator, CoordinatorOptions, Running};
use lockstep_proto::domain::Outcome;
use redb::{Database, ReadableTable, TableDefinition};
use serde_json::Value;
use stage::{Stage, said};

use trainers::{Behaviour, train};

fn start(stage: &Stage) -> (Running, String) {
    let config = RunConfig::read(stage.path("run.toml"), &[]).unwrap();
    let hash = config.hash();
    let options = CoordinatorOptions {
        begun: BegunRun::LeftAlone,
        vocabulary: 257,
        config,
        run_dir: stage.path("runs/first"),
        ranks: 2,
        training_samples: 100,
        data_hash: "data".to_owned(),
    };
    (Coordinator::start(options).unwrap(), hash)
}

fn finished(stage: &Stage) {
    let (running, hash) = start(stage);
    let behaviour = Behaviour {
        snapshot_every: 2,
        ..Behaviour::default()
    };
    train(&running, &hash, &[behaviour; 2]);
    assert_eq!(running.wait().outcome, Outcome::Completed);
}

#[test]
fn what_a_run_has_recorded_is_shown_proved_and_decided_again() {
    let stage = Stage::new();
    finished(&stage);
    let output = stage.lockstep("ledger show runs/first");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    for part in [
        "run          first (first-",
        "term 1",
        "generation 1  of term 1: begins with the initial values; rank 0 = trainer-0 (pid 4000 on host, lanes 0..2)",
        "issued for steps 1 to 6",
        "steps 1 to 6: 48 samples",
        "snapshot     of step 2, by generation 1",
        "validation   after step 3: loss 2.5000 on 99 tokens",
        "term 1: member trainer-1 (pid 4001 on host) joined",
        "completed after step 6: all 6 steps were made",
        "bytes a committed step",
    ] {
        assert!(
            said(&output).contains(part),
            "{part:?} is missing in: {}",
            said(&output)
        );
    }
    let output = stage.lockstep("ledger show first --json"); // by name, as for live runs
    let contents: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&contents["committed"]["last"], &contents["run"]["name"]),
        (&6.into(), &"first".into())
    );
    let output = stage.lockstep("ledger show runs/first --json --table committed");
    let rows: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        (rows.len(), &rows[4]["key"], &rows[4]["record"]["plan"]["step"]),
        (6, &5.into(), &5.into())
    );
    assert_eq!(rows[4]["record"]["parameter_hash"].as_str().unwrap().len(), 64);
    let output = stage.lockstep("ledger show runs/first --table events");
    assert!(said(&output).contains("rank 1 reported step 6"), "{}", said(&output));

    let output = stage.lockstep("ledger audit runs/first");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let claim = "proved  every sample position was trained exactly once, but for those that a rewind or an operator \
                 skipped: samples 0 to 48";
    assert!(said(&output).contains(claim), "{}", said(&output));
    let output = stage.lockstep("ledger replay runs/first");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(
        said(&output).contains("every one as in the ledger"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_ledger_is_read_while_its_run_is_live_and_without_a_term() {
    let stage = Stage::new();
    let (running, _hash) = start(&stage);
    running.handle().pause().unwrap();
    for words in ["show", "audit", "replay"] {
        let output = stage.lockstep(&format!("ledger {words} runs/first"));
        assert_eq!(output.status.code(), Some(0), "{words}: {}", said(&output));
    }
    running.handle().stop();
    running.wait();
    let output = stage.lockstep("ledger show runs/first --json");
    let contents: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(contents["terms"].as_array().unwrap().len(), 1, "{contents}");
}

#[test]
fn a_broken_ledger_ends_audit_and_replay_with_exit_code_1_and_the_row() {
    let stage = Stage::new();
    finished(&stage);
    let database = Database::open(stage.path("runs/first/ledger.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut plans = transaction
            .open_table(TableDefinition::<u64, &[u8]>::new("plans"))
            .unwrap();
        let row = plans.get(4).unwrap().unwrap().value().to_vec();
        let mut row: Value = serde_json::from_slice(&row).unwrap();
        row["record"]["learning_rate"] = 0.5.into();
        plans.insert(4, serde_json::to_vec(&row).unwrap().as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    for words in ["audit", "audit --json", "replay"] {
        let output = stage.lockstep(&format!("ledger {words} runs/first"));
        assert_eq!(output.status.code(), Some(1), "{words}: {}", said(&output));
        assert!(
            said(&output).contains("row 4 of the table plans"),
            "{words}: {}",
            said(&output)
        );
    }
}

#[test]
fn what_is_no_ledger_is_refused() {
    let stage = Stage::new();
    for words in ["show absent", "audit .", "replay data"] {
        let output = stage.lockstep(&format!("ledger {words}"));
        assert_eq!(output.status.code(), Some(2), "{words}: {}", said(&output));
        assert!(said(&output).contains("ledger.redb"), "{words}: {}", said(&output));
    }
    finished(&stage);
    let output = stage.lockstep("ledger show runs/first --table absent");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(
        said(&output).contains("committed, decisions"),
        "the tables are named: {}",
        said(&output)
    );
}

//! What the ledger promises.

use lockstep_proto::domain::{Directive, DirectiveKind, Orthogonality, Outcome, Stamp, StepMetrics};
use tempfile::tempdir;

use super::*;

fn run() -> RunRow {
    RunRow {
        run_id: "shakespeare-1".to_owned(),
        name: "shakespeare".to_owned(),
        config_toml: "[run]".to_owned(),
        config_hash: "c".to_owned(),
        data_hash: "d".to_owned(),
    }
}

fn plan(step: u64) -> Plan {
    Plan {
        step,
        learning_rate: 0.1 + step as f64 / 3.0,
        micro_batches: 2,
        first_sample: step * 4,
        samples: 4,
        validate: false,
        last: false,
        version: 1,
        checkpoint: false,
    }
}

fn metrics() -> StepMetrics {
    StepMetrics {
        loss: 1.0 / 3.0,
        tokens: 64,
        grad_norm: 2.0 / 3.0,
        update_norm: 4.0 / 3.0,
        learning_rate: 0.2,
        effective_learning_rate: 0.1,
        step_ms: 7.0 / 3.0,
        phases: vec![("forward".into(), 0.1)],
        polar_factors: 4,
        model_value: Some(5.0 / 3.0),
        dual_norm: Some(8.0 / 3.0),
        lower_bound: Some(0.0),
        orthogonality: Some(Orthogonality {
            tensor: "h.0.mlp.c_fc.weight".into(),
            error: 0.1 / 3.0,
        }),
    }
}

fn commit(step: u64, metrics: StepMetrics) -> Commit {
    Commit {
        stamp: Stamp { term: 1, generation: 1 },
        plan: plan(step),
        parameter_hash: [9; 32],
        metrics,
        ranks: 2,
        samples: 4,
        tokens: 64,
    }
}

fn records() -> Vec<Record> {
    let stamp = Stamp { term: 1, generation: 1 };
    vec![
        Record::Generation(Generation {
            stamp,
            members: Vec::new(),
            lanes: 4,
            resume: None,
            replay_through: 0,
            secret: [77; 32],
        }),
        Record::Plans(vec![plan(1), plan(2)]),
        Record::Urgent(Directive {
            sequence: 1,
            kind: DirectiveKind::Pause,
        }),
        Record::Committed(Box::new(commit(1, metrics()))),
        Record::Validation {
            step: 1,
            validation: Validation { loss: 2.5, tokens: 7 },
        },
        Record::Decision {
            reason: "because".to_owned(),
        },
        Record::End(RunEnd {
            outcome: Outcome::Stopped,
            reason: "asked".to_owned(),
            last_step: 1,
        }),
    ]
}

#[test]
fn what_was_appended_is_there_after_opening_again_under_the_next_term() {
    let folder = tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path(), run()).unwrap();
    assert_eq!(ledger.term(), 1);
    ledger.append(&records()).unwrap();
    drop(ledger);
    let other_id = RunRow {
        run_id: "shakespeare-2".to_owned(),
        ..run()
    };
    let mut ledger = Ledger::open(folder.path(), other_id).unwrap();
    assert_eq!((ledger.term(), ledger.last_generation().unwrap()), (2, 1));
    assert_eq!(ledger.run().run_id, "shakespeare-1");
    assert_eq!(ledger.plans().unwrap(), [plan(1), plan(2)]);
    assert_eq!(ledger.committed().unwrap(), [commit(1, metrics())]);
    assert_eq!(ledger.validations().unwrap().len(), 1);
    assert_eq!(ledger.ends().unwrap()[0].reason, "asked");
    assert_eq!(
        ledger.generations().unwrap()[0].secret,
        [0; 32],
        "secrets are never written"
    );
    ledger
        .append(&[Record::Decision {
            reason: "and then".to_owned(),
        }])
        .unwrap();
    let decisions: Vec<_> = ledger
        .decisions()
        .unwrap()
        .into_iter()
        .map(|row| (row.term, row.reason))
        .collect();
    assert_eq!(decisions, [(1, "because".to_owned()), (2, "and then".to_owned())]);
}

#[test]
fn a_step_without_the_optional_numbers_is_written_and_read_as_it_was_before_there_were_any() {
    let plain = StepMetrics {
        model_value: None,
        dual_norm: None,
        lower_bound: None,
        orthogonality: None,
        ..metrics()
    };
    let hash = vec!["9"; 32].join(",");
    let before = format!(
        concat!(
            r#"{{"version":1,"record":{{"stamp":{{"term":1,"generation":1}},"plan":{{"step":3,"learning_rate":1.1,"#,
            r#""micro_batches":2,"first_sample":12,"samples":4,"validate":false,"last":false,"version":1}},"#,
            r#""parameter_hash":[{hash}],"metrics":{{"loss":0.3333333333333333,"tokens":64,"#,
            r#""grad_norm":0.6666666666666666,"update_norm":1.3333333333333333,"learning_rate":0.2,"#,
            r#""effective_learning_rate":0.1,"step_ms":2.3333333333333335,"phases":[["forward",0.1]],"#,
            r#""polar_factors":4}},"ranks":2,"samples":4,"tokens":64}}}}"#
        ),
        hash = hash
    );
    let folder = tempdir().unwrap();
    let ledger = Ledger::open(folder.path(), run()).unwrap();
    ledger.write(&[(COMMITTED, 3, before.clone().into_bytes())]).unwrap();
    assert_eq!(ledger.committed().unwrap(), [commit(3, plain.clone())]);
    assert_eq!(String::from_utf8(encode(&commit(3, plain)).unwrap()).unwrap(), before);
}

#[test]
fn optional_numbers_that_are_not_finite_come_back_as_they_were() {
    let odd = StepMetrics {
        model_value: Some(f64::NAN),
        dual_norm: Some(f64::INFINITY),
        lower_bound: Some(f64::NEG_INFINITY),
        orthogonality: Some(Orthogonality {
            tensor: "h.0.mlp.c_fc.weight".into(),
            error: f64::NAN,
        }),
        ..metrics()
    };
    let folder = tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path(), run()).unwrap();
    ledger.append(&[Record::Committed(Box::new(commit(1, odd)))]).unwrap();
    let read = ledger.committed().unwrap().remove(0).metrics;
    assert!(read.model_value.unwrap().is_nan(), "{read:?}");
    assert!(read.orthogonality.as_ref().unwrap().error.is_nan(), "{read:?}");
    assert_eq!(
        (read.dual_norm, read.lower_bound),
        (Some(f64::INFINITY), Some(f64::NEG_INFINITY))
    );
}

#[test]
fn a_folder_in_use_is_refused_with_its_name_and_the_pid() {
    let folder = tempdir().unwrap();
    let ledger = Ledger::open(folder.path(), run()).unwrap();
    let error = Ledger::open(folder.path(), run()).unwrap_err().to_string();
    let pid = std::process::id().to_string();
    assert!(
        error.contains(&pid) && error.contains(&folder.path().display().to_string()),
        "{error}"
    );
    drop(ledger);
    Ledger::open(folder.path(), run()).unwrap();
}

#[test]
fn a_folder_of_another_run_is_refused_with_both_values() {
    let folder = tempdir().unwrap();
    drop(Ledger::open(folder.path(), run()).unwrap());
    let error = Ledger::open(
        folder.path(),
        RunRow {
            config_hash: "e".to_owned(),
            ..run()
        },
    )
    .unwrap_err();
    assert!(
        matches!(&error, LedgerError::OtherRun { theirs, ours, .. } if theirs == "c" && ours == "e"),
        "{error}"
    );
    let error = Ledger::open(
        folder.path(),
        RunRow {
            data_hash: "f".to_owned(),
            ..run()
        },
    )
    .unwrap_err();
    assert!(error.to_string().contains("data hash (d, this one has f)"), "{error}");
}

#[test]
fn an_unknown_version_is_refused_by_name() {
    let folder = tempdir().unwrap();
    let ledger = Ledger::open(folder.path(), run()).unwrap();
    ledger
        .write(&[(PLANS, 3, br#"{"version":99,"record":{}}"#.to_vec())])
        .unwrap();
    let error = ledger.plans().unwrap_err().to_string();
    assert!(
        error.contains("table plans has version 99") && error.contains("version 1 only"),
        "{error}"
    );
    ledger
        .write(&[(RUN, 0, br#"{"version":2,"record":{"new":true}}"#.to_vec())])
        .unwrap();
    drop(ledger);
    let error = Ledger::open(folder.path(), run()).unwrap_err();
    assert!(
        matches!(
            error,
            LedgerError::UnknownVersion {
                found: 2,
                table: "run",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_file_that_is_no_ledger_is_refused() {
    let folder = tempdir().unwrap();
    std::fs::write(
        folder.path().join("ledger.redb"),
        b"not a ledger, but long enough to look at",
    )
    .unwrap();
    let error = Ledger::open(folder.path(), run()).unwrap_err().to_string();
    assert!(error.contains("ledger.redb"), "{error}");
}

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
        training_samples: 0,
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
        momentum: None,
        weight_decay: None,
        stop: false,
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
        skipped: Some("step 3: the loss is NaN".into()),
        gradient_variance: Some(50.0 / 3.0),
        gradient_square: Some(-1.0 / 3.0),
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
        noise_scale: None,
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
        skipped: None,
        gradient_variance: None,
        gradient_square: None,
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
fn numbers_that_are_not_finite_come_back_as_they_were() {
    let odd = StepMetrics {
        loss: f64::NAN,
        grad_norm: f64::INFINITY,
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
    assert!(read.loss.is_nan() && read.grad_norm == f64::INFINITY, "{read:?}");
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
    let transaction = ledger.database.begin_write().unwrap();
    let newer = br#"{"version":2,"record":{"new":true}}"#;
    transaction
        .open_table(RUN)
        .unwrap()
        .insert(0, newer.as_slice())
        .unwrap();
    transaction.commit().unwrap();
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

#[test]
fn a_row_is_never_written_again_with_another_content_and_nothing_of_that_transaction_is_kept() {
    let folder = tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path(), run()).unwrap();
    ledger.append(&records()).unwrap();
    ledger.append(&[Record::Plans(vec![plan(1)])]).unwrap(); // the same again: nothing changes
    let other = |step| Plan {
        learning_rate: 9.0,
        ..plan(step)
    };
    let changes: [(&str, Record); 5] = [
        ("row 2 of the table plans", Record::Plans(vec![other(2)])),
        ("row 1 of the table committed", {
            let mut commit = commit(1, metrics());
            commit.parameter_hash[0] += 1;
            Record::Committed(Box::new(commit))
        }),
        (
            "row 1 of the table validations",
            Record::Validation {
                step: 1,
                validation: Validation { loss: 2.6, tokens: 7 },
            },
        ),
        (
            "row 1 of the table directives",
            Record::Urgent(Directive {
                sequence: 1,
                kind: DirectiveKind::Stop,
            }),
        ),
        (
            "row 1 of the table ends",
            Record::End(RunEnd {
                outcome: Outcome::Completed,
                reason: "asked".to_owned(),
                last_step: 1,
            }),
        ),
    ];
    for (named, change) in changes {
        let error = ledger.append(&[Record::Plans(vec![plan(9)]), change]).unwrap_err();
        assert!(matches!(error, LedgerError::Rewritten { .. }), "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
    assert_eq!(ledger.plans().unwrap(), [plan(1), plan(2)]);
    assert_eq!(ledger.committed().unwrap(), [commit(1, metrics())]);
}

#[test]
fn only_a_snapshot_of_a_later_generation_takes_the_place_of_another() {
    let folder = tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path(), run()).unwrap();
    let snapshot = |generation, hash| Record::Snapshot {
        step: 4,
        parts: vec![Part {
            step: 4,
            generation,
            part: 0,
            hash: [hash; 32],
        }],
    };
    ledger.append(&[snapshot(1, 1)]).unwrap();
    let error = ledger.append(&[snapshot(1, 2)]).unwrap_err();
    assert!(error.to_string().contains("row 4 of the table snapshots"), "{error}");
    ledger.append(&[snapshot(2, 2)]).unwrap();
    assert_eq!(ledger.snapshots().unwrap()[0][0].generation, 2);
    ledger.append(&[snapshot(1, 1)]).unwrap_err();
}

#[test]
fn a_ledger_is_read_while_its_run_goes_on_and_after_it_was_killed() {
    let folder = tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path(), run()).unwrap();
    ledger.append(&records()).unwrap();
    let rows_of_plans = |reader: &Reader| {
        let tables = reader.tables().unwrap();
        tables.iter().find(|table| table.name == "plans").unwrap().rows
    };
    let live = Reader::open(folder.path()).unwrap();
    assert_eq!((rows_of_plans(&live), live.is_repaired_copy()), (2, false));
    ledger.append(&[Record::Plans(vec![plan(3)])]).unwrap();
    assert_eq!(rows_of_plans(&live), 2, "one moment is shown");
    assert_eq!(rows_of_plans(&Reader::open(folder.path()).unwrap()), 3);

    // The file as it is now is what a killed process leaves.
    let killed = tempdir().unwrap();
    let file = killed.path().join("ledger.redb");
    std::fs::copy(folder.path().join("ledger.redb"), &file).unwrap();
    let before = std::fs::read(&file).unwrap();
    let reader = Reader::open(killed.path()).unwrap();
    assert_eq!(rows_of_plans(&reader), 3);
    assert_eq!(std::fs::read(&file).unwrap(), before, "the file is not touched");
    drop((live, ledger));
    Reader::open(folder.path()).unwrap();
}

#[test]
fn where_a_process_lets_nobody_else_in_it_is_named() {
    let folder = tempdir().unwrap();
    drop(Ledger::open(folder.path(), run()).unwrap());
    let _exclusive = Database::open(folder.path().join("ledger.redb")).unwrap();
    let error = Reader::open(folder.path()).unwrap_err().to_string();
    let pid = std::process::id().to_string();
    assert!(error.contains("in use") && error.contains(&pid), "{error}");
    let elsewhere = tempdir().unwrap();
    let error = Reader::open(elsewhere.path()).unwrap_err().to_string();
    assert!(error.contains("ledger.redb"), "{error}");
}

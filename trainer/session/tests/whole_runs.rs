//! Sessions against the real coordinator: runs that complete, stop, pause, and fail as they should.
#![allow(clippy::unwrap_used)]

mod world;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lockstep_coordinator::Events;
use lockstep_proto::domain::*;
use lockstep_security::Credentials;
use lockstep_session::{Session, SessionError, SessionOptions};
use tempfile::tempdir;

use crate::world::{Behaviour, PATIENCE, Trainers, coordinator, hash_of, info, metrics_of};

/// Long enough for any machine; what is waited for normally comes in milliseconds.
const BOUND: Duration = Duration::from_secs(20);

fn wait_for(events: &mut Events, what: &str, mut found: impl FnMut(&RunEvent) -> bool) -> RunEvent {
    let deadline = Instant::now() + BOUND;
    while let Some(event) = events.blocking_next() {
        if found(&event) {
            return event;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
    }
    panic!("the run ended before {what}");
}

fn is_step(event: &RunEvent, from: u64) -> bool {
    matches!(event, RunEvent::Step(step) if step.step >= from)
}

#[test]
fn a_run_completes_and_leaves_its_record_in_ledger_and_files() {
    let folder = tempdir().unwrap();
    let running = coordinator(&folder, 3, 23);
    let mut events = running.subscribe();
    let trainers = Trainers::start(&running, 3, |_| Behaviour::default());
    for result in trainers.join() {
        assert_eq!(result, Ok(23));
    }
    let end = running.wait();
    let expected = RunEnd {
        outcome: Outcome::Completed,
        reason: "all 23 steps were made".into(),
        last_step: 23,
    };
    assert_eq!(end, expected);

    let (mut steps, mut validated) = (Vec::new(), Vec::new());
    while let Some(event) = events.blocking_next() {
        match event {
            RunEvent::Step(step) => {
                assert_eq!(step.parameter_hash, hash_of(step.step));
                let metrics = metrics_of(step.step);
                assert_eq!(
                    (step.polar_factors, step.model_value, step.dual_norm, step.lower_bound),
                    (
                        metrics.polar_factors,
                        metrics.model_value,
                        metrics.dual_norm,
                        metrics.lower_bound
                    )
                );
                assert_eq!(step.orthogonality, metrics.orthogonality);
                steps.push(step.step);
            }
            RunEvent::Validation { step, .. } => validated.push(step),
            RunEvent::State { .. } | RunEvent::Decided { .. } | RunEvent::Ended(_) => {}
        }
    }
    assert_eq!((steps, validated), ((1..=23).collect(), vec![5, 10, 15, 20, 23]));

    let text = std::fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 23 + 5);
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let orthogonality: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.get("orthogonality_tensor")?.as_str())
        .collect();
    let odd = (1..=23).step_by(2).map(|step| format!("h.{step}.mlp.c_fc.weight"));
    assert_eq!(orthogonality, odd.collect::<Vec<_>>());
    let text = std::fs::read_to_string(folder.path().join("run/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&summary["exit"], &summary["steps"]), (&"completed".into(), &23.into()));
    assert_eq!(
        (&summary["tokens"], &summary["peak_memory_mib"]),
        (&(23 * 128).into(), &102.into())
    );

    let row = lockstep_coordinator::ledger::RunRow {
        run_id: String::new(),
        name: String::new(),
        config_toml: String::new(),
        config_hash: world::config(23).hash(),
        data_hash: "data".into(),
        training_samples: 0,
    };
    let ledger = lockstep_coordinator::ledger::Ledger::open(&folder.path().join("run"), row).unwrap();
    let committed = ledger.committed().unwrap();
    let mut cursor = 0;
    for commit in &committed {
        assert_eq!(commit.plan.first_sample, cursor);
        assert_eq!(commit.metrics, metrics_of(commit.plan.step));
        cursor += commit.plan.samples;
    }
    assert_eq!((committed.len(), cursor), (23, 23 * 8));
    assert_eq!(ledger.plans().unwrap().len(), 23);
    assert_eq!(ledger.ends().unwrap(), [expected]);
}

#[test]
fn a_stop_ends_the_run_after_one_step_on_every_rank() {
    let folder = tempdir().unwrap();
    let running = coordinator(&folder, 2, 1_000_000);
    let mut events = running.subscribe();
    let slow = Behaviour {
        step: Duration::from_millis(2),
        ..Behaviour::default()
    };
    let trainers = Trainers::start(&running, 2, |_| slow);
    wait_for(&mut events, "step 3", |event| is_step(event, 3));
    running.handle().stop();
    let results = trainers.join();
    let end = running.wait();
    assert_eq!(end.outcome, Outcome::Stopped);
    assert!(end.last_step >= 3);
    assert_eq!(results, [Ok(end.last_step), Ok(end.last_step)]);
}

#[test]
fn a_pause_holds_the_run_until_it_is_resumed() {
    let folder = tempdir().unwrap();
    let running = coordinator(&folder, 2, 1_000_000);
    let mut events = running.subscribe();
    let slow = Behaviour {
        step: Duration::from_millis(2),
        ..Behaviour::default()
    };
    let trainers = Trainers::start(&running, 2, |_| slow);
    wait_for(&mut events, "step 2", |event| is_step(event, 2));
    assert!(running.handle().pause().unwrap().contains("paused"));
    wait_for(
        &mut events,
        "the pause",
        |event| matches!(event, RunEvent::State { phase, .. } if phase == "paused"),
    );
    let deadline = Instant::now() + BOUND;
    while trainers.exchange.paused.load(Ordering::SeqCst) < 2 {
        assert!(Instant::now() < deadline, "the ranks do not pause");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Steps that were on their way still come; then there is silence until the run is resumed.
    let made = trainers.exchange.paused_after.load(Ordering::SeqCst);
    wait_for(&mut events, "the last step before the pause", |event| {
        is_step(event, made)
    });
    let mut quiet = running.subscribe();
    running.handle().resume().unwrap();
    let first = wait_for(&mut quiet, "an event after the pause", |event| {
        !matches!(event, RunEvent::Decided { .. })
    });
    assert!(
        matches!(&first, RunEvent::State { phase, .. } if phase == "training"),
        "{first:?}"
    );
    wait_for(&mut quiet, "a step after the pause", |event| is_step(event, made + 1));
    assert!(running.handle().pause().is_ok());
    running.handle().stop();
    let results = trainers.join();
    let end = running.wait();
    assert_eq!(
        (end.outcome, results),
        (Outcome::Stopped, vec![Ok(end.last_step), Ok(end.last_step)])
    );
}

#[test]
fn a_session_that_is_dropped_aborts_the_others_and_is_named() {
    let folder = tempdir().unwrap();
    let running = coordinator(&folder, 3, 1_000_000);
    let trainers = Trainers::start(&running, 3, |rank| Behaviour {
        dies_before: (rank == 1).then_some(4),
        step: Duration::from_millis(2),
        ..Behaviour::default()
    });
    let results = trainers.join();
    let end = running.wait();
    assert!(matches!(end.outcome, Outcome::Failed { .. }), "{end:?}");
    assert!(
        end.reason.contains("rank 1 (pid 9001, trainer-1 on here) was lost"),
        "{}",
        end.reason
    );
    assert!(end.last_step <= 3, "{end:?}");
    for rank in [0, 2] {
        assert!(
            matches!(&results[rank], Err(SessionError::Released { reason, .. } | SessionError::Aborted { reason }) if *reason == end.reason),
            "{results:?}"
        );
    }
}

#[test]
fn ranks_with_different_hashes_fail_the_run_and_are_named() {
    let folder = tempdir().unwrap();
    let running = coordinator(&folder, 2, 1000);
    let trainers = Trainers::start(&running, 2, |rank| Behaviour {
        differs_at: (rank == 1).then_some(7),
        step: Duration::from_millis(2),
        ..Behaviour::default()
    });
    let results = trainers.join();
    let end = running.wait();
    let said = ["after step 7", "rank 0 has the hash 0707", "rank 1 has the hash eeee"];
    assert!(said.iter().all(|part| end.reason.contains(part)), "{}", end.reason);
    assert!(results.iter().all(Result::is_err), "{results:?}");
    assert_eq!(end.last_step, 6);
}

#[test]
fn a_member_that_differs_is_refused_with_the_coordinators_sentence() {
    let folder = tempdir().unwrap();
    let running = coordinator(&folder, 1, 10);
    let options = SessionOptions {
        coordinator: format!("http://{}", running.address()),
        credentials: Credentials::default(),
        member: "trainer-0".to_owned(),
        patience: PATIENCE,
    };
    let (mut session, _) = Session::connect(options).unwrap();
    session.join(info(0, "another".to_owned()), Vec::new);
    let error = session.next_generation().unwrap_err();
    assert!(
        matches!(&error, SessionError::Refused { reason } if reason.contains("config hash another")),
        "{error}"
    );
    running.handle().stop();
    let end = running.wait();
    assert_eq!((end.outcome, end.last_step), (Outcome::Stopped, 0));
}

#[test]
fn a_coordinator_that_goes_away_sets_the_abort_signal() {
    let folder = tempdir().unwrap();
    let running = coordinator(&folder, 2, 10);
    let address = format!("http://{}", running.address());
    let options = SessionOptions {
        coordinator: address.clone(),
        credentials: Credentials::default(),
        member: "trainer-0".to_owned(),
        patience: PATIENCE,
    };
    let (mut session, _) = Session::connect(options).unwrap();
    let signal = session.abort_signal();
    let waiting = std::thread::spawn(move || {
        session.join(info(0, world::config(10).hash()), Vec::new);
        session.next_generation()
    });
    drop(running);
    assert!(waiting.join().unwrap().is_err());
    assert!(signal.is_set());
    let nobody = SessionOptions {
        coordinator: address,
        credentials: Credentials::default(),
        member: "late".to_owned(),
        patience: Duration::from_millis(200),
    };
    let error = Session::connect(nobody).unwrap_err();
    assert!(matches!(error, SessionError::Unreachable { .. }), "{error}");
}

#[test]
fn a_session_outlives_the_generation_and_takes_part_in_the_next_one() {
    let folder = tempdir().unwrap();
    let config = world::config_of(10, "host");
    let running = world::coordinator_of(config.clone(), &folder, 2);
    let connect = |number: u32| {
        let options = SessionOptions {
            coordinator: format!("http://{}", running.address()),
            credentials: Credentials::default(),
            member: format!("trainer-{number}"),
            patience: PATIENCE,
        };
        let (mut session, _) = Session::connect(options).unwrap();
        session.join(info(number, config.hash()), Vec::new);
        session
    };
    let (mut survivor, mut victim) = (connect(0), connect(1));
    let first = survivor.next_generation().unwrap();
    assert_eq!(victim.next_generation().unwrap(), first);
    drop(victim);
    let error = survivor.next_plan(1).unwrap_err();
    assert!(
        matches!(&error, SessionError::Aborted { reason } if reason.contains("trainer-1")),
        "{error}"
    );
    assert!(survivor.abort_signal().is_set());
    survivor.stopped(0, Vec::new(), None);
    let second = survivor.next_generation().unwrap();
    assert!(!survivor.abort_signal().is_set());
    assert_eq!(
        (second.ranks(), second.stamp.generation),
        (1, first.stamp.generation + 1)
    );
    running.handle().abandon();
    let error = survivor.next_plan(1).unwrap_err();
    assert!(
        matches!(
            &error,
            SessionError::Released {
                outcome: Outcome::Stopped,
                ..
            }
        ),
        "{error}"
    );
    running.wait();
}

//! What the ledger keeps of the events: all that had a consequence, and nothing else. And what that costs.

use std::time::Instant;

use super::*;
use crate::ledger::{FactsRow, Ledger, Recorder, RunRow, Shadow};

#[test]
fn progress_and_idle_ticks_are_not_kept_and_everything_else_is() {
    let mut run = training(2, 20);
    let mut recorder = Recorder::new(Some(1));
    let progress = Progress {
        step: 1,
        phase: "forward".to_owned(),
        counter: 3,
        waits: false,
        longest_ms: None,
    };
    recorder.decide(&mut run, Event::Progress { peer: 0, progress }, NOW);
    recorder.decide(&mut run, Event::Tick, NOW);
    assert_eq!(recorder.waiting(), 0);
    let first = report(&run, 0, 1, 1);
    assert_eq!(recorder.decide(&mut run, first, NOW).directives, []);
    assert_eq!(
        recorder.waiting(),
        1,
        "one report decides nothing yet, and is needed for what the next one decides"
    );
    recorder.decide(&mut run, Event::Abandon, NOW);
    assert_eq!(recorder.take().len(), 2);

    // A tick that ends the run is kept.
    let mut run = training(2, 20);
    let failed = Outcome::Failed {
        reason: "broke".to_owned(),
    };
    let finished = Event::Finished {
        peer: 0,
        stamp: run.stamp(),
        outcome: failed,
        step: 0,
    };
    recorder.decide(&mut run, finished, NOW);
    recorder.decide(&mut run, Event::Tick, Duration::from_millis(299));
    assert_eq!(recorder.take().len(), 1);
    recorder.decide(&mut run, Event::Tick, Duration::from_millis(300));
    assert_eq!((recorder.take().len(), run.phase()), (1, Phase::Ended));
    let mut off = Recorder::new(None);
    off.decide(&mut run, Event::Stop, NOW);
    assert_eq!(off.waiting(), 0);
}

#[test]
fn the_facts_of_an_older_build_are_read_as_what_it_did() {
    let older = RunFacts {
        stops_once: false,
        ..facts(2, 8, 20)
    };
    let row = serde_json::to_value(FactsRow::of(&older)).unwrap();
    let keys: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
    assert!(!keys.contains(&"keeps") && !keys.contains(&"stops_once"), "{keys:?}");
    let again = serde_json::from_value::<FactsRow>(row).unwrap();
    let again = again.facts(1, older.planner.clone());
    assert_eq!((again.keeps, again.stops_once), (None, false));
}

#[test]
fn an_event_that_was_not_kept_is_noticed_by_the_shadow() {
    let mut run = training(2, 20);
    let mut shadow = Shadow::of(&run);
    let (first, second) = (report(&run, 0, 1, 1), report(&run, 1, 1, 1));
    run.step(first, NOW); // nobody keeps it
    let difference = shadow.decide(&mut run, second, NOW).unwrap_err();
    assert!(difference.contains("Committed"), "{difference}");
}

/// `cargo test --release -p lockstep-coordinator --lib recording -- --ignored --nocapture`
#[test]
#[ignore = "a measurement: what recording costs for each event and each transaction"]
fn measure_what_recording_costs() {
    const STEPS: u64 = 2000;
    const RANKS: u32 = 4;
    for round in 0..3 {
        for is_on in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let row = RunRow {
                run_id: "measured".to_owned(),
                name: "measured".to_owned(),
                config_toml: String::new(),
                config_hash: "config".to_owned(),
                data_hash: "data".to_owned(),
                training_samples: 0,
            };
            let mut ledger = Ledger::open(folder.path(), row).unwrap();
            let mut run = training(RANKS, STEPS);
            let mut recorder = Recorder::new(is_on.then_some(1));
            let (mut deciding, mut writing) = (Duration::ZERO, Duration::ZERO);
            for step in 1..=STEPS {
                let mut records = Vec::new();
                for rank in 0..RANKS {
                    let event = report(&run, rank, step, step as u8);
                    let began = Instant::now();
                    let decision = recorder.decide(&mut run, event, Duration::from_millis(step));
                    deciding += began.elapsed();
                    records.extend(decision.directives.into_iter().filter_map(|directive| match directive {
                        Done::Persist(record) => Some(record),
                        _ => None,
                    }));
                }
                let began = Instant::now();
                ledger.append_with_events(&records, recorder.take()).unwrap();
                writing += began.elapsed();
            }
            let events = f64::from(RANKS) * STEPS as f64;
            println!(
                "round {round}, recording {is_on}: {:.2} µs an event to decide, {:.0} µs a transaction",
                deciding.as_secs_f64() * 1e6 / events,
                writing.as_secs_f64() * 1e6 / STEPS as f64
            );
        }
    }
}

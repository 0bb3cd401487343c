//! Steps and memory that go wrong, on engines over real communicators, one thread a rank: what is skipped leaves no trace, and
//! what changes by itself is named and part of no step, on any world.
#![allow(clippy::unwrap_used, missing_docs)]

mod engines;
mod meeting;

use std::sync::Arc;

use lockstep_collective::new_id;
use lockstep_config::RunConfig;
use lockstep_proto::domain::Plan;
use lockstep_trainer::device::compute::Compute;
use lockstep_trainer::drill::Drill;
use lockstep_trainer::error::TrainerError;
use lockstep_trainer::model::choice::from_config;
use lockstep_trainer::snapshot::part::Whole;
use lockstep_trainer::step::drift::Drift;
use lockstep_trainer::step::{Engine, StepOutcome};

use engines::{METHODS, MICRO_BATCHES, VOCABULARY, batch, deal, plan};
use meeting::communicate;

fn config(precision: &str, method: &str, sets: &[&str]) -> RunConfig {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let text = engines::config(precision, method, "fp32").to_toml();
    RunConfig::parse(&text, "faults.rs", &sets).unwrap()
}

fn step(engine: &mut Engine, plan: &Plan) -> Result<StepOutcome, TrainerError> {
    let mut indices = engine.micro_batches_of(plan).into_iter();
    engine.step(plan, 0, &mut || Ok(batch(plan.step, indices.next().unwrap())))
}

/// What `work` makes of the engine of each rank, by rank, where a drill is ordered for all.
fn world<T: Send + 'static>(
    config: &RunConfig,
    ranks: u32,
    drill: &str,
    work: impl Fn(&mut Engine, u32) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let drill = drill.to_owned();
    world_on(&Compute::Host, config, ranks, move |_| drill.clone(), work)
}

/// The same where each rank has a drill of its own, on a device.
fn world_on<T: Send + 'static>(
    compute: &Compute,
    config: &RunConfig,
    ranks: u32,
    drill: impl Fn(u32) -> String,
    work: impl Fn(&mut Engine, u32) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let id = new_id(&[5; 32], 1).unwrap();
    let work = Arc::new(work);
    let threads: Vec<_> = (0..ranks)
        .map(|rank| {
            let (config, id, work, compute) = (config.clone(), id.clone(), Arc::clone(&work), compute.clone());
            let drill = Drill::parse(&drill(rank)).unwrap();
            std::thread::spawn(move || {
                tch::set_num_threads(1);
                let communication = communicate(&id, rank, ranks);
                let model = from_config(&config, VOCABULARY);
                let lanes = deal(config.run.lanes, ranks);
                let mut engine = Engine::new(&config, model, communication, lanes, &compute).unwrap();
                engine.order(drill);
                engine.parameter_hash().unwrap();
                work(&mut engine, rank)
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// The hash of every step and why it was skipped, which all ranks must say alike.
type Told = Vec<([u8; 32], Option<String>)>;

fn told(config: &RunConfig, ranks: u32, drill: &str, steps: &'static [u64]) -> Told {
    let mut all = world(config, ranks, drill, |engine, _| -> Told {
        let made = steps.iter().map(|number| step(engine, &plan(*number)).unwrap());
        made.map(|outcome| (outcome.parameter_hash, outcome.skipped)).collect()
    });
    let first = all.remove(0);
    assert!(all.iter().all(|other| *other == first), "the ranks differ");
    first
}

#[test]
fn a_step_that_is_skipped_leaves_no_trace_on_any_world() {
    for method in METHODS {
        let config = config("bf16", method, &["fault.on_not_finite=skip"]);
        let calm = told(&config, 1, "", &[1, 2, 4, 5, 6]);
        for ranks in 1..=4 {
            let drilled = told(&config, ranks, "nan@3.2", &[1, 2, 3, 4, 5, 6]);
            let reason = drilled[2].1.clone().unwrap();
            assert!(reason.starts_with("step 3: ") && reason.contains("NaN"), "{reason}");
            assert_eq!(
                drilled[2].0, drilled[1].0,
                "the parameters are those of the step before"
            );
            let rest: Told = [&drilled[..2], &drilled[3..]].concat();
            assert!(rest == calm, "{method}, {ranks} ranks");
        }
    }
}

#[test]
fn a_spike_is_skipped_alike_on_any_world() {
    const ALL: [u64; 20] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20];
    let config = config("bf16", METHODS[0], &["fault.on_spike=skip"]);
    let calm = told(
        &config,
        1,
        "",
        &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20],
    );
    for ranks in [1, 3] {
        let drilled = told(&config, ranks, "spike@19.1*1000", &ALL);
        let reason = drilled[18].1.clone().unwrap();
        assert!(reason.contains("deviations above the mean"), "{reason}");
        let rest: Told = [&drilled[..18], &drilled[19..]].concat();
        assert!(rest == calm, "{ranks} ranks");
    }
}

#[test]
fn without_a_policy_the_step_stops_the_run_with_one_sentence_on_every_rank() {
    let config = config("bf16", METHODS[2], &[]);
    let sentences = world(&config, 3, "nan@2.4", |engine, _| {
        step(engine, &plan(1)).unwrap();
        let before = engine.parameter_hash().unwrap();
        let error = step(engine, &plan(2)).unwrap_err();
        assert!(matches!(error, TrainerError::NotFinite(_)), "{error}");
        assert_eq!(engine.parameter_hash().unwrap(), before);
        error.to_string()
    });
    assert!(
        sentences.iter().all(|sentence| *sentence == sentences[0]),
        "{sentences:?}"
    );
    assert!(
        sentences[0].starts_with("step 2: ") && sentences[0].contains("fault.on_not_finite"),
        "{}",
        sentences[0]
    );
}

#[test]
fn skips_in_a_row_are_counted_across_a_snapshot_and_another_world() {
    let config = config("bf16", METHODS[1], &["fault.on_not_finite=skip", "fault.max_skips=2"]);
    let drill = "nan@2.0,nan@3.0,nan@4.0";
    let parts = world(&config, 3, drill, |engine, _| {
        for number in 1..=3 {
            step(engine, &plan(number)).unwrap();
        }
        engine.settle().unwrap();
        Arc::new(engine.freeze(3).unwrap())
    });
    let sentences = world(&config, 2, drill, move |engine, _| {
        engine.load(&Whole::read(3, parts.clone()).unwrap()).unwrap();
        step(engine, &plan(4)).unwrap_err().to_string()
    });
    for sentence in sentences {
        assert!(
            sentence.contains("the 2 steps before it were skipped too"),
            "{sentence}"
        );
    }
    assert_eq!(MICRO_BATCHES, 5, "the drills name micro-batches that there are");
}

/// The drift that a step must have come to.
fn drift(result: Result<StepOutcome, TrainerError>) -> Drift {
    match result {
        Err(TrainerError::Drift(drift)) => drift,
        other => panic!("no drift: {other:?}"),
    }
}

#[test]
fn a_changed_bit_is_named_alike_by_every_rank_and_the_run_is_healed_by_the_last_snapshot() {
    for (compute, precision, method, worlds) in [
        (Compute::Host, "bf16", METHODS[0], 1..=4),
        (Compute::Host, "fp32", METHODS[2], 2..=3),
        (Compute::HostTensors, "bf16", METHODS[1], 1..=3),
    ] {
        let config = config(precision, method, &["fault.on_not_finite=skip"]);
        let calm = world_on(
            &compute,
            &config,
            1,
            |_| "nan@3.1".to_owned(),
            |engine, _| [1, 2, 3, 4, 5].map(|number| step(engine, &plan(number)).unwrap().parameter_hash),
        )[0];
        for ranks in worlds {
            for (array, in_words) in [
                ("working", "the working copy of"),
                ("master", "the master of"),
                ("momentum", "the momentum of"),
            ] {
                let victim = ranks - 1;
                let drill = |rank| match rank == victim {
                    true => format!("nan@3.1,flip-{array}@4:any"),
                    false => "nan@3.1".to_owned(),
                };
                let (drifts, parts): (Vec<_>, Vec<_>) = world_on(&compute, &config, ranks, drill, |engine, rank| {
                    step(engine, &plan(1)).unwrap();
                    step(engine, &plan(2)).unwrap();
                    let part = Arc::new(engine.freeze(2).unwrap());
                    // A skipped step writes nothing, and what was written before is known still.
                    step(engine, &plan(3)).unwrap();
                    let drift = drift(step(engine, &plan(4)));
                    let owns_what_changed = drift.rank == rank && !drift.sentence.contains("working copy");
                    match engine.freeze(3) {
                        Err(TrainerError::Drift(own)) if owns_what_changed => assert_eq!(own.rank, rank),
                        Ok(_) if !owns_what_changed => {}
                        other => panic!("rank {rank} froze {other:?}"),
                    }
                    (drift, part)
                })
                .into_iter()
                .unzip();
                let said = &drifts[0].sentence;
                assert!(drifts.iter().all(|drift| *drift == drifts[0]), "{drifts:?}");
                assert_eq!(drifts[0].rank, victim, "{said}");
                assert!(
                    said.starts_with("step 4: ")
                        && said.contains(in_words)
                        && said.contains(&format!("in the memory of rank {victim}")),
                    "{said}"
                );
                let healed = world_on(
                    &compute,
                    &config,
                    2,
                    |_| "nan@3.1".to_owned(),
                    move |engine, _| {
                        engine.load(&Whole::read(2, parts.clone()).unwrap()).unwrap();
                        engine.parameter_hash().unwrap();
                        [3, 4, 5].map(|number| step(engine, &plan(number)).unwrap().parameter_hash)
                    },
                );
                assert!(
                    healed.iter().all(|hashes| hashes[..] == calm[2..]),
                    "{array}, {ranks} ranks"
                );
            }
        }
    }
}

#[test]
fn memory_is_compared_at_every_nth_step_or_never() {
    for (every, found) in [(2, true), (0, false)] {
        let every = format!("fault.drift_every={every}");
        let config = config("bf16", METHODS[0], &[&every]);
        let ends = world(&config, 2, "flip-momentum@3:any", |engine, _| {
            for number in 1..=3 {
                step(engine, &plan(number)).unwrap();
            }
            // The momentum of step 3 was made from the changed one, and is what was written then.
            let after = step(engine, &plan(4));
            let frozen = engine.freeze(4);
            (after.is_ok(), frozen.is_ok())
        });
        assert_eq!(ends, [(true, true); 2], "{every}");
        let ends = world(&config, 2, "flip-momentum@4:any", |engine, _| {
            for number in 1..=3 {
                step(engine, &plan(number)).unwrap();
            }
            step(engine, &plan(4)).is_err()
        });
        assert_eq!(ends, [found; 2], "{every}");
    }
}

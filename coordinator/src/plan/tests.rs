//! Plans of whole runs. The values of every kind of schedule are in `values`.

mod conditions;
mod values;

use lockstep_config::{BatchSchedule, Curve, Ends, Length, RampForm, Schedule, Shape, Unit, Warmup, WarmupForm};
use proptest::prelude::*;

use super::*;

fn config() -> RunConfig {
    let text = r#"
        [run]
        name = "plan"
        steps = 10
        [data]
        path = "data"
        sequence_length = 16
        [model]
        kind = "gpt2"
        layers = 1
        heads = 1
        width = 8
        [batch]
        micro_batch = 4
        schedule = 8
        [learning_rate]
        schedule = 0.5
        [optimizer]
        method = "muon"
    "#;
    RunConfig::parse(text, "test", &[]).unwrap()
}

fn planner(config: &RunConfig, epoch: u64) -> Planner {
    Planner::new(config, epoch).unwrap()
}

fn cosine_after_five() -> Schedule {
    Schedule {
        unit: Unit::Steps,
        curve: Curve {
            warmup: Some(Warmup {
                length: 5.0,
                from: 0.0,
                form: WarmupForm::Linear,
            }),
            shape: Shape::Ramp {
                ends: Ends::Peak { peak: 1.0, floor: 0.0 },
                form: RampForm::Cosine,
                over: None,
            },
        },
    }
}

#[test]
fn a_validation_falls_on_every_nth_step_and_on_the_last() {
    let mut config = config();
    config.validation.every = 4;
    let validated = |config: &RunConfig| -> Vec<u64> {
        planner(config, 0)
            .rows()
            .filter(|row| row.plan.validate)
            .map(|row| row.plan.step)
            .collect()
    };
    assert_eq!(validated(&config), [4, 8, 10]);
    config.validation.every = 0;
    assert_eq!(validated(&config), [10]);
}

#[test]
fn a_run_said_in_tokens_or_samples_ends_with_the_step_that_reaches_them() {
    let mut config = config();
    config.run.length = Length::Samples(17);
    assert_eq!(planner(&config, 0).total_steps(), 3);
    config.run.length = Length::Samples(16);
    assert_eq!(planner(&config, 0).total_steps(), 2);
    config.run.length = Length::Tokens(16 * 16 + 1);
    let planner = planner(&config, 48);
    assert_eq!((planner.total_steps(), planner.total_samples()), (3, 24));
    let row = planner.rows().last().unwrap();
    assert_eq!((row.samples, row.tokens, row.epochs), (24, 384, 0.5));
}

#[test]
fn the_batch_size_changes_after_the_named_steps_and_rounding_is_reported() {
    let mut config = config();
    config.batch.schedule = BatchSchedule::Steps {
        sizes: vec![(0, 4), (3, 10)],
    };
    let planner = planner(&config, 0);
    let samples: Vec<u64> = planner.rows().take(5).map(|row| row.plan.samples).collect();
    assert_eq!(samples, [4, 4, 4, 12, 12]);
    let roundings = planner.roundings();
    assert_eq!(roundings.len(), 1, "{roundings:?}");
    assert!(
        roundings[0].contains("10 samples") && roundings[0].contains("12"),
        "{roundings:?}"
    );
}

#[test]
fn lengths_beyond_counting_do_not_overflow() {
    let mut config = config();
    config.run.length = Length::Steps(u64::MAX);
    config.batch.schedule = BatchSchedule::Constant { size: 1 << 24 };
    assert_eq!(planner(&config, 0).total_samples(), u64::MAX);
}

proptest! {
    #[test]
    fn every_sample_is_planned_exactly_once(
        length in 1u64..4000, micro_batch in 1u32..9, kind in 0u8..3,
        first in 1u64..50, from in 1u64..40, second in 1u64..50,
    ) {
        let mut config = config();
        config.batch.micro_batch = micro_batch;
        config.batch.schedule = BatchSchedule::Steps { sizes: vec![(0, first), (from, second)] };
        config.run.length = [Length::Steps(length), Length::Samples(length), Length::Tokens(length)][kind as usize];
        config.learning_rate.schedule = cosine_after_five();
        let planner = planner(&config, 100);
        let mut cursor = 0;
        for row in planner.rows() {
            prop_assert_eq!(row.plan.first_sample, cursor);
            prop_assert_eq!(row.plan.samples, u64::from(row.plan.micro_batches) * u64::from(micro_batch));
            let asked = if row.plan.step > from { second } else { first };
            prop_assert!(row.plan.samples >= asked);
            prop_assert!(row.plan.learning_rate > 0.0 && row.plan.learning_rate <= 1.0);
            prop_assert_eq!(row.plan.last, row.plan.step == planner.total_steps());
            cursor += row.plan.samples;
            prop_assert_eq!(cursor, planner.cursor_after(row.plan.step));
        }
        let (asked, without_last) = (length, planner.cursor_after(planner.total_steps() - 1));
        match config.run.length {
            Length::Steps(_) => prop_assert_eq!(planner.total_steps(), asked),
            Length::Samples(_) => prop_assert!(cursor >= asked && without_last < asked),
            Length::Tokens(_) => prop_assert!(cursor * 16 >= asked && without_last * 16 < asked),
            Length::Epochs(_) => unreachable!("no case has it"),
        }
    }
}

//! What every step of a run does, as a pure function of config and cursor.
//!
//! Way of data: [`RunConfig`] → [`Planner`] (segments of the batch schedule, total steps, learning-rate shape) →
//! [`Plan`] of a step. The same planner serves the running coordinator and the preview before anything is paid for.
//! Sizes are rounded up to whole micro-batches; [`Planner::roundings`] says where that changed something.

mod batch;
mod learning_rate;

use lockstep_config::RunConfig;
use lockstep_proto::domain::Plan;

use crate::plan::batch::Batches;
use crate::plan::learning_rate::LearningRate;

/// Version of the schedule that a config alone makes; live changes will raise it.
const FIRST_VERSION: u64 = 1;

/// Makes the plans of a run.
#[derive(Clone, Debug)]
pub struct Planner {
    batches: Batches,
    learning_rate: LearningRate,
    validate_every: u64,
    checkpoint_every: u64,
    sequence_length: u64,
    training_samples: u64,
    total_steps: u64,
}

/// A plan with what the run has consumed once it is done: one row of a preview.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanRow {
    /// The plan.
    pub plan: Plan,
    /// Samples of the run after the step.
    pub samples: u64,
    /// Tokens of the run after the step: samples × sequence length.
    pub tokens: u64,
    /// Passes over the training data after the step; 0 where the data's size is not known.
    pub epochs: f64,
}

impl Planner {
    /// The planner of a config. `training_samples`: samples of one epoch, 0 where it is not known.
    pub fn new(config: &RunConfig, training_samples: u64) -> Planner {
        let sequence_length = u64::from(config.data.sequence_length);
        let batches = Batches::new(&config.batch);
        let total_steps = batches.steps_of(config.run.length, sequence_length);
        Planner {
            learning_rate: LearningRate::new(config.learning_rate.schedule, total_steps),
            batches,
            validate_every: config.validation.every,
            checkpoint_every: config.checkpoint.every,
            sequence_length,
            training_samples,
            total_steps,
        }
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Samples of the whole run.
    pub fn total_samples(&self) -> u64 {
        self.cursor_after(self.total_steps)
    }

    /// Samples that the first `steps` steps consume.
    pub fn cursor_after(&self, steps: u64) -> u64 {
        self.batches.samples_after(steps)
    }

    /// The plan of step `step` (1-based) that begins at sample `cursor`.
    pub fn plan(&self, step: u64, cursor: u64) -> Plan {
        let last = step == self.total_steps;
        Plan {
            step,
            learning_rate: self.learning_rate.at(step),
            micro_batches: self.batches.micro_batches(step),
            first_sample: cursor,
            samples: self.batches.samples(step),
            validate: last || (self.validate_every > 0 && step.is_multiple_of(self.validate_every)),
            last,
            version: FIRST_VERSION,
            checkpoint: !last && self.checkpoint_every > 0 && step.is_multiple_of(self.checkpoint_every),
        }
    }

    /// Every step of the run, in order.
    pub fn rows(&self) -> impl Iterator<Item = PlanRow> + '_ {
        let mut cursor = 0_u64;
        (1..=self.total_steps).map(move |step| {
            let plan = self.plan(step, cursor);
            cursor = cursor.saturating_add(plan.samples);
            let epochs = if self.training_samples == 0 {
                0.0
            } else {
                cursor as f64 / self.training_samples as f64
            };
            PlanRow {
                plan,
                samples: cursor,
                tokens: cursor.saturating_mul(self.sequence_length),
                epochs,
            }
        })
    }

    /// A sentence for every batch size that was rounded up to whole micro-batches.
    pub fn roundings(&self) -> Vec<String> {
        self.batches.roundings()
    }
}

#[cfg(test)]
mod tests {
    use lockstep_config::{BatchSchedule, LearningRateSchedule, LearningRateShape, Length};
    use proptest::prelude::*;

    use super::*;

    pub(super) fn config() -> RunConfig {
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

    #[test]
    fn a_validation_falls_on_every_nth_step_and_on_the_last() {
        let mut config = config();
        config.validation.every = 4;
        let validated = |config: &RunConfig| -> Vec<u64> {
            Planner::new(config, 0)
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
        assert_eq!(Planner::new(&config, 0).total_steps(), 3);
        config.run.length = Length::Samples(16);
        assert_eq!(Planner::new(&config, 0).total_steps(), 2);
        config.run.length = Length::Tokens(16 * 16 + 1);
        let planner = Planner::new(&config, 48);
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
        let planner = Planner::new(&config, 0);
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
        assert_eq!(Planner::new(&config, 0).total_samples(), u64::MAX);
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
            config.learning_rate.schedule =
                LearningRateSchedule { peak: 1.0, warmup: 5, shape: LearningRateShape::Cosine { floor: 0.0 } };
            let planner = Planner::new(&config, 100);
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
            }
        }
    }
}

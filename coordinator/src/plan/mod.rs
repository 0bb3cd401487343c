//! What every step of a run does, as a pure function of config and cursor.
//!
//! Way of data: [`RunConfig`] → each schedule bound to the run's length (`curve`) → [`Planner`] (segments of the batch schedule,
//! total steps) → [`Plan`] of a step. The same planner serves the running coordinator and the preview before anything is paid
//! for. Sizes are rounded up to whole micro-batches; [`Planner::roundings`] says where that changed something, and `theory`
//! what is known of such schedules.

mod batch;
mod curve;
mod measure;
#[cfg(test)]
mod tests;
mod theory;

use std::sync::Arc;

use lockstep_config::{Coupling, Length, RunConfig, Schedule, Unit};
use lockstep_proto::domain::Plan;

use crate::changes::{Setting, Settings};

use crate::plan::batch::Batches;
use crate::plan::curve::Bound;
use crate::plan::measure::Measure;
pub use crate::plan::theory::{Terms, warnings};

/// Version of the schedule that a config alone makes; live changes will raise it.
const FIRST_VERSION: u64 = 1;
/// The largest number below 1.
const LARGEST_MOMENTUM: f64 = 1.0 - f64::EPSILON / 2.0;
/// Sentences about sizes that are rounded.
const ROUNDINGS: usize = 8;

/// Why a run cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// An epoch is a pass over data that is not there.
    #[error(
        "`{key}` counts epochs, and the data at `data.path` cannot be read to learn how long one is: prepare the data, or \
         count in steps, samples or tokens"
    )]
    EpochUnknown {
        /// The key.
        key: &'static str,
    },
    /// The batch depends on the run's length, which depends on the batch.
    #[error(
        "`batch.schedule` counts {unit} and lasts to the end of the run, whose length in {unit} depends on the batch: say \
         how long it lasts with `over`, or give it and the run's length the same unit"
    )]
    Circular {
        /// The unit.
        unit: &'static str,
    },
    /// The schedule has too many sizes.
    #[error("`batch.schedule` changes the size more than {most} times: let it grow in intervals (kind = \"growth\")")]
    TooManySizes {
        /// The most that are planned for.
        most: usize,
    },
}

/// Makes the plans of a run.
#[derive(Clone, Debug)]
pub struct Planner {
    config: Arc<RunConfig>,
    settings: Settings,
    batches: Batches,
    learning_rate: Value,
    coupling: Coupling,
    momentum: Option<Value>,
    weight_decay: Option<Value>,
    validate_every: u64,
    checkpoint_every: u64,
    sequence_length: u64,
    training_samples: u64,
    total_steps: u64,
}

/// A scheduled value.
#[derive(Clone, Debug)]
struct Value {
    measure: Measure,
    bound: Bound,
}

impl Value {
    fn at(&self, step: u64, cursor: u64, samples: u64) -> f64 {
        let done = self.measure.of(step.saturating_sub(1), cursor);
        self.bound.at(done, self.measure.of(1, samples))
    }
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
    ///
    /// # Errors
    /// Epochs are counted and their length is not known, or the batch has no schedule that can be laid out.
    pub fn new(config: &RunConfig, training_samples: u64) -> Result<Planner, PlanError> {
        Planner::begun(Arc::new(config.clone()), training_samples, Settings::default(), (0, 0))
    }

    /// The planner of the steps after the first `done` of this run, of which the next begins at sample `cursor`, with what
    /// operators changed: schedules that last to the end of the run last to its new end.
    ///
    /// # Errors
    /// The batch has no schedule that can be laid out from there on.
    pub fn changed(&self, settings: &Settings, done: u64, cursor: u64) -> Result<Planner, PlanError> {
        Planner::begun(
            Arc::clone(&self.config),
            self.training_samples,
            settings.clone(),
            (done, cursor),
        )
    }

    fn begun(
        config: Arc<RunConfig>,
        training_samples: u64,
        settings: Settings,
        begins: (u64, u64),
    ) -> Result<Planner, PlanError> {
        let measure = Measure {
            unit: Unit::Steps,
            sequence_length: u64::from(config.data.sequence_length),
            epoch: training_samples,
        };
        let length = settings.length.unwrap_or(config.run.length);
        if matches!(length, Length::Epochs(_)) && training_samples == 0 {
            return Err(PlanError::EpochUnknown { key: "run.epochs" });
        }
        let batches = Batches::new(&config.batch, (length, settings.batch_in_force()), measure, begins)?;
        let total_steps = batches.steps_of(length).max(begins.0);
        let total_samples = batches.samples_after(total_steps);
        let value = |key, schedule: &Schedule| {
            let measure = Measure {
                unit: schedule.unit,
                ..measure
            };
            measure.check(key, schedule)?;
            let horizon = measure.of(total_steps, total_samples);
            let bound = Bound::new(&schedule.curve, &measure, Some(horizon));
            let bound = bound.ok_or(PlanError::Circular {
                unit: schedule.unit.word(),
            })?;
            Ok(Value { measure, bound })
        };
        Ok(Planner {
            learning_rate: value("learning_rate.schedule", &config.learning_rate.schedule)?,
            coupling: config.learning_rate.coupling,
            momentum: (config.momentum.as_ref())
                .map(|schedule| value("momentum.schedule", schedule))
                .transpose()?,
            weight_decay: (config.weight_decay.as_ref())
                .map(|schedule| value("weight_decay.schedule", schedule))
                .transpose()?,
            batches,
            validate_every: settings.validate_every.unwrap_or(config.validation.every),
            checkpoint_every: settings.checkpoint_every.unwrap_or(config.checkpoint.every),
            sequence_length: measure.sequence_length,
            training_samples,
            total_steps,
            settings,
            config,
        })
    }

    /// The config.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// How long the config says that the run is.
    pub fn length(&self) -> Length {
        self.config.run.length
    }

    /// Whether the optimiser's momentum may be another one in another step.
    ///
    /// # Errors
    /// Why not, as a part of a sentence.
    pub fn may_change_momentum(&self) -> Result<(), &'static str> {
        self.config.optimizer.may_change_momentum()
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
        let micro_batches = self.batches.micro_batches(step, cursor);
        let samples = u64::from(micro_batches) * self.batches.micro_batch();
        let value = |value: &Value| value.at(step, cursor, samples);
        let coupled = match self.coupling {
            Coupling::None => None,
            Coupling::Linear { base } => Some(samples as f64 / base),
            Coupling::SquareRoot { base } => Some((samples as f64 / base).sqrt()),
        };
        let rate = value(&self.learning_rate);
        let rate = coupled.map_or(rate, |factor| rate * factor);
        let optimizer = &self.config.optimizer;
        // A value that nobody schedules and nobody changed is left to the config.
        let changed = |setting, scheduled: Option<f64>, configured: f64, most: f64| match setting {
            Setting::Schedule => scheduled,
            Setting::Value(value) => Some(value),
            Setting::Factor(factor) => Some((scheduled.unwrap_or(configured) * factor).min(most)),
        };
        Plan {
            step,
            learning_rate: match self.settings.learning_rate {
                Setting::Schedule => rate,
                Setting::Value(value) => value,
                Setting::Factor(factor) => rate * factor,
            },
            micro_batches,
            first_sample: cursor,
            samples,
            validate: last || (self.validate_every > 0 && step.is_multiple_of(self.validate_every)),
            last,
            version: FIRST_VERSION,
            checkpoint: !last && self.checkpoint_every > 0 && step.is_multiple_of(self.checkpoint_every),
            momentum: changed(
                self.settings.momentum,
                self.momentum.as_ref().map(value),
                optimizer.momentum,
                LARGEST_MOMENTUM,
            ),
            weight_decay: changed(
                self.settings.weight_decay,
                self.weight_decay.as_ref().map(value),
                optimizer.weight_decay,
                f64::MAX,
            ),
            stop: false,
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
        self.batches.roundings(ROUNDINGS)
    }
}

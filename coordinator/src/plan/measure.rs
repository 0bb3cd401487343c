//! What a schedule counts, in whole numbers: steps, or samples, or tokens; an epoch counts its samples.

use lockstep_config::{Length, Schedule, Unit};

use crate::plan::PlanError;

/// How a run counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measure {
    pub(super) unit: Unit,
    pub(super) sequence_length: u64,
    /// Samples of one epoch; 0 where it is not known.
    pub(super) epoch: u64,
}

impl Measure {
    /// A length of a schedule, in counts; at least 1 unless it is 0.
    pub(super) fn counts(&self, length: f64) -> u64 {
        match self.unit {
            // A float beyond the range of u64 becomes its largest value.
            Unit::Epochs if length > 0.0 => ((length * self.epoch as f64).round() as u64).max(1),
            _ => length as u64,
        }
    }

    /// Counts that `steps` steps with `samples` samples make.
    pub(super) fn of(&self, steps: u64, samples: u64) -> u64 {
        match self.unit {
            Unit::Steps => steps,
            Unit::Samples | Unit::Epochs => samples,
            Unit::Tokens => samples.saturating_mul(self.sequence_length),
        }
    }

    /// The counts of a run's length, where it can be said without knowing the batch.
    pub(super) fn of_length(&self, length: Length) -> Option<u64> {
        match (self.unit, length) {
            (Unit::Steps, Length::Steps(steps)) => Some(steps),
            (Unit::Steps, _) | (_, Length::Steps(_)) => None,
            _ => Some(self.of(0, samples_of(length, self.sequence_length, self.epoch)?)),
        }
    }

    /// Refuses epochs where nobody knows how long one is.
    pub(super) fn check(&self, what: &'static str, schedule: &Schedule) -> Result<(), PlanError> {
        match (schedule.unit, self.epoch) {
            (Unit::Epochs, 0) => Err(PlanError::EpochUnknown { key: what }),
            _ => Ok(()),
        }
    }
}

/// Samples of a length that is not said in steps.
pub(super) fn samples_of(length: Length, sequence_length: u64, epoch: u64) -> Option<u64> {
    match length {
        Length::Steps(_) => None,
        Length::Samples(samples) => Some(samples),
        Length::Tokens(tokens) => Some(tokens.div_ceil(sequence_length.max(1))),
        Length::Epochs(epochs) => Some(((epochs * epoch as f64).ceil() as u64).max(1)),
    }
}

//! What is changed while a run trains, by operators or by the policy of the batch, and from which step on. Pure.
//!
//! Way of data: an operator's, or the policy's, [`Ask`] → the machine gives it the next number and the first step that is not issued → the
//! ledger keeps the [`Change`] → [`Changes`] say which planner makes the plan of a step. A change never touches a plan that was
//! issued before it. After a rewind it holds for every step that is made anew, also for those before its own: what
//! operators want stands. What the policy decided after the step that the run goes back to is taken back by another change.

use std::sync::Arc;

use lockstep_config::Length;
use serde::{Deserialize, Serialize};

use crate::adaptive::Adapted;
use crate::branches::Branches;
use crate::plan::{PlanError, Planner};

/// What a value is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Setting {
    /// As the config's schedule says.
    #[default]
    Schedule,
    /// This, whatever the schedule says.
    Value(f64),
    /// The schedule's, times this.
    Factor(f64),
}

/// What an operator asks for. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// The learning rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<Setting>,
    /// The batch in samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Setting>,
    /// The momentum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum: Option<Setting>,
    /// The weight decay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<Setting>,
    /// Validate every so many steps; 0: only at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validate_every: Option<u64>,
    /// Write a checkpoint every so many steps; 0: only when the run stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// Make the run longer by this, in the unit of its length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extend: Option<Extension>,
    /// Stop after this step; 0: after no step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_at: Option<u64>,
    /// Do not train so many of the next samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_samples: Option<u64>,
    /// What the policy of the batch decided. It stands back behind a batch that operators ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapted: Option<Adapted>,
}

/// By how much a run is made longer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Extension {
    /// Steps.
    Steps(u64),
    /// Samples.
    Samples(u64),
    /// Tokens.
    Tokens(u64),
    /// Passes over the training data.
    Epochs(f64),
}

impl Extension {
    /// The length with this added; none where it counts something else.
    fn added_to(self, length: Length) -> Option<Length> {
        Some(match (self, length) {
            (Extension::Steps(more), Length::Steps(steps)) => Length::Steps(steps.saturating_add(more)),
            (Extension::Samples(more), Length::Samples(samples)) => Length::Samples(samples.saturating_add(more)),
            (Extension::Tokens(more), Length::Tokens(tokens)) => Length::Tokens(tokens.saturating_add(more)),
            (Extension::Epochs(more), Length::Epochs(epochs)) => Length::Epochs(epochs + more),
            _ => return None,
        })
    }
}

/// A change that was decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// 1 for the first of the run.
    pub number: u64,
    /// The branch whose steps were made then.
    pub branch: u64,
    /// The first step that it holds for: none of its plan was issued.
    pub from_step: u64,
    /// Where that step would have begun.
    pub cursor: u64,
    /// What was asked for.
    pub ask: Ask,
}

impl Change {
    /// The first sample of its first step.
    fn begins(&self) -> u64 {
        self.cursor.saturating_add(self.ask.skip_samples.unwrap_or(0))
    }

    /// The row key of its first step's plan.
    fn key(&self) -> u64 {
        Branches::key_of(self.branch, self.from_step)
    }
}

/// What is changed in a run at some point of it: the newest of each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// The learning rate.
    pub learning_rate: Setting,
    /// The batch in samples.
    pub batch: Setting,
    /// The momentum.
    pub momentum: Setting,
    /// The weight decay.
    pub weight_decay: Setting,
    /// When to validate.
    pub validate_every: Option<u64>,
    /// When to write checkpoints.
    pub checkpoint_every: Option<u64>,
    /// The length, where it is another one.
    pub length: Option<Length>,
    /// The batch that the policy has decided on, samples.
    pub adapted: Option<u64>,
}

impl Settings {
    /// The batch, with what the policy made of the schedule's.
    pub fn batch_in_force(&self) -> Setting {
        match (self.batch, self.adapted) {
            (Setting::Schedule, Some(adapted)) => Setting::Value(adapted as f64),
            (Setting::Factor(factor), Some(adapted)) => Setting::Value(adapted as f64 * factor),
            (setting, _) => setting,
        }
    }

    fn take(&mut self, ask: &Ask, configured: Length) -> Result<(), ChangeError> {
        let newest = |setting: &mut Setting, asked: Option<Setting>| *setting = asked.unwrap_or(*setting);
        newest(&mut self.learning_rate, ask.learning_rate);
        newest(&mut self.batch, ask.batch);
        newest(&mut self.momentum, ask.momentum);
        newest(&mut self.weight_decay, ask.weight_decay);
        if let Some(adapted) = ask.adapted {
            self.adapted = adapted.batch;
        }
        self.validate_every = ask.validate_every.or(self.validate_every);
        self.checkpoint_every = ask.checkpoint_every.or(self.checkpoint_every);
        if let Some(extension) = ask.extend {
            let length = self.length.unwrap_or(configured);
            let longer = extension.added_to(length).ok_or(ChangeError::OtherUnit {
                unit: unit_of(configured),
            })?;
            self.length = Some(longer);
        }
        Ok(())
    }
}

fn unit_of(length: Length) -> &'static str {
    match length {
        Length::Steps(_) => "steps",
        Length::Samples(_) => "samples",
        Length::Tokens(_) => "tokens",
        Length::Epochs(_) => "epochs",
    }
}

/// Why a change cannot be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ChangeError {
    /// The run's length counts something else.
    #[error("the run's length is said in {unit}: add {unit} to it")]
    OtherUnit {
        /// The unit of `[run]`.
        unit: &'static str,
    },
    /// The value is not one that the quantity may have.
    #[error("{what} {value} is not possible: {expected}")]
    OutOfRange {
        /// What.
        what: &'static str,
        /// The value.
        value: f64,
        /// What may be.
        expected: &'static str,
    },
    /// The optimiser has no momentum that may change.
    #[error("the momentum stays as it is: {0}")]
    FixedMomentum(&'static str),
    /// Nothing was asked for.
    #[error("nothing is asked for: name at least one value")]
    Nothing,
    /// The schedules cannot be followed from there on.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Every change of a run so far, in order, each with the planner from it on. A copy costs next to nothing, and neither the plan
/// of a step nor a dry run costs more where there are many.
#[derive(Clone, Debug)]
pub struct Changes {
    first: Arc<Planner>,
    settings: Settings,
    changes: Vec<Arc<(Change, Planner)>>,
    /// The samples that operators want to be skipped: where that begins, and what comes next.
    skips: Vec<(u64, u64)>,
    /// The step that was named last to stop after, and the branch of then.
    stop: Option<(u64, u64)>,
}

impl Changes {
    /// None yet.
    pub fn none(first: Planner) -> Changes {
        Changes {
            first: Arc::new(first),
            settings: Settings::default(),
            changes: Vec::new(),
            skips: Vec::new(),
            stop: None,
        }
    }

    /// Those of a ledger.
    ///
    /// # Errors
    /// One of them cannot be made.
    pub fn of(first: Planner, changes: impl IntoIterator<Item = Change>) -> Result<Changes, ChangeError> {
        let mut all = Changes::none(first);
        for change in changes {
            all.make(change)?;
        }
        Ok(all)
    }

    /// The batch that the policy has decided on for the steps that come; none: the schedule's.
    pub fn adapted(&self) -> Option<u64> {
        self.settings.adapted
    }

    /// The changes, in order.
    pub fn all(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.changes.iter().map(|made| &made.0)
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.changes.len() as u64
    }

    /// The planner of the steps that come.
    pub fn newest(&self) -> &Planner {
        self.changes.last().map_or(&*self.first, |made| &made.1)
    }

    /// The planner that made, or makes, the plan of a row, and how many changes it knows of.
    pub fn at(&self, key: u64) -> (&Planner, u64) {
        // Changes are decided in the order of keys: both rise.
        let before = self.changes.partition_point(|made| made.0.key() <= key);
        let planner = before.checked_sub(1).map(|last| &self.changes[last].1);
        (planner.unwrap_or(&*self.first), before as u64)
    }

    /// Adds a change.
    ///
    /// # Errors
    /// It asks for nothing, for a value out of range, or for schedules that cannot be followed. Then nothing is changed.
    pub fn make(&mut self, change: Change) -> Result<(), ChangeError> {
        check(&change.ask, &self.first)?;
        let mut settings = self.settings.clone();
        settings.take(&change.ask, self.first.length())?;
        let done = change.from_step.saturating_sub(1);
        let planner = self.first.changed(&settings, done, change.begins())?;
        self.settings = settings;
        if change.ask.skip_samples.is_some() {
            self.skips.push((change.cursor, change.begins()));
        }
        if let Some(step) = change.ask.stop_at {
            self.stop = Some((step, change.branch));
        }
        self.changes.push(Arc::new((change, planner)));
        Ok(())
    }

    /// Where the next plan begins, if the one before ended at `cursor`: behind what operators want to be skipped.
    pub fn skip(&self, cursor: u64) -> u64 {
        self.skips.iter().fold(
            cursor,
            |cursor, (from, begins)| if *from == cursor { *begins } else { cursor },
        )
    }

    /// The step after which operators want the run to stop, if that is not issued yet. A run that has stopped there once, and
    /// went back before it later, does not stop there again.
    pub fn stops_at(&self, issued_through: u64, branches: &Branches) -> Option<u64> {
        let (newest, since) = self.stop?;
        (newest > issued_through && !branches.has_stopped_after(newest, since)).then_some(newest)
    }
}

/// Refuses values that no schedule could have.
fn check(ask: &Ask, planner: &Planner) -> Result<(), ChangeError> {
    if *ask == Ask::default() {
        return Err(ChangeError::Nothing);
    }
    type Range = (&'static str, &'static str, fn(f64) -> bool);
    const POSITIVE: fn(f64) -> bool = |value| value > 0.0 && value.is_finite();
    let ranges: [(Option<Setting>, Range); 4] = [
        (ask.learning_rate, ("a learning rate of", "it is above 0", POSITIVE)),
        (
            ask.batch,
            ("a batch of", "it is a whole number from 1 to 16777216", |value| {
                (1.0..=16_777_216.0).contains(&value) && value.fract() == 0.0
            }),
        ),
        (
            ask.momentum,
            ("a momentum of", "it is at least 0 and below 1", |value| {
                (0.0..1.0).contains(&value)
            }),
        ),
        (
            ask.weight_decay,
            ("a weight decay of", "it is at least 0", |value| {
                value >= 0.0 && value.is_finite()
            }),
        ),
    ];
    for (setting, (what, expected, is_allowed)) in ranges {
        match setting {
            Some(Setting::Value(value)) if !is_allowed(value) => {
                return Err(ChangeError::OutOfRange { what, value, expected });
            }
            Some(Setting::Factor(value)) if !POSITIVE(value) => {
                return Err(ChangeError::OutOfRange {
                    what: "a factor of",
                    value,
                    expected: "it is above 0",
                });
            }
            _ => {}
        }
    }
    if let (Some(_), Err(reason)) = (ask.momentum, planner.may_change_momentum()) {
        return Err(ChangeError::FixedMomentum(reason));
    }
    let is_possible = match ask.extend {
        Some(Extension::Steps(more) | Extension::Samples(more) | Extension::Tokens(more)) => more > 0,
        Some(Extension::Epochs(more)) => POSITIVE(more),
        None => true,
    };
    if !is_possible || ask.skip_samples == Some(0) {
        return Err(ChangeError::OutOfRange {
            what: "a number of",
            value: 0.0,
            expected: "it is above 0",
        });
    }
    Ok(())
}

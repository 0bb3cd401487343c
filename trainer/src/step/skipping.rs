//! What becomes of a step whose loss or gradient cannot be used: it stops the run, it is skipped, or the run goes back.
//!
//! Data flows: what the first exchange says of the step ([`Finding`]) → [`Policy::rule`], with what is known of the losses
//! so far ([`LossRecord`]) → [`Ruling`]. All of it comes from exchanged slots and from state that every rank holds alike, so
//! that all ranks rule alike.
//!
//! A skipped step changes nothing that is trained: parameters, momentum, the optimiser's count of steps and the model of the
//! loss stay as they were. Its samples count as consumed, and the learning rate goes on along its schedule. Where the run is to
//! go back, no rank makes the step: the coordinator decides how far, and changes the plan.

use std::time::Instant;

use lockstep_config::{FaultSection, OnNotFinite, OnSpike};

use crate::error::TrainerError;
use crate::step::slots::StepTotals;
use crate::step::{Clock, Engine, StepOutcome};

/// The weight of a new loss in mean and variance, once so many are there: half of the mean is of the last 44 losses.
const NEWEST: f64 = 1.0 / 64.0;
/// Before so many accepted steps nothing is a spike: too little is known, and the first losses fall fast.
const FEW: u32 = 16;
/// A deviation below this part of the mean counts as this part: losses that are all but equal make no spikes.
const LEAST_DEVIATION: f64 = 1e-3;

/// What is known of the losses of the steps so far. Part of the state of the run, equal on every rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossRecord {
    /// Steps that were accepted.
    accepted: u32,
    /// The smoothed mean of their losses, nats a token.
    mean: f64,
    /// The smoothed mean square of their distances from it.
    variance: f64,
    /// Steps that were skipped since the last accepted one.
    skips: u32,
}

impl LossRecord {
    /// Its bits, for snapshots.
    pub fn to_words(self) -> [u64; 4] {
        let counts = [self.accepted, self.skips].map(u64::from);
        [counts[0], self.mean.to_bits(), self.variance.to_bits(), counts[1]]
    }

    /// The record of these bits.
    pub fn of_words([accepted, mean, variance, skips]: [u64; 4]) -> LossRecord {
        let count = |word: u64| u32::try_from(word).unwrap_or(u32::MAX);
        LossRecord {
            accepted: count(accepted),
            mean: f64::from_bits(mean),
            variance: f64::from_bits(variance),
            skips: count(skips),
        }
    }

    /// How far a loss lies above the mean, in deviations; none while too few losses are known.
    fn deviations(&self, loss: f64) -> Option<f64> {
        let deviation = self.variance.sqrt().max(LEAST_DEVIATION * self.mean.abs());
        (self.accepted >= FEW).then(|| (loss - self.mean) / deviation)
    }

    fn accept(&mut self, loss: f64) {
        let weight = (1.0 / (f64::from(self.accepted) + 1.0)).max(NEWEST);
        let distance = loss - self.mean;
        self.mean += weight * distance;
        self.variance = (1.0 - weight) * (self.variance + weight * distance * distance);
        self.accepted = self.accepted.saturating_add(1);
        self.skips = 0;
    }
}

/// What the first exchange of a step says of its numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// Loss and gradient are finite.
    Finite {
        /// Mean loss, nats a token.
        loss: f64,
    },
    /// They are not: what, and where.
    NotFinite(String),
}

/// What becomes of a step. Nothing has changed when it is made.
#[derive(Clone, Debug, PartialEq)]
pub enum Ruling {
    /// It is made.
    Go,
    /// It is reported and changes nothing, for this reason.
    Skip(String),
    /// The run goes back to a step before it, for this reason.
    Rewind(String),
    /// The run ends, with this sentence.
    Stop(String),
}

/// What a policy says of a step that cannot be used.
enum Then {
    Stop,
    Skip,
    Rewind,
}

/// The policies of `[fault]` about steps.
#[derive(Clone, Debug)]
pub struct Policy {
    on_not_finite: OnNotFinite,
    on_spike: OnSpike,
    sigmas: f64,
    max_skips: u32,
}

impl Policy {
    /// The policies of a config.
    pub fn of(fault: &FaultSection) -> Policy {
        Policy {
            on_not_finite: fault.on_not_finite,
            on_spike: fault.on_spike,
            sigmas: fault.spike_sigmas,
            max_skips: fault.max_skips,
        }
    }

    /// Rules on step `step`, and notes in the record what became of it.
    pub fn rule(&self, step: u64, finding: Finding, record: &mut LossRecord) -> Ruling {
        const UNCHANGED: &str = "no parameter has changed";
        let (reason, advice, then) = match finding {
            Finding::NotFinite(what) => (
                format!("step {step}: {what}"),
                "Try a lower learning rate or set optimizer.clip_norm; fault.on_not_finite = \"skip\" leaves such steps out",
                match self.on_not_finite {
                    OnNotFinite::Stop => Then::Stop,
                    OnNotFinite::Skip => Then::Skip,
                    OnNotFinite::Rewind => Then::Rewind,
                },
            ),
            Finding::Finite { loss } => {
                let far = record.deviations(loss).filter(|far| *far > self.sigmas);
                let Some(far) = far.filter(|_| self.on_spike != OnSpike::Off) else {
                    record.accept(loss);
                    return Ruling::Go;
                };
                let mean = record.mean;
                (
                    format!(
                        "step {step}: the loss is {loss:.4}, {far:.1} deviations above the mean {mean:.4} of the steps before it (fault.spike_sigmas = {})",
                        self.sigmas
                    ),
                    "Look at its samples, or lower the learning rate; fault.on_spike = \"skip\" leaves such steps out",
                    match self.on_spike {
                        OnSpike::Off | OnSpike::Stop => Then::Stop,
                        OnSpike::Skip => Then::Skip,
                        OnSpike::Rewind => Then::Rewind,
                    },
                )
            }
        };
        match then {
            Then::Stop => return Ruling::Stop(format!("{reason}; {UNCHANGED}. {advice}")),
            Then::Rewind => return Ruling::Rewind(reason),
            Then::Skip => {}
        }
        if record.skips >= self.max_skips {
            return Ruling::Stop(format!(
                "{reason}; the {} steps before it were skipped too, and fault.max_skips allows no more in a row; {UNCHANGED}. Lower the learning rate, or go back to an older checkpoint",
                record.skips
            ));
        }
        record.skips += 1;
        Ruling::Skip(reason)
    }
}

impl Engine {
    /// Ends a step that changes nothing. A collective, as a step is.
    pub(super) fn skip(
        &mut self,
        reason: String,
        totals: &StepTotals,
        (began, mut clock): (Instant, Clock),
    ) -> Result<StepOutcome, TrainerError> {
        let parameter_hash = match self.known_hash {
            Some(hash) => hash,
            None => self.parameter_hash()?,
        };
        clock.hidden(self.communication.take_shares());
        Ok(StepOutcome {
            loss: totals.loss,
            tokens: totals.tokens,
            grad_norm: totals.grad_norm,
            noise: None,
            update_norm: 0.0,
            parameter_hash,
            directive: totals.directive,
            effective_learning_rate: 0.0,
            model: None,
            dual_norm: None,
            polar_factors: 0,
            orthogonality: None,
            skipped: Some(reason),
            phases: clock.phases,
            step_ms: began.elapsed().as_secs_f64() * 1e3,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(on_not_finite: OnNotFinite, on_spike: OnSpike) -> Policy {
        Policy::of(&FaultSection {
            on_not_finite,
            on_spike,
            max_skips: 2,
            ..FaultSection::default()
        })
    }

    /// A record of 100 losses about 3, which spread by 0.1.
    fn record(policy: &Policy) -> LossRecord {
        let mut record = LossRecord::default();
        for step in 0..100 {
            let loss = 3.0 + if step % 2 == 0 { 0.1 } else { -0.1 };
            assert_eq!(policy.rule(step, Finding::Finite { loss }, &mut record), Ruling::Go);
        }
        record
    }

    #[test]
    fn mean_and_deviation_are_those_of_the_losses() {
        let record = record(&policy(OnNotFinite::Stop, OnSpike::Skip));
        assert!((record.mean - 3.0).abs() < 0.01, "{record:?}");
        assert!((record.variance.sqrt() - 0.1).abs() < 0.01, "{record:?}");
        assert_eq!(LossRecord::of_words(record.to_words()), record);
    }

    #[test]
    fn a_loss_far_above_the_mean_is_a_spike_and_one_far_below_is_none() {
        let policy = policy(OnNotFinite::Stop, OnSpike::Skip);
        let mut record = record(&policy);
        let before = record;
        let Ruling::Skip(reason) = policy.rule(101, Finding::Finite { loss: 3.8 }, &mut record) else {
            panic!("{record:?}");
        };
        assert!(
            reason.starts_with("step 101: the loss is 3.8000, 8.0 deviations above"),
            "{reason}"
        );
        assert_eq!(record, LossRecord { skips: 1, ..before }, "it is no part of the mean");
        assert_eq!(policy.rule(102, Finding::Finite { loss: 0.1 }, &mut record), Ruling::Go);
        assert_eq!(record.skips, 0);
    }

    #[test]
    fn without_a_policy_or_before_much_is_known_there_is_no_spike() {
        let off = policy(OnNotFinite::Skip, OnSpike::Off);
        assert_eq!(
            off.rule(101, Finding::Finite { loss: 99.0 }, &mut record(&off)),
            Ruling::Go
        );
        let stop = policy(OnNotFinite::Skip, OnSpike::Stop);
        let mut young = LossRecord::default();
        for loss in [3.0, 3.0, 99.0] {
            assert_eq!(stop.rule(1, Finding::Finite { loss }, &mut young), Ruling::Go);
        }
        let Ruling::Stop(sentence) = stop.rule(101, Finding::Finite { loss: 99.0 }, &mut record(&stop)) else {
            panic!("it went on");
        };
        assert!(sentence.contains("no parameter has changed"), "{sentence}");
    }

    #[test]
    fn so_many_steps_in_a_row_may_be_skipped_and_no_more() {
        let policy = policy(OnNotFinite::Skip, OnSpike::Off);
        let mut record = LossRecord::default();
        let bad = || Finding::NotFinite("the loss is NaN".to_owned());
        for good in [false, false, true, false, false] {
            let ruling = match good {
                true => policy.rule(1, Finding::Finite { loss: 1.0 }, &mut record),
                false => policy.rule(1, bad(), &mut record),
            };
            assert_eq!(ruling == Ruling::Go, good, "{ruling:?}");
            assert!(!matches!(ruling, Ruling::Stop(_)), "{ruling:?}");
        }
        let Ruling::Stop(sentence) = policy.rule(6, bad(), &mut record) else {
            panic!("it went on");
        };
        assert!(
            sentence.contains("the 2 steps before it were skipped too"),
            "{sentence}"
        );
    }
}

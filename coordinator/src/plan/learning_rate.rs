//! Learning rates by step.
//!
//! Step s of the warm-up takes peak·s/warmup, so the last warm-up step takes the peak. After it, a decay over D
//! steps takes in its k-th step (k = 0 … D−1) the value at k/D: it begins at the peak and would reach the floor with
//! the step after the last, so that no step of a run is spent at a floor of 0.

use std::f64::consts::PI;

use lockstep_config::{LearningRateSchedule, LearningRateShape};

/// A schedule bound to the length of the run.
#[derive(Clone, Debug)]
pub(super) struct LearningRate {
    schedule: LearningRateSchedule,
    total_steps: u64,
}

impl LearningRate {
    pub(super) fn new(schedule: LearningRateSchedule, total_steps: u64) -> LearningRate {
        LearningRate { schedule, total_steps }
    }

    /// The learning rate of step `step` (1-based).
    pub(super) fn at(&self, step: u64) -> f64 {
        let LearningRateSchedule { peak, warmup, shape } = self.schedule;
        if step <= warmup {
            return peak * (step as f64 / warmup as f64);
        }
        let after_warmup = self.total_steps.saturating_sub(warmup);
        match shape {
            LearningRateShape::Constant => peak,
            LearningRateShape::Cosine { floor } => {
                let t = self.progress(step, after_warmup);
                peak * (floor + (1.0 - floor) * 0.5 * (1.0 + (PI * t).cos()))
            }
            LearningRateShape::Linear { floor } => peak * linear(floor, self.progress(step, after_warmup)),
            LearningRateShape::WarmupStableDecay { floor, decay } => {
                // `decay` is in (0, 1], so the product is at most the number of steps.
                let steps = ((decay * self.total_steps as f64).round() as u64).min(after_warmup);
                if step + steps <= self.total_steps {
                    peak
                } else {
                    peak * linear(floor, self.progress(step, steps))
                }
            }
        }
    }

    /// How much of a decay over the last `steps` steps of the run is done before `step`, in [0, 1].
    fn progress(&self, step: u64, steps: u64) -> f64 {
        let before = (step - 1).saturating_sub(self.total_steps.saturating_sub(steps));
        if steps == 0 {
            0.0
        } else {
            (before as f64 / steps as f64).min(1.0)
        }
    }
}

fn linear(floor: f64, t: f64) -> f64 {
    floor + (1.0 - floor) * (1.0 - t)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(warmup: u64, shape: LearningRateShape, steps: u64) -> Vec<f64> {
        let schedule = LearningRateSchedule {
            peak: 8.0,
            warmup,
            shape,
        };
        let rate = LearningRate::new(schedule, steps);
        (1..=steps).map(|step| (rate.at(step) * 1e6).round() / 1e6).collect()
    }

    #[test]
    fn a_warm_up_rises_in_a_straight_line_to_the_peak() {
        assert_eq!(rates(4, LearningRateShape::Constant, 6), [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]);
        assert_eq!(rates(10, LearningRateShape::Cosine { floor: 0.0 }, 2), [0.8, 1.6]);
    }

    #[test]
    fn linear_falls_from_the_peak_and_would_reach_the_floor_after_the_last_step() {
        assert_eq!(
            rates(0, LearningRateShape::Linear { floor: 0.0 }, 4),
            [8.0, 6.0, 4.0, 2.0]
        );
        assert_eq!(
            rates(1, LearningRateShape::Linear { floor: 0.5 }, 5),
            [8.0, 8.0, 7.0, 6.0, 5.0]
        );
    }

    #[test]
    fn cosine_is_half_way_down_in_the_middle() {
        let rates = rates(0, LearningRateShape::Cosine { floor: 0.25 }, 4);
        assert_eq!((rates[0], rates[2]), (8.0, 5.0));
        assert!(rates.windows(2).all(|pair| pair[0] > pair[1]), "{rates:?}");
    }

    #[test]
    fn warmup_stable_decay_stays_at_the_peak_until_its_last_part() {
        let shape = LearningRateShape::WarmupStableDecay { floor: 0.0, decay: 0.4 };
        assert_eq!(rates(2, shape, 10), [4.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 6.0, 4.0, 2.0]);
        let whole = LearningRateShape::WarmupStableDecay { floor: 0.5, decay: 1.0 };
        assert_eq!(rates(1, whole, 3), [8.0, 8.0, 6.0]);
    }
}

//! The noise of the gradient, and the batch that follows from it. Pure.
//!
//! Way of data: the metrics of each committed step of the live branch, in order → an [`Observation`] → [`Policy::observe`], which
//! smooths the noise and, after every `every`-th step, decides on the batch → [`Policy::at`] says which decision holds for a step
//! that is about to be planned. A decision after step d holds from step d + `every` + 1 on, and no plan beyond
//! [`Policy::known_through`] is issued before it is made: so the batch of a step follows from the steps before it and from nothing
//! else, on any world, through any failure, and however far ahead plans are issued.
//!
//! The noise scale is tr σ²/‖G‖² (McCandlish et al., arXiv 1812.06162): the batch, in samples, at which the noise of a step's
//! gradient is as large as the gradient. Numerator and denominator are smoothed on their own, since the mean of their ratio is
//! not the ratio of their means.

use lockstep_config::{AdaptiveBy, AdaptiveSection, BatchSchedule, RunConfig};
use lockstep_proto::domain::{Plan, StepMetrics};
use serde::{Deserialize, Serialize};

/// Steps over which the noise is smoothed where nothing is said.
const SMOOTH: u64 = 100;
/// By how much another batch must be better in goodput than the present one.
const MARGIN: f64 = 0.05;
/// Phases whose time grows with the micro-batches of a step.
const GROWING: [&str; 4] = ["data", "forward", "backward", "lanes"];

/// What a committed step says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observation {
    /// tr σ² and ‖G‖², where the step measured them.
    pub noise: Option<(f64, f64)>,
    /// Milliseconds of the step that do not depend on its batch.
    pub fixed_ms: f64,
    /// The others, by sample.
    pub sample_ms: f64,
}

impl Observation {
    /// What a step's plan and metrics say.
    pub fn of(plan: &Plan, metrics: &StepMetrics) -> Observation {
        let is_number = |(variance, square): &(f64, f64)| variance.is_finite() && square.is_finite();
        let grows = |name: &str| GROWING.contains(&name.strip_suffix("_ms").unwrap_or(name));
        let growing: f64 = (metrics.phases.iter())
            .filter(|(name, ms)| grows(name) && ms.is_finite())
            .map(|(_, ms)| ms)
            .sum();
        Observation {
            noise: metrics.gradient_variance.zip(metrics.gradient_square).filter(is_number),
            fixed_ms: (metrics.step_ms - growing).max(0.0),
            sample_ms: growing.max(0.0) / plan.samples.max(1) as f64,
        }
    }
}

/// A number that follows others slowly: each counts 1/n of those before it, and the first ones are not lost in zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Smoothed {
    sum: f64,
    weight: f64,
}

impl Smoothed {
    fn push(&mut self, value: f64, over: u64) {
        let newest = 1.0 / over.max(1) as f64;
        self.sum += newest * (value - self.sum);
        self.weight += newest * (1.0 - self.weight);
    }

    fn value(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

/// A decision on the batch, with the figures that it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adapted {
    /// The batch in samples; none: as the schedule says, since the decision that changed it was left behind by a rewind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// The step after which it was decided.
    pub after_step: u64,
    /// The batch before.
    pub before: u64,
    /// tr σ², smoothed.
    pub variance: f64,
    /// ‖G‖², smoothed; where it is not above zero the noise scale is beyond measure.
    pub square: f64,
    /// Milliseconds of a step that do not depend on the batch, and those of one sample, smoothed, where speed counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<(f64, f64)>,
}

impl Adapted {
    /// One sentence.
    pub fn sentence(&self, from_step: u64) -> String {
        let Some(batch) = self.batch else {
            return format!(
                "the batch is {} samples again from step {from_step} on: the decision that changed it was left behind",
                self.before
            );
        };
        let noise = match noise_scale(self.variance, self.square) {
            Some(scale) => format!(
                "the gradient noise scale after step {} is {scale:.1} samples",
                self.after_step
            ),
            None => format!(
                "after step {} the gradient cannot be told from its noise (tr σ² {:.3e}, ‖G‖² {:.3e})",
                self.after_step, self.variance, self.square
            ),
        };
        let speed = self.speed.map_or_else(String::new, |(fixed, sample)| {
            format!(", a step takes {fixed:.2} ms and {sample:.3} ms a sample")
        });
        let way = if batch > self.before { "grows" } else { "shrinks" };
        format!(
            "{noise}{speed}: the batch {way} from {} to {batch} samples from step {from_step} on",
            self.before
        )
    }
}

/// Samples; none where the gradient is not larger than nothing.
fn noise_scale(variance: f64, square: f64) -> Option<f64> {
    (square > 0.0 && variance >= 0.0)
        .then(|| variance / square)
        .filter(|scale| scale.is_finite())
}

/// Up, down, or neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Way {
    Up,
    Down,
    #[default]
    Stay,
}

/// The smoothed noise of a run, and what was decided from it. A pure function of the steps that it observed.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    section: Option<AdaptiveSection>,
    /// The batch to begin with, samples.
    first: u64,
    observed: u64,
    variance: Smoothed,
    square: Smoothed,
    fixed_ms: Smoothed,
    sample_ms: Smoothed,
    /// What the last decisions wanted, and how many in a row.
    wanted: (Way, u32),
    /// The first step of each decision, in order.
    decided: Vec<(u64, Adapted)>,
}

impl Policy {
    /// Of a run that has made no step.
    pub fn of(config: &RunConfig) -> Policy {
        let whole = u64::from(config.batch.micro_batch).max(1);
        let first = match config.batch.schedule {
            BatchSchedule::Constant { size } => size.div_ceil(whole) * whole,
            _ => 0,
        };
        Policy {
            section: config.batch.adaptive,
            first,
            observed: 0,
            variance: Smoothed::default(),
            square: Smoothed::default(),
            fixed_ms: Smoothed::default(),
            sample_ms: Smoothed::default(),
            wanted: (Way::Stay, 0),
            decided: Vec::new(),
        }
    }

    /// The policy as it was when no step was made.
    #[must_use]
    pub fn anew(&self) -> Policy {
        Policy {
            observed: 0,
            variance: Smoothed::default(),
            square: Smoothed::default(),
            fixed_ms: Smoothed::default(),
            sample_ms: Smoothed::default(),
            wanted: (Way::Stay, 0),
            decided: Vec::new(),
            ..*self
        }
    }

    /// The next committed step.
    pub fn observe(&mut self, seen: &Observation) {
        self.observed += 1;
        let over = self.section.map_or(SMOOTH, |section| section.smooth);
        if let Some((variance, square)) = seen.noise {
            self.variance.push(variance, over);
            self.square.push(square, over);
        }
        self.fixed_ms.push(seen.fixed_ms, over);
        self.sample_ms.push(seen.sample_ms, over);
        if let Some(section) = self.section
            && self.observed.is_multiple_of(section.every)
        {
            self.decide(&section);
        }
    }

    /// tr σ²/‖G‖², each smoothed over the steps so far; samples. None where nothing was measured, or the gradient is not larger
    /// than nothing.
    pub fn noise_scale(&self) -> Option<f64> {
        noise_scale(self.variance.value()?, self.square.value()?)
    }

    /// The last step whose batch is decided on; plans are issued no further.
    pub fn known_through(&self) -> u64 {
        self.section.map_or(u64::MAX, |section| {
            let last = self.observed - self.observed % section.every;
            last.saturating_add(section.every.saturating_mul(2))
        })
    }

    /// The decision that holds for a step; none: as the schedule says.
    pub fn at(&self, step: u64) -> Option<&Adapted> {
        let before = self.decided.partition_point(|(from, _)| *from <= step);
        Some(&self.decided[before.checked_sub(1)?].1)
    }

    /// What brings the batch back to the schedule's.
    pub fn back(&self, before: u64) -> Adapted {
        Adapted {
            batch: None,
            after_step: self.observed,
            before: if self.first > 0 { self.first } else { before },
            variance: self.variance.value().unwrap_or(0.0),
            square: self.square.value().unwrap_or(0.0),
            speed: None,
        }
    }

    fn decide(&mut self, section: &AdaptiveSection) {
        let (Some(variance), Some(square)) = (self.variance.value(), self.square.value()) else {
            return;
        };
        let batch = self
            .decided
            .last()
            .and_then(|(_, last)| last.batch)
            .unwrap_or(self.first);
        let larger = ((batch as f64 * section.growth).ceil() as u64).min(section.most);
        let smaller = ((batch as f64 / section.growth).floor() as u64).max(self.first);
        let scale = noise_scale(variance, square);
        let (fixed, sample) = (
            self.fixed_ms.value().unwrap_or(0.0),
            self.sample_ms.value().unwrap_or(0.0),
        );
        let way = match section.by {
            // Between the two there is room for the noise to move without the batch doing so.
            AdaptiveBy::Noise { target } => match scale {
                None if variance > 0.0 => Way::Up,
                None => Way::Stay,
                Some(scale) if scale * target >= batch as f64 * section.growth => Way::Up,
                Some(scale) if scale * target < batch as f64 / section.growth => Way::Down,
                Some(_) => Way::Stay,
            },
            AdaptiveBy::Goodput => {
                let good = |batch: u64| goodput(batch as f64, self.first as f64, scale, (fixed, sample));
                let enough = good(batch) * (1.0 + MARGIN);
                match (good(larger) > enough, good(smaller) > enough) {
                    (true, _) => Way::Up,
                    (false, true) => Way::Down,
                    (false, false) => Way::Stay,
                }
            }
        };
        let next = match way {
            Way::Up if larger > batch => larger,
            Way::Down if section.shrinks && smaller < batch => smaller,
            _ => {
                self.wanted = (Way::Stay, 0);
                return;
            }
        };
        let times = if self.wanted.0 == way { self.wanted.1 + 1 } else { 1 };
        self.wanted = (way, times);
        if times < section.patience {
            return;
        }
        self.wanted = (Way::Stay, 0);
        let adapted = Adapted {
            batch: Some(next),
            after_step: self.observed,
            before: batch,
            variance,
            square,
            speed: (section.by == AdaptiveBy::Goodput).then_some((fixed, sample)),
        };
        self.decided.push((self.observed + section.every + 1, adapted));
    }
}

/// Samples a millisecond × what one is worth against one of the first batch b₀: (N + b₀)/(N + b) for the noise scale N (AdaptDL,
/// arXiv 2008.12260, equations 7 and 9); where N is beyond measure all are worth the same.
fn goodput(batch: f64, first: f64, scale: Option<f64>, (fixed, sample): (f64, f64)) -> f64 {
    let throughput = batch / (fixed + sample * batch).max(f64::MIN_POSITIVE);
    throughput * scale.map_or(1.0, |scale| (scale + first) / (scale + batch))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTION: AdaptiveSection = AdaptiveSection {
        every: 10,
        most: 100,
        growth: 2.0,
        patience: 2,
        shrinks: true,
        smooth: 5,
        by: AdaptiveBy::Noise { target: 1.0 },
    };

    fn policy(section: AdaptiveSection) -> Policy {
        let text = "run = { name = \"a\", steps = 10 }\ndata = { path = \"d\", sequence_length = 8 }\n\
            model = { kind = \"gpt2\", layers = 1, heads = 1, width = 8 }\nbatch = { micro_batch = 4, schedule = 8 }\n\
            learning_rate = { schedule = 1e-3 }\noptimizer = { method = \"adamw\" }\n";
        let mut config = RunConfig::parse(text, "adaptive", &[]).unwrap();
        config.batch.adaptive = Some(section);
        Policy::of(&config)
    }

    fn noisy(scale: f64) -> Observation {
        Observation {
            noise: Some((scale * 0.25, 0.25)),
            fixed_ms: 10.0,
            sample_ms: 1.0,
        }
    }

    fn run(policy: &mut Policy, steps: u64, scale: f64) {
        (0..steps).for_each(|_| policy.observe(&noisy(scale)));
    }

    fn batch(policy: &Policy, step: u64) -> Option<u64> {
        policy.at(step).and_then(|adapted| adapted.batch)
    }

    #[test]
    fn the_batch_grows_after_as_many_decisions_as_patience_asks_one_interval_later_and_stays_within_bounds() {
        let mut policy = policy(SECTION);
        run(&mut policy, 19, 1000.0);
        assert_eq!((batch(&policy, 40), policy.known_through()), (None, 30));
        run(&mut policy, 1, 1000.0);
        assert_eq!(policy.known_through(), 40);
        assert_eq!(
            (batch(&policy, 30), batch(&policy, 31)),
            (None, Some(16)),
            "decided after step 20"
        );
        run(&mut policy, 180, 1000.0);
        let sizes: Vec<_> = policy
            .decided
            .iter()
            .map(|(_, adapted)| adapted.batch.unwrap())
            .collect();
        assert_eq!(sizes, [16, 32, 64, 100]);
        assert!(
            policy.decided[0]
                .1
                .sentence(31)
                .contains("is 1000.0 samples: the batch grows from 8 to 16 samples from step 31")
        );
    }

    #[test]
    fn noise_that_moves_between_two_sizes_changes_nothing_and_a_fall_must_last() {
        let mut policy = policy(SECTION);
        run(&mut policy, 40, 40.0);
        assert_eq!(batch(&policy, 51), Some(32), "32 · 2 is beyond 40");
        for scale in [63.0, 17.0].repeat(10) {
            run(&mut policy, 10, scale);
        }
        assert_eq!(policy.decided.len(), 2);
        run(&mut policy, 10, 2.0);
        run(&mut policy, 10, 40.0);
        assert_eq!(policy.decided.len(), 2, "one decision is not enough");
        run(&mut policy, 200, 2.0);
        assert_eq!(batch(&policy, u64::MAX), Some(8), "never below the schedule's");
    }

    #[test]
    fn a_policy_that_sees_the_same_steps_again_decides_the_same() {
        let mut first = policy(AdaptiveSection {
            by: AdaptiveBy::Goodput,
            ..SECTION
        });
        let seen: Vec<_> = (0..300).map(|i| noisy(5.0 + f64::from(i * i % 97))).collect();
        let mut again = first.anew();
        seen.iter().for_each(|seen| first.observe(seen));
        let mut half = again.clone();
        seen[..150].iter().for_each(|seen| half.observe(seen));
        let mut resumed = half.anew();
        seen.iter().for_each(|seen| again.observe(seen));
        seen.iter().for_each(|seen| resumed.observe(seen));
        assert_eq!(first, again);
        assert_eq!(first, resumed);
        assert!(!first.decided.is_empty());
    }

    #[test]
    fn goodput_grows_while_speed_outweighs_what_a_sample_is_worth() {
        // 10 ms a step and 1 ms a sample: throughput 8/18, 16/26, 32/42 …; worth (N + 8)/(N + b).
        let by_hand = |batch: f64, scale: f64| batch / (10.0 + batch) * (scale + 8.0) / (scale + batch);
        for (scale, size) in [(20.0, 16.0), (60.0, 16.0), (1000.0, 64.0)] {
            let mut expected = 8.0_f64;
            while by_hand((expected * 2.0).min(100.0), scale) > by_hand(expected, scale) * 1.05 {
                expected = (expected * 2.0).min(100.0);
            }
            assert_eq!(expected, size, "{scale}");
            let mut policy = policy(AdaptiveSection {
                by: AdaptiveBy::Goodput,
                ..SECTION
            });
            run(&mut policy, 200, scale);
            assert_eq!(batch(&policy, u64::MAX), Some(expected as u64), "{scale}");
        }
    }

    #[test]
    fn steps_that_measured_nothing_and_a_gradient_below_its_noise() {
        let mut policy = policy(SECTION);
        (0..50).for_each(|_| policy.observe(&Observation::default()));
        assert_eq!((policy.noise_scale(), batch(&policy, u64::MAX)), (None, None));
        let lost = Observation {
            noise: Some((1.0, -0.01)),
            ..Observation::default()
        };
        (0..50).for_each(|_| policy.observe(&lost));
        assert_eq!(policy.noise_scale(), None, "no number says it");
        assert!(batch(&policy, u64::MAX) > Some(8), "but the batch is too small");
        assert!(
            policy.decided[0]
                .1
                .sentence(1)
                .contains("cannot be told from its noise")
        );
    }

    #[test]
    fn the_noise_scale_is_the_ratio_of_means_and_the_first_steps_are_not_lost_in_zeros() {
        let mut policy = policy(AdaptiveSection {
            smooth: 1000,
            ..SECTION
        });
        let seen = |variance, square| Observation {
            noise: Some((variance, square)),
            ..Observation::default()
        };
        policy.observe(&seen(8.0, 2.0));
        assert_eq!(policy.noise_scale(), Some(4.0));
        policy.observe(&seen(16.0, 0.0));
        assert!(
            (policy.noise_scale().unwrap() - 12.0).abs() < 0.02,
            "{:?}",
            policy.noise_scale()
        );
    }
}

//! Batch sizes: of any step, and as segments of equal steps, from which a run's length and cursor follow without going through
//! its steps.

use lockstep_config::{BatchSchedule, BatchSection, Length, Schedule, Unit};

use crate::changes::Setting;
use crate::plan::PlanError;
use crate::plan::curve::Bound;
use crate::plan::measure::{Measure, samples_of};

/// A size that is beyond whole micro-batches by no more than this came there by rounding: 32 · 2^(1/2) · 2^(1/2) is 64.
const ROUNDING: f64 = 1e-12;
/// The largest batch: no product of it overflows.
const LARGEST: f64 = 16_777_216.0;
/// Sizes of one schedule: more would take longer to lay out than to look at.
const MOST_SEGMENTS: usize = 1 << 20;

/// The batch schedule in whole micro-batches.
#[derive(Clone, Debug)]
pub(super) struct Batches {
    micro_batch: u64,
    measure: Measure,
    sizes: Sizes,
    /// What operators made of it.
    setting: Setting,
    segments: Vec<Segment>,
}

/// What the schedule says.
#[derive(Clone, Debug)]
enum Sizes {
    /// `(from_step, size)`.
    Steps(Vec<(u64, u64)>),
    Curve(Bound),
}

#[derive(Clone, Debug)]
struct Segment {
    /// Steps that are done before the segment's first.
    from_step: u64,
    /// Samples that they have consumed.
    from_sample: u64,
    /// As asked for, of its first step.
    asked: f64,
    micro_batches: u32,
}

impl Batches {
    /// The batches from the point of a run on where `begins` (steps, samples) are done.
    pub(super) fn new(
        batch: &BatchSection,
        (length, setting): (Length, Setting),
        measure: Measure,
        begins: (u64, u64),
    ) -> Result<Batches, PlanError> {
        let (sizes, unit) = match &batch.schedule {
            BatchSchedule::Constant { size } => (Sizes::Steps(vec![(0, *size)]), Unit::Steps),
            BatchSchedule::Steps { sizes } => (Sizes::Steps(sizes.clone()), Unit::Steps),
            BatchSchedule::Curve(schedule) => (Sizes::Curve(bound(schedule, length, measure)?), schedule.unit),
        };
        let mut batches = Batches {
            micro_batch: u64::from(batch.micro_batch).max(1),
            measure: Measure { unit, ..measure },
            sizes,
            setting,
            segments: Vec::new(),
        };
        batches.segments = batches.lay_out(begins.0, begins.1)?;
        Ok(batches)
    }

    /// The size that is asked for, as `steps` steps and `samples` samples are done. `span`: samples of the step itself, which
    /// counts only inside a warm-up.
    fn asked(&self, steps: u64, samples: u64, span: u64) -> f64 {
        let scheduled = || self.scheduled(steps, samples, span);
        match self.setting {
            Setting::Schedule => scheduled(),
            Setting::Value(size) => size,
            Setting::Factor(factor) => (scheduled() * factor).min(LARGEST),
        }
    }

    fn scheduled(&self, steps: u64, samples: u64, span: u64) -> f64 {
        match &self.sizes {
            Sizes::Steps(sizes) => {
                let after = sizes.partition_point(|(from, _)| *from <= steps);
                sizes[after.max(1) - 1].1 as f64
            }
            Sizes::Curve(curve) => curve.at(self.measure.of(steps, samples), self.measure.of(1, span)),
        }
    }

    fn whole(&self, asked: f64) -> u32 {
        // A float beyond the range becomes the largest value.
        ((asked / self.micro_batch as f64 * (1.0 - ROUNDING)).ceil() as u32).max(1)
    }

    /// Micro-batches of the step after `steps` steps and `samples` samples.
    fn micro_batches_after(&self, steps: u64, samples: u64) -> u32 {
        // Inside a warm-up a step's own samples count: those of the size that it would have without them.
        self.whole(self.asked(steps, samples, self.micro_batch))
    }

    /// Micro-batches of step `step` (1-based), which begins at sample `cursor`.
    pub(super) fn micro_batches(&self, step: u64, cursor: u64) -> u32 {
        self.micro_batches_after(step.saturating_sub(1), cursor)
    }

    pub(super) fn micro_batch(&self) -> u64 {
        self.micro_batch
    }

    /// The segments from a point of the run on.
    fn lay_out(&self, steps: u64, samples: u64) -> Result<Vec<Segment>, PlanError> {
        let mut segments: Vec<Segment> = Vec::new();
        let (mut at_step, mut at_sample) = (steps, samples);
        loop {
            let micro_batches = self.micro_batches_after(at_step, at_sample);
            if segments.last().is_none_or(|last| last.micro_batches != micro_batches) {
                if segments.len() == MOST_SEGMENTS {
                    return Err(PlanError::TooManySizes { most: MOST_SEGMENTS });
                }
                segments.push(Segment {
                    from_step: at_step,
                    from_sample: at_sample,
                    asked: self.asked(at_step, at_sample, self.micro_batch),
                    micro_batches,
                });
            }
            let Some(steps) = self.equal_steps(at_step, at_sample, micro_batches) else {
                return Ok(segments);
            };
            at_step = at_step.saturating_add(steps);
            let of_step = u64::from(micro_batches) * self.micro_batch;
            at_sample = at_sample.saturating_add(of_step.saturating_mul(steps));
            if at_step == u64::MAX || at_sample == u64::MAX {
                return Ok(segments);
            }
        }
    }

    /// How many steps from here on have this size, at least 1, as far as one can see; none: all.
    fn equal_steps(&self, steps: u64, samples: u64, micro_batches: u32) -> Option<u64> {
        let of_step = u64::from(micro_batches) * self.micro_batch;
        let turn = match &self.sizes {
            Sizes::Steps(sizes) => {
                let after = sizes.partition_point(|(from, _)| *from <= steps);
                return sizes.get(after).map(|(from, _)| from - steps);
            }
            Sizes::Curve(curve) => {
                let position = self.measure.of(steps, samples);
                let turn = curve.turns_after(position, self.measure.of(1, self.micro_batch));
                turn.map(|turn| (turn - position).div_ceil(self.measure.of(1, of_step)).max(1))
            }
        };
        let is_equal = |n: u64| {
            let samples = samples.saturating_add(of_step.saturating_mul(n));
            self.micro_batches_after(steps.saturating_add(n), samples) == micro_batches
        };
        // The size moves one way only until the turn, so that equal steps are neighbours.
        let most = turn.unwrap_or(u64::MAX - steps);
        let (mut within, mut beyond) = (0_u64, 1_u64);
        while beyond < most && is_equal(beyond) {
            (within, beyond) = (beyond, beyond.saturating_mul(2));
        }
        if beyond >= most {
            if within + 1 >= most || is_equal(most - 1) {
                return turn;
            }
            beyond = most - 1;
        }
        while beyond - within > 1 {
            let middle = within + (beyond - within) / 2;
            match is_equal(middle) {
                true => within = middle,
                false => beyond = middle,
            }
        }
        Some(beyond)
    }

    fn segment_of(&self, step: u64) -> &Segment {
        // A schedule begins with step 0, so the segment before the partition point exists.
        let after = self.segments.partition_point(|segment| segment.from_step < step.max(1));
        &self.segments[after.max(1) - 1]
    }

    /// Samples that the first `steps` steps consume; for steps from where the batches begin on.
    pub(super) fn samples_after(&self, steps: u64) -> u64 {
        let segment = self.segment_of(steps);
        let samples = u64::from(segment.micro_batches) * self.micro_batch;
        segment
            .from_sample
            .saturating_add(samples.saturating_mul(steps.saturating_sub(segment.from_step)))
    }

    /// Steps of a run: with the first that reaches the length.
    pub(super) fn steps_of(&self, length: Length) -> u64 {
        let samples = match length {
            Length::Steps(steps) => return steps,
            length => samples_of(length, self.measure.sequence_length, self.measure.epoch).unwrap_or(u64::MAX),
        };
        let after = self.segments.partition_point(|segment| segment.from_sample < samples);
        let segment = &self.segments[after.max(1) - 1];
        let left = samples.saturating_sub(segment.from_sample);
        segment.from_step + left.div_ceil(u64::from(segment.micro_batches) * self.micro_batch)
    }

    /// A sentence for each size that is rounded up, for at most `most` of them, and one for the rest.
    pub(super) fn roundings(&self, most: usize) -> Vec<String> {
        let sentence = |segment: &Segment| {
            let rounded = u64::from(segment.micro_batches) * self.micro_batch;
            (rounded as f64 > segment.asked * (1.0 + ROUNDING)).then(|| {
                format!(
                    "from step {} on, a batch of {} samples is rounded up to {rounded}: {} whole micro-batches of {}",
                    segment.from_step + 1,
                    segment.asked,
                    segment.micro_batches,
                    self.micro_batch
                )
            })
        };
        let mut sentences: Vec<String> = self.segments.iter().filter_map(sentence).take(most + 1).collect();
        if sentences.len() > most {
            sentences.pop();
            sentences.push(format!(
                "and so on: every size is rounded up to whole micro-batches of {}",
                self.micro_batch
            ));
        }
        sentences
    }
}

/// The schedule bound to the run's length, as far as that is known before the batches are.
fn bound(schedule: &Schedule, length: Length, measure: Measure) -> Result<Bound, PlanError> {
    let measure = Measure {
        unit: schedule.unit,
        ..measure
    };
    measure.check("batch.schedule", schedule)?;
    let horizon = measure.of_length(length);
    Bound::new(&schedule.curve, &measure, horizon).ok_or(PlanError::Circular {
        unit: schedule.unit.word(),
    })
}

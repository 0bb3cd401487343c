//! Batch sizes as segments of equal steps, and how many steps a run of a given length has.

use lockstep_config::{BatchSchedule, BatchSection, Length};

/// The batch schedule in whole micro-batches.
#[derive(Clone, Debug)]
pub(super) struct Batches {
    micro_batch: u64,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug)]
struct Segment {
    /// Steps that are done before the segment's first.
    from_step: u64,
    /// Samples that they have consumed.
    from_sample: u64,
    /// As asked for.
    asked: u64,
    micro_batches: u32,
}

impl Batches {
    pub(super) fn new(batch: &BatchSection) -> Batches {
        let sizes = match &batch.schedule {
            BatchSchedule::Constant { size } => vec![(0, *size)],
            BatchSchedule::Steps { sizes } => sizes.clone(),
        };
        let micro_batch = u64::from(batch.micro_batch).max(1);
        let mut segments: Vec<Segment> = Vec::with_capacity(sizes.len());
        for (from_step, asked) in sizes {
            let from_sample = segments.last().map_or(0, |before| {
                let samples = u64::from(before.micro_batches) * micro_batch;
                before
                    .from_sample
                    .saturating_add(samples.saturating_mul(from_step - before.from_step))
            });
            let micro_batches = u32::try_from(asked.div_ceil(micro_batch)).unwrap_or(u32::MAX).max(1);
            segments.push(Segment {
                from_step,
                from_sample,
                asked,
                micro_batches,
            });
        }
        Batches { micro_batch, segments }
    }

    fn segment_of(&self, step: u64) -> &Segment {
        // A schedule begins with step 0, so the segment before the partition point exists.
        let after = self.segments.partition_point(|segment| segment.from_step < step.max(1));
        &self.segments[after.max(1) - 1]
    }

    pub(super) fn micro_batches(&self, step: u64) -> u32 {
        self.segment_of(step).micro_batches
    }

    pub(super) fn samples(&self, step: u64) -> u64 {
        u64::from(self.micro_batches(step)) * self.micro_batch
    }

    /// Samples that the first `steps` steps consume.
    pub(super) fn samples_after(&self, steps: u64) -> u64 {
        let segment = self.segment_of(steps);
        let samples = u64::from(segment.micro_batches) * self.micro_batch;
        segment
            .from_sample
            .saturating_add(samples.saturating_mul(steps - segment.from_step))
    }

    /// Steps of a run: with the first that reaches the length.
    pub(super) fn steps_of(&self, length: Length, sequence_length: u64) -> u64 {
        let samples = match length {
            Length::Steps(steps) => return steps,
            Length::Samples(samples) => samples,
            Length::Tokens(tokens) => tokens.div_ceil(sequence_length.max(1)),
        };
        let after = self.segments.partition_point(|segment| segment.from_sample < samples);
        let segment = &self.segments[after.max(1) - 1];
        let left = samples - segment.from_sample;
        segment.from_step + left.div_ceil(u64::from(segment.micro_batches) * self.micro_batch)
    }

    pub(super) fn roundings(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        for segment in &self.segments {
            let rounded = u64::from(segment.micro_batches) * self.micro_batch;
            if rounded != segment.asked {
                sentences.push(format!(
                    "from step {} on, a batch of {} samples is rounded up to {rounded}: {} whole micro-batches of {}",
                    segment.from_step + 1,
                    segment.asked,
                    segment.micro_batches,
                    self.micro_batch
                ));
            }
        }
        sentences
    }
}

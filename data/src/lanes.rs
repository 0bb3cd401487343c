//! Which micro-batches a lane takes in a step, and which samples a micro-batch holds. Pure arithmetic.

use std::ops::Range;

/// The micro-batches of lane `lane` of `lanes` in a step of `micro_batches`: `[ℓM/L, (ℓ+1)M/L)`, rounded down.
/// May be empty. Over all lanes they cover `0..micro_batches` once.
pub fn lane_micro_batches(lane: u32, lanes: u32, micro_batches: u32) -> Range<u32> {
    let bound = |lane: u32| {
        let product = u64::from(lane) * u64::from(micro_batches) / u64::from(lanes);
        // Never more than `micro_batches`, as `lane` is at most `lanes`.
        u32::try_from(product).unwrap_or(micro_batches)
    };
    bound(lane)..bound(lane + 1)
}

/// The global indices of the samples in micro-batch `index` of a step whose first sample is `first_sample`;
/// `micro_batch` is the number of samples in each.
pub fn micro_batch_samples(first_sample: u64, micro_batch: u32, index: u32) -> Range<u64> {
    let first = first_sample + u64::from(index) * u64::from(micro_batch);
    first..first + u64::from(micro_batch)
}

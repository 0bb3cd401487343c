//! Which lanes a rank hosts, which micro-batches a lane takes in a step, and which samples a micro-batch holds. Pure
//! arithmetic, the same for the coordinator that deals and the trainers that work.

use std::ops::Range;

/// The micro-batches of lane `lane` of `lanes` in a step of `micro_batches`: `[ℓM/L, (ℓ+1)M/L)`, rounded down.
/// May be empty. Over all lanes they cover `0..micro_batches` once.
pub fn lane_micro_batches(lane: u32, lanes: u32, micro_batches: u32) -> Range<u32> {
    share(lane, lanes, micro_batches)
}

/// The lanes of rank `rank` of `ranks`: neighbouring ones, `[rL/W, (r+1)L/W)`, rounded down. Over all ranks they cover
/// `0..lanes` once.
pub fn rank_lanes(rank: u32, ranks: u32, lanes: u32) -> Range<u32> {
    share(rank, ranks, lanes)
}

/// Part `part` of `parts` of `0..whole`.
fn share(part: u32, parts: u32, whole: u32) -> Range<u32> {
    let bound = |part: u32| {
        let product = u64::from(part) * u64::from(whole) / u64::from(parts);
        // Never more than `whole`, as `part` is at most `parts`.
        u32::try_from(product).unwrap_or(whole)
    };
    bound(part)..bound(part + 1)
}

/// The global indices of the samples in micro-batch `index` of a step whose first sample is `first_sample`;
/// `micro_batch` is the number of samples in each.
pub fn micro_batch_samples(first_sample: u64, micro_batch: u32, index: u32) -> Range<u64> {
    let first = first_sample + u64::from(index) * u64::from(micro_batch);
    first..first + u64::from(micro_batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_dealt_in_neighbouring_runs_and_every_rank_has_its_even_share() {
        for lanes in 1..20u32 {
            for ranks in 1..=lanes {
                let mut next = 0;
                for rank in 0..ranks {
                    let dealt = rank_lanes(rank, ranks, lanes);
                    assert_eq!(dealt.start, next);
                    assert!(dealt.len() as u32 == lanes / ranks || dealt.len() as u32 == lanes.div_ceil(ranks));
                    next = dealt.end;
                }
                assert_eq!(next, lanes);
            }
        }
    }
}

//! What passes between two ranks in a reduction whose ranks cannot see each other's memory: every rank sends its partials of
//! what others own, and every owner receives the partials of what it owns.
//!
//! A pure function of the request, so both sides of a pair derive the same list in the same order, and no message has to say
//! what it is. After the transfers each owner adds in tree order, as if it had seen all memories.

use std::ops::Range;

use crate::ReduceLanes;
use crate::error::CollectiveError;

/// Elements of one partial that pass between this rank and another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The other rank.
    pub peer: u32,
    /// Which partial of the sender: the place in [`ReduceLanes::buffers`].
    pub partial: usize,
    /// Its elements; never empty.
    pub elements: Range<usize>,
}

/// All transfers of one rank in one reduction. Those of each pair are in the same order on both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transfers {
    /// From this rank.
    pub sends: Vec<Transfer>,
    /// To this rank.
    pub receives: Vec<Transfer>,
}

impl Transfers {
    /// The transfers of `rank`.
    ///
    /// # Errors
    /// A rank with more partials than the request has buffers.
    pub fn of(request: &ReduceLanes<'_>, rank: u32) -> Result<Transfers, CollectiveError> {
        let partials: Vec<usize> = (0u32..)
            .zip(request.rank_lanes)
            .map(|(rank, lanes)| Ok(request.partials_of(rank, lanes.clone())?.len()))
            .collect::<Result<_, CollectiveError>>()?;
        let mut transfers = Transfers::default();
        for (elements, owner) in request.owners.iter().filter(|(elements, _)| !elements.is_empty()) {
            for (sender, count) in (0u32..).zip(&partials) {
                if sender == *owner || (sender != rank && *owner != rank) {
                    continue;
                }
                let (peer, list) = if sender == rank {
                    (*owner, &mut transfers.sends)
                } else {
                    (sender, &mut transfers.receives)
                };
                list.extend((0..*count).map(|partial| Transfer {
                    peer,
                    partial,
                    elements: elements.clone(),
                }));
            }
        }
        Ok(transfers)
    }
}

impl ReduceLanes<'_> {
    /// The lanes of each partial sum of a rank that hosts `lanes`.
    pub(crate) fn partials_of(&self, rank: u32, lanes: Range<u32>) -> Result<Vec<Range<u32>>, CollectiveError> {
        let partials = self.tree.maximal_subtrees(lanes.clone());
        if partials.len() > self.buffers.len() {
            return Err(CollectiveError::misuse(
                "reduce_lanes",
                format!(
                    "rank {rank} has {} partial sums for lanes {}..{}, and {} buffers were given",
                    partials.len(),
                    lanes.start,
                    lanes.end,
                    self.buffers.len()
                ),
            ));
        }
        Ok(partials)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{BufferId, LaneTree, Wire};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_one_side_of_a_pair_sends_the_other_expects_in_the_same_order(
            working in prop::collection::vec(any::<bool>(), 1..17),
            cuts in prop::collection::vec(0.0f64..1.0, 0..7),
            pieces in prop::collection::vec((0usize..50, 0.0f64..1.0), 0..9),
        ) {
            let mut working = working;
            working[0] = true;
            let lanes = working.len() as u32;
            let mut borders: Vec<u32> = cuts.iter().map(|cut| (cut * f64::from(lanes)) as u32).collect();
            borders.extend([0, lanes]);
            borders.sort_unstable();
            let rank_lanes: Vec<Range<u32>> = borders.windows(2).map(|pair| pair[0]..pair[1]).collect();
            let size = rank_lanes.len() as u32;
            let mut start = 0;
            let owners: Vec<(Range<usize>, u32)> = pieces
                .iter()
                .map(|(length, owner)| {
                    let elements = start..start + length;
                    start += length;
                    (elements, (owner * f64::from(size)) as u32)
                })
                .collect();
            let tree = LaneTree::new(&working);
            let buffers: Vec<BufferId> = (0..8).map(BufferId).collect();
            let request = ReduceLanes { bucket: 0, owners: &owners, rank_lanes: &rank_lanes, tree: &tree, buffers: &buffers, wire: Wire::Float32 };
            let all: Vec<Transfers> = (0..size).map(|rank| Transfers::of(&request, rank).unwrap()).collect();
            for (rank, own) in (0u32..).zip(&all) {
                for (peer, others) in (0u32..).zip(&all) {
                    let sent: Vec<_> = own.sends.iter().filter(|t| t.peer == peer).map(|t| (t.partial, &t.elements)).collect();
                    let expected: Vec<_> = others.receives.iter().filter(|t| t.peer == rank).map(|t| (t.partial, &t.elements)).collect();
                    prop_assert_eq!(sent, expected);
                }
                let received: usize = own.receives.iter().map(|t| t.elements.len()).sum();
                let owned: usize = owners.iter().filter(|(_, owner)| *owner == rank).map(|(e, _)| e.len()).sum();
                let foreign: usize = (0u32..)
                    .zip(&rank_lanes)
                    .filter(|(other, _)| *other != rank)
                    .map(|(_, lanes)| tree.maximal_subtrees(lanes.clone()).len())
                    .sum();
                prop_assert_eq!(received, owned * foreign);
            }
        }
    }
}

//! The arithmetic of `reduce_lanes`, the same for every backend that can see all partials as slices.
//!
//! request → parts (every rank's maximal subtrees) → expression of the tree → for each owned range, in pieces that fit
//! the first cache: partials are read where they lie, the sum goes through a scratch piece into this rank's buffer 0.

use std::ops::Range;

use nccl_host::HostMemory;

use crate::error::CollectiveError;
use crate::tree::Expression;
use crate::wire::Wire;
use crate::{BufferId, ReduceLanes};

/// Elements of one piece: 8 KiB an operand, so that two operands and the sum stay in a 32 KiB first cache.
const PIECE: usize = 2048;

/// Where the partials of one reduction lie, and how they are added.
pub struct Reduction<'a> {
    expression: Expression,
    /// Part i of the expression: the rank that holds it, and the buffer there.
    places: Vec<(u32, BufferId)>,
    rank: u32,
    owners: &'a [(Range<usize>, u32)],
    result: BufferId,
    wire: Wire,
}

/// A backend's memory, as the arithmetic sees it.
pub trait Memories {
    /// `elements` of `buffer` of `rank`.
    fn floats(&self, rank: u32, buffer: BufferId, elements: Range<usize>) -> &[f32];
    /// This rank's own `buffer`, to write.
    fn own_mut(&mut self, buffer: BufferId) -> &mut HostMemory;
    /// This rank's own `buffer`.
    fn own(&self, buffer: BufferId) -> Option<&HostMemory>;
}

impl<'a> Reduction<'a> {
    /// Checks a request against a world of `size` ranks. Nothing is waited for or written.
    ///
    /// # Errors
    /// A request that does not fit.
    pub fn plan(
        request: &ReduceLanes<'a>,
        rank: u32,
        size: u32,
        memories: &impl Memories,
    ) -> Result<Reduction<'a>, CollectiveError> {
        Reduction::plan_over(request, rank, size, |buffer| memories.own(buffer).map(HostMemory::len))
    }

    /// As [`Reduction::plan`]; `length` tells the bytes of a buffer of this rank, wherever it lies.
    pub(crate) fn plan_over(
        request: &ReduceLanes<'a>,
        rank: u32,
        size: u32,
        length: impl Fn(BufferId) -> Option<usize>,
    ) -> Result<Reduction<'a>, CollectiveError> {
        let misuse = |why: String| Err(CollectiveError::misuse("reduce_lanes", why));
        let Some(result) = request.buffers.first().copied() else {
            return misuse("no buffer was given".into());
        };
        if request.rank_lanes.len() != size as usize {
            return misuse(format!(
                "lanes of {} ranks were given in a world of {size}",
                request.rank_lanes.len()
            ));
        }
        for buffer in request.buffers {
            let Some(length) = length(*buffer) else {
                return misuse("a buffer of another communicator was given".into());
            };
            let elements = length / size_of::<f32>();
            if let Some((range, _)) = request
                .owners
                .iter()
                .find(|(range, _)| range.start > range.end || range.end > elements)
            {
                return misuse(format!(
                    "the owned elements {}..{} are not inside a buffer of {elements}",
                    range.start, range.end
                ));
            }
        }
        if let Some((_, owner)) = request.owners.iter().find(|(_, owner)| *owner >= size) {
            return misuse(format!("rank {owner} was named in a world of {size}"));
        }
        let (parts, places) = parts(request)?;
        let expression = request.tree.combine(&parts)?;
        Ok(Reduction {
            expression,
            places,
            rank,
            owners: request.owners,
            result,
            wire: request.wire,
        })
    }

    /// How the parts add up, and where each lies: its rank and its buffer there.
    pub(crate) fn parts(&self) -> (&Expression, &[(u32, BufferId)]) {
        (&self.expression, &self.places)
    }

    /// Whether the sum is already where it belongs: this rank holds the whole tree in one partial.
    pub fn is_in_place(&self) -> bool {
        self.expression == Expression::Part(0) && self.places == [(self.rank, self.result)]
    }

    /// Does the sums, once every rank's partials are final.
    pub fn run(&self, memories: &mut impl Memories) {
        for (range, _) in self.owners.iter().filter(|(_, owner)| *owner == self.rank) {
            self.run_on(range.clone(), memories);
        }
    }

    /// Does the sums of some elements, all owned by this rank.
    pub fn run_on(&self, elements: Range<usize>, memories: &mut impl Memories) {
        if self.is_in_place() {
            return;
        }
        let mut sum = vec![0.0; PIECE];
        let mut scratch = vec![0.0; PIECE * self.expression.scratch_pieces()];
        let mut start = elements.start;
        while start < elements.end {
            let piece = start..elements.end.min(start + PIECE);
            let sum = &mut sum[..piece.len()];
            let part = |index: usize| {
                let (rank, buffer) = self.places[index];
                memories.floats(rank, buffer, piece.clone())
            };
            self.expression.evaluate(&part, sum, &mut scratch, self.wire);
            memories
                .own_mut(self.result)
                .floats_mut(piece.clone())
                .copy_from_slice(sum);
            start = piece.end;
        }
    }
}

/// The lanes of every part, and where it lies.
type Parts = (Vec<Range<u32>>, Vec<(u32, BufferId)>);

/// The maximal subtrees of every rank: partial i of a rank lies in `buffers[i]`.
fn parts(request: &ReduceLanes<'_>) -> Result<Parts, CollectiveError> {
    let (mut parts, mut places) = (Vec::new(), Vec::new());
    for (rank, lanes) in (0u32..).zip(request.rank_lanes) {
        let subtrees = request.partials_of(rank, lanes.clone())?;
        for (subtree, buffer) in subtrees.into_iter().zip(request.buffers) {
            parts.push(subtree);
            places.push((rank, *buffer));
        }
    }
    Ok((parts, places))
}

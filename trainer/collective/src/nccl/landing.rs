//! Where the partials of one reduction lie at their owner: a pure function of the request.
//!
//! Scratch of one reduction, each piece on a 256-byte border: what is received, a block for each (sender, partial); inner sums;
//! what is sent as bfloat16. All of it is used in the order of one stream, so one reduction after the other has the same.

use std::ops::Range;

use super::sums::{Place, Steps};
use crate::communication::Program;
use crate::error::CollectiveError;
use crate::reduce::Reduction;
use crate::transfers::{Transfer, Transfers};
use crate::tree::{Expression, LaneTree};
use crate::wire::Wire;
use crate::{BufferId, ReduceLanes};

const BORDER: usize = 256;

/// Where a part lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lies {
    /// In this rank's own buffer.
    Here(BufferId),
    /// In scratch, from this byte on, in elements of this many bytes.
    Scratch { start: usize, width: usize },
    /// In the result's place: it is the whole sum, and comes to where it belongs.
    Arrives,
}

/// One reduction of one rank.
pub(super) struct Landing {
    pub(super) transfers: Transfers,
    /// The rank and the partial of every part.
    parts: Vec<(u32, usize)>,
    pub(super) lies: Vec<Lies>,
    /// The owned ranges, none empty, and where each begins in a block of scratch, in elements.
    pub(super) owned: Vec<(Range<usize>, usize)>,
    pub(super) steps: Steps,
    /// Where inner sum 0 begins; each has so many bytes.
    inner: (usize, usize),
    /// Bytes of an element of each send, and where it begins in scratch if it is not sent from where it lies.
    pub(super) sends: Vec<Option<usize>>,
    /// Bytes of scratch.
    pub(super) bytes: usize,
}

/// Neighbouring ranges of one owner as one: fewer operations, and the same on all ranks.
pub(super) fn merged(owners: &[(Range<usize>, u32)]) -> Vec<(Range<usize>, u32)> {
    let mut merged: Vec<(Range<usize>, u32)> = Vec::with_capacity(owners.len());
    for (range, owner) in owners.iter().filter(|(range, _)| !range.is_empty()) {
        match merged.last_mut() {
            Some((last, same)) if same == owner && last.end == range.start => last.end = range.end,
            _ => merged.push((range.clone(), *owner)),
        }
    }
    merged
}

impl Landing {
    /// The landing of a request that was checked, whose owners are [`merged`].
    pub(super) fn plan(
        request: &ReduceLanes<'_>,
        reduction: &Reduction<'_>,
        rank: u32,
    ) -> Result<Landing, CollectiveError> {
        let transfers = Transfers::of(request, rank)?;
        let (expression, places) = reduction.parts();
        let mut parts: Vec<(u32, usize)> = Vec::with_capacity(places.len());
        for (holder, _) in places {
            let partial = parts.iter().filter(|(other, _)| other == holder).count();
            parts.push((*holder, partial));
        }
        let mut bytes = 0;
        let mut take = |length: usize| {
            let start = bytes;
            bytes += length.next_multiple_of(BORDER);
            start
        };

        let (mut owned, mut elements, mut longest) = (Vec::new(), 0usize, 0usize);
        for (range, _) in request.owners.iter().filter(|(_, owner)| *owner == rank) {
            owned.push((range.clone(), elements));
            elements += range.len().next_multiple_of(BORDER / size_of::<f32>());
            longest = longest.max(range.len());
        }
        let lies: Vec<Lies> = places
            .iter()
            .map(|(holder, buffer)| match expression {
                _ if *holder == rank => Lies::Here(*buffer),
                Expression::Part(_) => Lies::Arrives,
                Expression::Sum(..) => {
                    let width = width(request.wire);
                    let start = take(elements * width);
                    Lies::Scratch { start, width }
                }
            })
            .collect();

        let place = |part: usize| match parts[part] {
            (holder, 0) if holder == rank => Place::Result,
            _ => Place::Part(part),
        };
        let may_spoil = |part: usize| matches!(lies[part], Lies::Scratch { width: 4, .. });
        let steps = Steps::of(expression, request.wire, &place, &may_spoil);
        let inner_bytes = (longest * size_of::<f32>()).next_multiple_of(BORDER);
        let inner = (take(steps.inner * inner_bytes), inner_bytes);

        let is_whole = matches!(expression, Expression::Part(_));
        let sends = transfers
            .sends
            .iter()
            .map(|send| match request.wire {
                Wire::Bf16 if !is_whole => Some(take(2 * send.elements.len())),
                _ => None,
            })
            .collect();
        Ok(Landing {
            transfers,
            parts,
            lies,
            owned,
            steps,
            inner,
            sends,
            bytes,
        })
    }

    /// The part that a transfer to this rank brings.
    pub(super) fn part_of(&self, receive: &Transfer) -> Option<usize> {
        let of = (receive.peer, receive.partial);
        self.parts.iter().position(|part| *part == of)
    }

    /// Where elements begin in a block of scratch, in elements; the block holds the owned ranges one after the other.
    pub(super) fn offset_of(&self, elements: &Range<usize>) -> Option<usize> {
        self.owned
            .iter()
            .find(|(range, _)| range == elements)
            .map(|(_, offset)| *offset)
    }

    /// The bytes of scratch that inner sum `number` has.
    pub(super) fn inner(&self, number: usize) -> Range<usize> {
        let start = self.inner.0 + number * self.inner.1;
        start..start + self.inner.1
    }

    /// The ranks that this reduction exchanges data with.
    pub(super) fn peers(&self) -> Vec<u32> {
        let both = self.transfers.sends.iter().chain(&self.transfers.receives);
        let mut peers: Vec<u32> = both.map(|transfer| transfer.peer).collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }
}

/// Bytes of an element of a partial that is not the whole sum.
fn width(wire: Wire) -> usize {
    match wire {
        Wire::Float32 => 4,
        Wire::Bf16 => 2,
    }
}

/// Bytes of device memory that the NCCL backend needs beside its buffers to reduce the buckets of a program at `rank`.
///
/// Partials of others land there, so it is about (partials of all other ranks) × (the largest part of a bucket that the rank
/// owns) × 4 bytes, or × 2 with [`Wire::Bf16`]. Steps in which some lanes have no work need no more.
///
/// # Errors
/// A program that [`crate::Collective::reduce_lanes`] would refuse.
pub fn nccl_scratch_bytes(program: &Program, rank: u32) -> Result<usize, CollectiveError> {
    let lanes = program.rank_lanes.iter().map(|lanes| lanes.end).max().unwrap_or(0);
    let tree = match program.by_rank {
        true => LaneTree::by_rank(&vec![true; lanes as usize], &program.rank_lanes),
        false => LaneTree::full(lanes),
    };
    let mut most = 0;
    for (bucket, owners) in (0u32..).zip(&program.owners) {
        let owners = merged(owners);
        let request = ReduceLanes {
            bucket,
            owners: &owners,
            rank_lanes: &program.rank_lanes,
            tree: &tree,
            buffers: &program.partials,
            wire: program.wire,
        };
        let size = program.rank_lanes.len() as u32;
        let reduction = Reduction::plan_over(&request, rank, size, |_| Some(usize::MAX))?;
        most = most.max(Landing::plan(&request, &reduction, rank)?.bytes);
    }
    Ok(most)
}

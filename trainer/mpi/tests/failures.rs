//! What happens when a rank dies, fails, is aborted, or does something else than the others: everybody who waits hears of
//! it, by name.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

mod job;

use std::ops::Range;
use std::thread;
use std::time::Duration;

use lockstep_collective::{Aborter, BufferId, Collective, CollectiveError, LaneTree, ReduceLanes};
use lockstep_collective_script::{PATIENCE, patient};
use lockstep_trainer::started::mpi_rank;
use lockstep_trainer_mpi::{Communicator, Sizes};
use nccl_host::Error;

/// A reduction of one lane a rank over a buffer of 16 elements, all of them owned by rank 0.
fn reduce(collective: &mut Communicator, buffer: BufferId) -> Result<(), CollectiveError> {
    let size = collective.size();
    let rank_lanes: Vec<Range<u32>> = (0..size).map(|rank| rank..rank + 1).collect();
    let tree = LaneTree::full(size);
    collective.publish(0)?;
    collective.reduce_lanes(&ReduceLanes {
        bucket: 0,
        owners: &[(0..16, 0)],
        rank_lanes: &rank_lanes,
        tree: &tree,
        buffers: &[buffer],
    })
}

/// The calls in which rank 0 waits for the others.
const WAITS: [&str; 6] = [
    "barrier",
    "allocate",
    "reduce_lanes",
    "all_gather_v",
    "exchange_slots",
    "broadcast",
];

fn wait_in(call: &str, collective: &mut Communicator, buffer: BufferId) -> Result<(), CollectiveError> {
    match call {
        "barrier" => collective.barrier(),
        "allocate" => collective.allocate("more", 100).map(|_| ()),
        "reduce_lanes" => reduce(collective, buffer),
        "all_gather_v" => collective.all_gather_v(buffer, &[(0..4, 1)]),
        "exchange_slots" => collective.exchange_slots(&mut [0], &[1]),
        "broadcast" => collective.broadcast(buffer, 0..4, 1),
        _ => unreachable!("{call} is not in the list"),
    }
}

/// A job whose every rank ends well.
fn plays(ranks: u32, test: &str, told: &str) {
    let (good, said) = job::start(ranks, test, told).end();
    assert!(good, "{told}: {said}");
}


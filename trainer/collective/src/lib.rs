//! Collectives in a fixed order: the lane tree, the [`Collective`] trait, and its backends.
//!
//! Way of the data: a rank's partial sums lie in buffers that its peers can read ([`Collective::allocate`]); backward
//! fills them and [`Collective::publish`]es bucket by bucket; [`Collective::reduce_lanes`] gives each owner the sum of
//! the whole [`LaneTree`], bit-equal to one process adding all lanes; [`Collective::exchange_slots`] makes scalars known
//! to all without adding them; [`Collective::all_gather_v`] spreads what owners have made of it. The [`communication`] thread
//! makes these calls while the device thread computes; a [`Device`] orders the two.
//!
//! # Who may write when
//! Peers read payload where it lies, without a copy, so a writer must know when they are done. Two kinds of calls:
//!
//! - *Full collectives* — `exchange_slots`, `all_gather_v`, `broadcast`, `barrier` — begin by waiting until every rank has
//!   entered the same call. A rank enters call k only after it has finished call k − 1. So when a full collective
//!   returns, every rank has finished reading for all calls before it (but maybe not for this one).
//! - `publish` and `reduce_lanes` do not: a reduction waits for the peers' publishes of its bucket, which may come before
//!   a peer's earlier reductions. They protect nothing that came before.
//!
//! | memory | last read by peers in | may be written again by its rank after | written by collectives |
//! | --- | --- | --- | --- |
//! | partials of a bucket | `reduce_lanes` of the bucket | the next full collective that follows this rank's reduction (checked at `publish`) | – |
//! | owned ranges in buffer 0 (results) | never | the reduction | by `reduce_lanes`, after every peer's publish |
//! | own ranges of an `all_gather_v` | that call | the next full collective | – |
//! | others' ranges of an `all_gather_v` | never | the call | by the call, after every rank has entered |
//! | the root's range of a `broadcast` | that call | the next full collective | – |
//! | the other ranks' range of a `broadcast` | never | the call | by the call, after every rank has entered |
//! | slot tables | `exchange_slots` | the caller's table: at once (a copy is exchanged) | the copies alternate between two halves: call k + 2 writes the half of call k, and call k + 1 lies between |
//!
//! One more rule: between a bucket's `publish` and its `reduce_lanes` no other collective may read or write its buffers.
//!
//! # Buffers of a device
//! Where a buffer is [`Memory::Device`], `reduce_lanes`, `all_gather_v` and `broadcast` return when their work is on the
//! communication stream, and that stream alone orders it: the caller has it wait for what comes before, and records a mark for
//! what comes after. The table above then speaks of the order of streams.

mod accelerator;
pub mod backend;
mod checks;
pub mod communication;
mod connect;
mod device;
mod error;
mod host;
mod memory;
mod nccl;
mod order;
mod reduce;
mod solo;
mod transfers;
mod tree;
mod wire;

use std::ops::Range;

pub use accelerator::{Accelerator, DeviceMemory, Operand, Pinned};
pub use connect::{Backend, Meeting, connect, join, new_id, new_nccl_id};
pub use device::{Device, HostDevice, Recorded, Stream};
pub use error::CollectiveError;
pub use memory::Memory;
pub use nccl::nccl_scratch_bytes;
pub use nccl_host::{Aborter, HostMemory, MemoryHold, Root};
pub use order::Publisher;
pub use transfers::{Transfer, Transfers};
pub use tree::{Expression, LaneTree, TreeError};
pub use wire::{Wire, round_to_bf16};

/// A buffer of a communicator, the same on every rank. From [`Collective::allocate`] of the same communicator only:
/// an id of another one panics or names another buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub(crate) usize);

/// Bytes of a buffer, and the rank that has their newest content.
pub type GatherRange = (Range<usize>, u32);

/// How payload passes between two ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// It is read where it lies, in memory that both map.
    SharedMemory,
    /// Over a TCP connection of ours.
    Tcp,
    /// As MPI does it.
    Mpi,
    /// As NCCL does it.
    Nccl,
}

impl Transport {
    /// The word in `status` and logs.
    pub fn name(self) -> &'static str {
        match self {
            Transport::SharedMemory => "shared memory",
            Transport::Tcp => "tcp",
            Transport::Mpi => "mpi",
            Transport::Nccl => "nccl",
        }
    }
}

/// One bucket's reduction, as one rank asks for it.
#[derive(Clone, Copy, Debug)]
pub struct ReduceLanes<'a> {
    /// The bucket, as it was published.
    pub bucket: u32,
    /// Elements of the bucket and the rank that owns them; equal on all ranks. Any number of ranges, of any length, on any
    /// border, in any order; they do not overlap, and what is in none of them is not reduced.
    pub owners: &'a [(Range<usize>, u32)],
    /// The lanes of every rank, by rank; equal on all ranks. A rank may have none.
    pub rank_lanes: &'a [Range<u32>],
    /// The step's lanes; equal on all ranks.
    pub tree: &'a LaneTree,
    /// Partial i of any rank (its i-th maximal subtree) lies in its `buffers[i]`, float32. As many as the rank with most
    /// partials has, at least one: `buffers[0]` of this rank takes the result.
    pub buffers: &'a [BufferId],
    /// How partial sums are rounded; equal on all ranks. With [`Wire::Bf16`] the partials given are rounded already, but for
    /// one that is the whole tree.
    pub wire: Wire,
}

/// The collectives of one rank in one generation. Every rank makes the same calls in the same order; a difference is
/// found and named where calls wait for each other. The module's first lines tell who may write when.
///
/// No call has a deadline of its own: a peer that dies is seen at once, and a peer that hangs is the coordinator's to
/// judge, who has the communicator aborted. Every error but [`CollectiveError::Misuse`] and [`CollectiveError::Tree`]
/// leaves the communicator spent.
pub trait Collective: Send {
    /// This rank, below [`Collective::size`].
    fn rank(&self) -> u32;

    /// The number of ranks.
    fn size(&self) -> u32;

    /// The backend's name in `status` and `worlds`.
    fn backend_name(&self) -> &'static str;

    /// Makes a buffer of `bytes` bytes on every rank: page aligned, zeroed, readable by all ranks. The name is for people
    /// (it shows in the process's memory map) and for finding ranks that disagree. It waits for every rank.
    ///
    /// # Errors
    /// No memory; a rank that allocates something else; a rank that is gone; abort.
    fn allocate(&mut self, name: &str, bytes: usize) -> Result<BufferId, CollectiveError>;

    /// This rank's own memory of a buffer, wherever it lies, at one address for the life of the communicator.
    fn memory(&self, id: BufferId) -> Memory {
        Memory::Host(self.buffer(id).hold())
    }

    /// As [`Collective::memory`], where the backend works on the host's memory; others panic.
    fn buffer(&self, id: BufferId) -> &HostMemory;

    /// As [`Collective::buffer`], to write by safe code.
    fn buffer_mut(&mut self, id: BufferId) -> &mut HostMemory;

    /// What says that partials are final; for whichever thread finds that they are.
    fn publisher(&self) -> Publisher;

    /// [`Publisher::publish`] on the thread that makes the calls.
    ///
    /// # Errors
    /// As there.
    fn publish(&mut self, bucket: u32) -> Result<(), CollectiveError> {
        self.publisher().publish(bucket)
    }

    /// Waits until every rank has published the bucket, then writes the lane tree's sum into `buffers[0]` of this rank,
    /// at the owned elements and nowhere else. Buckets are reduced in the order in which they were published.
    ///
    /// # Errors
    /// A request that does not fit; a rank that is gone; abort.
    fn reduce_lanes(&mut self, request: &ReduceLanes<'_>) -> Result<(), CollectiveError>;

    /// Copies every range of `buffer` from its owner into this rank's own memory. Ranges (bytes, owner) are equal on all
    /// ranks, do not overlap, and may be empty. A full collective.
    ///
    /// # Errors
    /// Ranges that do not fit; a rank that makes another call; a rank that is gone; abort.
    fn all_gather_v(&mut self, buffer: BufferId, ranges: &[GatherRange]) -> Result<(), CollectiveError>;

    /// Fills `table[i]` with the value that rank `owner_of_slot[i]` has there, on every rank: a gather, never an addition.
    /// `owner_of_slot` is equal on all ranks. A full collective.
    ///
    /// # Errors
    /// As [`Collective::all_gather_v`].
    fn exchange_slots(&mut self, table: &mut [u64], owner_of_slot: &[u32]) -> Result<(), CollectiveError>;

    /// Copies `bytes` of `buffer` from `root` to every rank. A full collective.
    ///
    /// # Errors
    /// As [`Collective::all_gather_v`].
    fn broadcast(&mut self, buffer: BufferId, bytes: Range<usize>, root: u32) -> Result<(), CollectiveError>;

    /// Returns when every rank has come here. A full collective.
    ///
    /// # Errors
    /// A rank that makes another call; a rank that is gone; abort.
    fn barrier(&mut self) -> Result<(), CollectiveError>;

    /// The aborter that was given to [`connect()`].
    fn aborter(&self) -> Aborter;

    /// Tells what every step will ask for, so that memory is made before it is needed. Called again, it may do nothing.
    ///
    /// # Errors
    /// No memory.
    fn reserve(&mut self, _program: &communication::Program) -> Result<(), CollectiveError> {
        Ok(())
    }

    /// Between calls, now and then, by the thread that is bound to make them: acts on an abort, and tells of a failure that came
    /// after a call had returned.
    ///
    /// # Errors
    /// As those of calls.
    fn tend(&mut self) -> Result<(), CollectiveError> {
        Ok(())
    }

    /// Ends this rank's part: what is under way is waited for where all is well, and given up where it is not. Every later
    /// call is refused. Dropping does the same; this is for the thread that is bound to make the calls.
    fn leave(&mut self) {}

    /// Whether every call must be made on the thread that connected.
    fn is_bound_to_thread(&self) -> bool {
        false
    }

    /// How this rank reaches every rank, by rank; none for itself.
    fn transports(&self) -> Vec<Option<Transport>>;
}

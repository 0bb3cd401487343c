//! One operation: what was asked for, and what it reads and writes.

use std::ffi::{c_int, c_void};

use nccl_rs::{DataType, Reduction};

/// What a rank can ask for, as far as it can be disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Call {
    /// `ncclCommInitRankConfig`
    Init = 0,
    /// `ncclSend`
    Send = 1,
    /// `ncclRecv`
    Recv = 2,
    /// `ncclBroadcast`
    Broadcast = 3,
    /// `ncclReduce`
    Reduce = 4,
    /// `ncclAllReduce`
    AllReduce = 5,
    /// `ncclReduceScatter`
    ReduceScatter = 6,
    /// `ncclAllGather`
    AllGather = 7,
    /// `ncclAlltoAll`
    AllToAll = 8,
    /// `ncclGather`
    Gather = 9,
    /// `ncclScatter`
    Scatter = 10,
    /// `ncclCommSplit`
    Split = 11,
    /// `ncclCommFinalize`
    Finalize = 12,
}

impl Call {
    const ALL: [Call; 13] = [
        Call::Init,
        Call::Send,
        Call::Recv,
        Call::Broadcast,
        Call::Reduce,
        Call::AllReduce,
        Call::ReduceScatter,
        Call::AllGather,
        Call::AllToAll,
        Call::Gather,
        Call::Scatter,
        Call::Split,
        Call::Finalize,
    ];

    pub(crate) fn from_number(number: u32) -> Option<Call> {
        Call::ALL.get(number as usize).copied()
    }

    pub(crate) fn is_pair(self) -> bool {
        matches!(self, Call::Send | Call::Recv)
    }
}

/// When a disturbance comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// The call itself answers with the failure; it cannot hang here.
    Call = 0,
    /// After the group's end: the state stays "in progress", or turns into the failure, and nothing gets on the stream.
    Launch = 1,
    /// After success was seen: the operation stays on its stream for ever, and a failure shows in a later poll.
    Stream = 2,
}

impl Stage {
    pub(crate) fn from_number(number: u32) -> Option<Stage> {
        [Stage::Call, Stage::Launch, Stage::Stream]
            .get(number as usize)
            .copied()
    }
}

/// An operation as a hook sees it, when it gets on its stream.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StreamOperation {
    /// The stream.
    pub stream: *mut c_void,
    /// What it is.
    pub call: Call,
    /// The rank that asked for it.
    pub rank: u32,
    /// Peer or root; -1 where there is none.
    pub other: c_int,
    /// What it reads; null where nothing.
    pub read: *const c_void,
    /// Bytes that it reads.
    pub read_bytes: usize,
    /// What it writes; null where nothing.
    pub written: *mut c_void,
    /// Bytes that it writes.
    pub written_bytes: usize,
}

/// An operation as it was asked for. Addresses are numbers here: only `moving` makes pointers of them again.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) call: Call,
    pub(crate) send: usize,
    pub(crate) receive: usize,
    pub(crate) count: usize,
    pub(crate) kind: DataType,
    pub(crate) reduction: Reduction,
    /// Peer or root.
    pub(crate) other: u32,
    pub(crate) stream: usize,
    /// Its place among those that it can meet: pairs count by direction and peer, collectives all together.
    pub(crate) sequence: u64,
    pub(crate) done: bool,
}

/// Addresses and lengths in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ranges {
    pub(crate) read: usize,
    pub(crate) read_bytes: usize,
    pub(crate) written: usize,
    pub(crate) written_bytes: usize,
}

impl Operation {
    /// Bytes of one rank's part.
    pub(crate) fn block(&self) -> usize {
        self.count * self.kind.bytes()
    }

    /// What it reads and writes at rank `rank` of `ranks`.
    pub(crate) fn ranges(&self, rank: u32, ranks: u32) -> Ranges {
        let (one, all) = (self.block(), self.block() * ranks as usize);
        let at_root = |bytes: usize| if rank == self.other { bytes } else { 0 };
        let (read_bytes, written_bytes) = match self.call {
            Call::Send => (one, 0),
            Call::Recv => (0, one),
            Call::Broadcast => (at_root(one), one),
            Call::Reduce => (one, at_root(one)),
            Call::AllReduce => (one, one),
            Call::ReduceScatter => (all, one),
            Call::AllGather => (one, all),
            Call::AllToAll => (all, all),
            Call::Gather => (one, at_root(all)),
            Call::Scatter => (at_root(all), one),
            Call::Init | Call::Split | Call::Finalize => (0, 0),
        };
        Ranges {
            read: if read_bytes == 0 { 0 } else { self.send },
            read_bytes,
            written: if written_bytes == 0 { 0 } else { self.receive },
            written_bytes,
        }
    }

    /// What a hook is told.
    pub(crate) fn shown(&self, rank: u32, ranks: u32) -> StreamOperation {
        let ranges = self.ranges(rank, ranks);
        let has_other = !matches!(
            self.call,
            Call::AllReduce | Call::ReduceScatter | Call::AllGather | Call::AllToAll
        );
        StreamOperation {
            stream: std::ptr::with_exposed_provenance_mut(self.stream),
            call: self.call,
            rank,
            other: if has_other { self.other.cast_signed() } else { -1 },
            read: std::ptr::with_exposed_provenance(ranges.read),
            read_bytes: ranges.read_bytes,
            written: std::ptr::with_exposed_provenance_mut(ranges.written),
            written_bytes: ranges.written_bytes,
        }
    }

    /// What must be the same on both sides of a pair, or at all ranks, in words.
    pub(crate) fn terms(&self) -> String {
        let sides = match self.call {
            Call::Send | Call::Recv => String::from("pair"),
            Call::AllGather | Call::AllToAll => format!("{:?}", self.call),
            Call::AllReduce | Call::ReduceScatter => format!("{:?} {:?}", self.call, self.reduction),
            Call::Reduce => format!("Reduce {:?} to {}", self.reduction, self.other),
            _ => format!("{:?} root {}", self.call, self.other),
        };
        format!("{sides}, {} of {:?}", self.count, self.kind)
    }
}

//! The edges of the engine's protocol, and where each one's loss must show.

use lockstep_device_recorder::{Access, Action, Entry, Log, Place, Range};

use crate::ranks::RANKS;
use crate::watched::{Fault, How, Watched};

/// Which part of a rank's memory an edge is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Gradient slots, all of them.
    Slots,
    /// Slots whose sums this rank makes.
    SlotsOwned,
    /// Slots whose sums another rank makes.
    SlotsSent,
    /// Working copies that this rank makes and sends.
    CopiesSent,
    /// Working copies that come from another rank.
    CopiesReceived,
    /// Words that the host reads or writes.
    Pinned,
}

/// An access, by who makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Compute,
    Communication,
    Host,
}

/// One kind of edge.
pub(crate) struct Edge {
    /// What it is for.
    pub(crate) name: &'static str,
    /// The marks that carry it.
    pub(crate) marks: &'static [&'static str],
    /// Where its loss shows.
    pub(crate) part: Part,
    /// The two accesses that nothing orders then.
    pub(crate) first: (By, &'static [Access]),
    pub(crate) second: (By, &'static [Access]),
    /// Whether a wait for the mark before shows as well; not where the other edge makes up for it.
    pub(crate) shows_when_stale: bool,
}

const READ: &[Access] = &[Access::Read];
const WRITE: &[Access] = &[Access::Write];
const ANY: &[Access] = &[Access::Read, Access::Write];

/// Every kind. What waits before memory is overwritten has a second edge beside it: a gate's gather comes after all reductions
/// of its step, so a slot that was sent may be overwritten after the gates as well; and a gather comes after the last `ready`
/// of its step, by which backward has read all copies. Only without both nothing orders that.
pub(crate) const EDGES: [Edge; 10] = [
    Edge {
        name: "ready, before a slot is sent or added",
        marks: &["ready"],
        part: Part::Slots,
        first: (By::Compute, WRITE),
        second: (By::Communication, ANY),
        shows_when_stale: true,
    },
    Edge {
        name: "done, before a sum is read",
        marks: &["done"],
        part: Part::SlotsOwned,
        first: (By::Communication, WRITE),
        second: (By::Compute, READ),
        shows_when_stale: true,
    },
    Edge {
        name: "done and gathered, before a sent slot is overwritten",
        marks: &["done", "gathered"],
        part: Part::SlotsSent,
        first: (By::Communication, READ),
        second: (By::Compute, WRITE),
        shows_when_stale: false,
    },
    Edge {
        name: "used, before a new copy is sent",
        marks: &["used"],
        part: Part::CopiesSent,
        first: (By::Compute, WRITE),
        second: (By::Communication, READ),
        shows_when_stale: true,
    },
    Edge {
        name: "used and ready, before an old copy is overwritten",
        marks: &["used", "ready"],
        part: Part::CopiesReceived,
        first: (By::Compute, ANY),
        second: (By::Communication, WRITE),
        shows_when_stale: false,
    },
    Edge {
        name: "gathered, before a copy is read",
        marks: &["gathered"],
        part: Part::CopiesReceived,
        first: (By::Communication, WRITE),
        second: (By::Compute, READ),
        shows_when_stale: true,
    },
    Edge {
        name: "results, before the host reads them",
        marks: &["results"],
        part: Part::Pinned,
        first: (By::Compute, WRITE),
        second: (By::Host, ANY),
        shows_when_stale: true,
    },
    Edge {
        name: "header, before the host compares it",
        marks: &["header"],
        part: Part::Pinned,
        first: (By::Communication, ANY),
        second: (By::Host, ANY),
        shows_when_stale: true,
    },
    Edge {
        name: "before a call: masters, before they are sent",
        marks: &["before a call"],
        part: Part::SlotsOwned,
        first: (By::Compute, WRITE),
        second: (By::Communication, READ),
        shows_when_stale: true,
    },
    Edge {
        name: "after a call: masters, before slots are used again",
        marks: &["after a call"],
        part: Part::SlotsSent,
        first: (By::Communication, WRITE),
        second: (By::Compute, ANY),
        shows_when_stale: true,
    },
];

impl Edge {
    pub(crate) fn fault(&self, how: How) -> Fault {
        Fault { names: self.marks, how }
    }
}

/// Who makes the access of an entry, what it is, and where: of watched memory.
pub(crate) fn access_of(entry: &Entry) -> Option<(By, Access, &Range, &str)> {
    let Action::Touch {
        place,
        access,
        range,
        by,
    } = &entry.action
    else {
        return None;
    };
    let who = match place {
        Place::Host => By::Host,
        Place::Stream(stream) if stream % 64 == 0 => By::Compute,
        Place::Stream(_) => By::Communication,
    };
    Some((who, *access, range, by))
}

/// The parts of a memory that some accesses touch, in order and without overlaps.
pub(crate) fn touched(log: &Log, memory: &str, wanted: impl Fn(By, Access, &str) -> bool) -> Vec<Range> {
    let mut parts: Vec<_> = log
        .entries
        .iter()
        .filter_map(access_of)
        .filter(|(who, access, range, by)| range.memory.as_ref() == memory && wanted(*who, *access, by))
        .map(|(_, _, range, _)| range.bytes.clone())
        .collect();
    parts.sort_by_key(|bytes| bytes.start);
    let mut union: Vec<std::ops::Range<usize>> = Vec::new();
    for bytes in parts {
        match union.last_mut() {
            Some(last) if bytes.start <= last.end => last.end = last.end.max(bytes.end),
            _ => union.push(bytes),
        }
    }
    union.into_iter().map(|bytes| Range::new(memory, bytes)).collect()
}

impl Part {
    /// The part of rank `rank`'s memory, from what a log with every edge says of it.
    pub(crate) fn of(self, log: &Log, rank: u32) -> Vec<Range> {
        let slots = Watched::memory(rank, "gradients 0");
        let copies = Watched::memory(rank, "working copies");
        let whole = |memory: &str| vec![Range::new(memory, 0..usize::MAX)];
        let of_nccl =
            |memory: &str, access: Access| touched(log, memory, |_, is, by| is == access && by == "NCCL, Broadcast");
        match self {
            Part::Slots => whole(&slots),
            // Masters are collected in their slots, each from its owner.
            Part::SlotsOwned => of_nccl(&slots, Access::Read),
            Part::SlotsSent => of_nccl(&slots, Access::Write),
            Part::CopiesSent => of_nccl(&copies, Access::Read),
            Part::CopiesReceived => of_nccl(&copies, Access::Write),
            Part::Pinned => {
                let is_pinned = |range: &Range| {
                    range.memory.starts_with("pinned words") && range.memory.ends_with(&format!("rank {rank}"))
                };
                let mut memories: Vec<_> = log
                    .entries
                    .iter()
                    .filter_map(access_of)
                    .filter(|(_, _, range, _)| is_pinned(range))
                    .map(|(_, _, range, _)| range.memory.to_string())
                    .collect();
                memories.sort_unstable();
                memories.dedup();
                memories.iter().flat_map(|memory| whole(memory)).collect()
            }
        }
    }
}

/// Every rank.
pub(crate) fn ranks() -> std::ops::Range<u32> {
    0..RANKS
}

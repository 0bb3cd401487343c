//! What every full collective begins with: each rank says which call it makes, in a block of a fixed size that all gather.
//!
//! The block is the same for every call, so ranks at different calls still meet here, and the one that differs is named. A
//! block has room beside the word for values, so a small slot table needs nothing more. Way of a block: words in pinned memory →
//! this rank's part of a table on the device → gathered → the table in pinned memory → compared.
//!
//! A call that was compared once with these arguments goes on without looking: its words are compared when they have come,
//! in one of the next calls, and at the latest in the next one that waits. So a gather of a step waits for nothing, and
//! ranks whose gathers differ hear of it before the step's next exchange of slots counts for anything.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nccl_host::{Call, CallKind};
use nccl_rs::DataType;

use super::link::Link;
use crate::accelerator::{DeviceMemory, Pinned};
use crate::device::{Recorded, Stream};
use crate::error::CollectiveError;

/// Words of a rank's block, 2 KiB: its own word, and values.
const BLOCK: usize = 256;
/// Values that a block carries.
pub(super) const VALUES: usize = BLOCK - 1;
/// Headers that may be under way.
const RING: usize = 8;
/// How long a failed call waits for headers that could tell why.
const GRACE: Duration = Duration::from_millis(50);
/// Arguments that are remembered. A run has far fewer; more mean that they change in each step.
const MOST_KNOWN: usize = 4096;

/// A header on its way.
struct Pending {
    call: Call,
    entry: usize,
    mark: Recorded,
}

/// Memory of one header, until it is compared.
struct Entry {
    own: Arc<dyn Pinned>,
    all: Arc<dyn Pinned>,
}

pub(super) struct Headers {
    table: DeviceMemory,
    entries: Vec<Entry>,
    next: usize,
    pending: VecDeque<Pending>,
    /// Calls with their arguments on which all ranks have agreed.
    known: HashSet<u64>,
    /// The header of the present call, if its arguments are not known yet.
    unknown: Option<u64>,
}

/// Where the values of a header's ranks are, once it is compared.
#[derive(Clone, Copy)]
pub(super) struct Arrived(usize);

impl Headers {
    pub(super) fn new(link: &Link) -> Result<Headers, CollectiveError> {
        let (accelerator, words) = (link.accelerator(), BLOCK * link.size() as usize);
        let entries = (0..RING).map(|_| {
            Ok(Entry {
                own: accelerator.allocate_pinned(BLOCK)?,
                all: accelerator.allocate_pinned(words)?,
            })
        });
        Ok(Headers {
            table: accelerator.allocate("headers", 8 * words)?,
            entries: entries.collect::<Result<_, CollectiveError>>()?,
            next: 0,
            pending: VecDeque::new(),
            known: HashSet::new(),
            unknown: None,
        })
    }

    /// Tells all ranks what this one calls, with up to [`VALUES`] values; `passing` is what must be equal too but changes with
    /// each call. When it returns the header is on the stream, and `values` belong to it.
    pub(super) fn announce(
        &mut self,
        link: &mut Link,
        kind: CallKind,
        arguments: u64,
        passing: u64,
        values: &[u64],
    ) -> Result<Arrived, CollectiveError> {
        let call = Call::new(kind, mix(arguments, passing));
        if self.pending.len() == RING {
            self.compare_first(link, call.name())?;
        }
        self.compare_arrived(link)?;
        let entry = self.next;
        self.next = (entry + 1) % RING;
        let own = &self.entries[entry].own;
        for (word, value) in own.words().iter().zip([call.word()].iter().chain(values)) {
            word.store(*value, Ordering::Relaxed);
        }
        let bytes = 8 * BLOCK;
        let start = bytes * link.rank() as usize;
        let all = self.table.pointer();
        let mine = all.slice(start..start + bytes).ok_or_else(outside)?;
        let accelerator = Arc::clone(link.accelerator());
        accelerator.copy_to_device(own, 0, mine, Stream::Communication)?;
        link.group(call.name(), link.others(), |group, stream| {
            group.all_gather(mine, all, bytes, DataType::Uint8, stream)
        })?;
        accelerator.copy_to_host(all, &self.entries[entry].all, 0, Stream::Communication)?;
        let mark = accelerator.record(Stream::Communication)?.named("header");
        self.pending.push_back(Pending { call, entry, mark });
        let known = mix(arguments, kind as u64);
        self.unknown = (!self.known.contains(&known)).then_some(known);
        Ok(Arrived(entry))
    }

    /// Whether all ranks have agreed on the present call's arguments before: then its payload may follow at once.
    pub(super) fn is_known(&self) -> bool {
        self.unknown.is_none()
    }

    /// Waits until every header has come and was compared.
    pub(super) fn compare_all(&mut self, link: &mut Link, call: &'static str) -> Result<(), CollectiveError> {
        while !self.pending.is_empty() {
            self.compare_first(link, call)?;
        }
        if let Some(known) = self.unknown.take() {
            if self.known.len() == MOST_KNOWN {
                self.known.clear();
            }
            self.known.insert(known);
        }
        Ok(())
    }

    /// Value `index` of `rank` in a header that was compared, before the next call.
    pub(super) fn value(&self, arrived: Arrived, rank: u32, index: usize) -> u64 {
        let place = BLOCK * rank as usize + 1 + index;
        self.entries[arrived.0].all.words()[place].load(Ordering::Relaxed)
    }

    /// Has the memory stay, for copies that may still be under way.
    pub(super) fn keep_for_ever(&mut self) {
        std::mem::forget(std::mem::take(&mut self.entries));
        std::mem::forget(self.table.clone());
    }

    /// The reason behind a failure, if headers tell one: ranks at different calls make NCCL fail, or wait for ever.
    pub(super) fn explain(&mut self, link: &Link, failure: CollectiveError) -> CollectiveError {
        if !matches!(failure, CollectiveError::Nccl { .. } | CollectiveError::Overdue { .. }) {
            return failure;
        }
        let began = Instant::now();
        while let Some(first) = self.pending.front() {
            match link.accelerator().is_done(&first.mark) {
                Ok(true) => {
                    if let Err(mismatch) = self.compare(link, first) {
                        return mismatch;
                    }
                    self.pending.pop_front();
                }
                Ok(false) if began.elapsed() < GRACE => std::thread::sleep(Duration::from_millis(1)),
                _ => break,
            }
        }
        failure
    }

    /// Compares what has come, without waiting.
    pub(super) fn compare_arrived(&mut self, link: &Link) -> Result<(), CollectiveError> {
        while let Some(first) = self.pending.front() {
            if !link.accelerator().is_done(&first.mark)? {
                break;
            }
            self.compare(link, first)?;
            self.pending.pop_front();
        }
        Ok(())
    }

    fn compare_first(&mut self, link: &mut Link, call: &'static str) -> Result<(), CollectiveError> {
        if let Some(first) = self.pending.front() {
            link.wait(call, &first.mark)?;
            self.compare(link, first)?;
            self.pending.pop_front();
        }
        Ok(())
    }

    fn compare(&self, link: &Link, header: &Pending) -> Result<(), CollectiveError> {
        let words = self.entries[header.entry].all.words();
        for rank in 0..link.size() {
            let theirs = Call::from_word(words[BLOCK * rank as usize].load(Ordering::Relaxed));
            if theirs != header.call {
                return Err(nccl_host::Error::Mismatch {
                    rank,
                    theirs: theirs.describe(),
                    ours: header.call.describe(),
                }
                .into());
            }
        }
        Ok(())
    }
}

/// A range that is not inside the memory it was computed for: a defect here.
pub(super) fn outside() -> CollectiveError {
    CollectiveError::misuse(
        "nccl",
        "a range is not inside its memory; this is a defect of the backend",
    )
}

/// Adds a word to a digest of arguments: not for enemies, for finding ranks that were told different things.
pub(super) fn mix(digest: u64, word: u64) -> u64 {
    let mixed = (digest.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

//! The communicator: MPI's processes as the ranks of a generation, and the calls of [`Collective`].

use std::ops::Range;
use std::time::Duration;

use lockstep_collective::backend::{Reduction, SharedOrder, check_broadcast, check_gather, check_slots};
use lockstep_collective::{
    Aborter, BufferId, Collective, CollectiveError, GatherRange, HostMemory, Publisher, ReduceLanes, Transport,
};
use nccl_host::Error;

use crate::calls::{Call, HEADER, Header, Kind, mix};
use crate::inbox::{INLINE, Inbox};
use crate::reduce::Arena;
use crate::requests::{Group, Requests, Tag};
use crate::wait::Wait;

/// How payload is cut (found by measurement, see the benchmark), and how long a rank waits.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of one message of a reduction; a multiple of 4.
    pub chunk_bytes: usize,
    /// Chunks that an owner receives ahead, and messages that a rank sends ahead to each owner.
    pub chunks_ahead: usize,
    /// Bytes of one message of a gather.
    pub gather_bytes: usize,
    /// Whether partials of bfloat16 values travel by halves within a host too. Between hosts they always do; within one,
    /// where the receiver copies from the sender's memory, packing costs more than it saves.
    pub halves_when_near: bool,
    /// How long a call waits for a rank that does nothing; for ever if not given.
    pub stall: Option<Duration>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            chunk_bytes: 256 << 10,
            chunks_ahead: 3,
            gather_bytes: 4 << 20,
            halves_when_near: false,
            stall: None,
        }
    }
}

/// Another rank.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) pid: u32,
    /// On this host.
    pub(crate) is_near: bool,
}

/// One rank among processes that MPI started. Made by [`Communicator::connect`].
pub struct Communicator {
    pub(crate) group: Group,
    pub(crate) rank: u32,
    pub(crate) size: u32,
    /// By rank.
    pub(crate) ranks: Vec<Peer>,
    pub(crate) arena: Arena,
    pub(crate) inbox: Inbox,
    pub(crate) options: Options,
    pub(crate) order: SharedOrder,
    pub(crate) aborter: Aborter,
    /// What this rank tells: a header, and values.
    outgoing: HostMemory,
    /// Reductions so far, and a digest of their requests.
    pub(crate) reductions: u64,
    pub(crate) requests: u64,
    /// Bytes of partials that reductions have sent.
    pub(crate) sent: u64,
    /// The first error.
    spent: Option<String>,
}

// SAFETY: MPI is initialised for calls from any thread, one at a time, and `&mut self` sees to that: no shared reference
// calls MPI.
unsafe impl Send for Communicator {}

impl Communicator {
    pub(crate) fn new(
        group: Group,
        rank: u32,
        ranks: Vec<Peer>,
        options: Options,
        aborter: &Aborter,
    ) -> Result<Communicator, CollectiveError> {
        let size = ranks.len() as u32;
        Ok(Communicator {
            inbox: Inbox::open(group.clone(), rank, size)?,
            group,
            rank,
            size,
            ranks,
            arena: Arena::new(rank),
            options,
            order: SharedOrder::default(),
            aborter: aborter.clone(),
            outgoing: HostMemory::anonymous((HEADER + INLINE) * size_of::<u64>())?,
            reductions: 0,
            requests: 0,
            sent: 0,
            spent: None,
        })
    }

    /// Bytes of partial sums that this rank's reductions have sent so far.
    pub fn partial_bytes_sent(&self) -> u64 {
        self.sent
    }

    fn usable(&self) -> Result<(), CollectiveError> {
        self.aborter.check()?;
        match &self.spent {
            None => Ok(()),
            Some(reason) => Err(Error::Aborted {
                reason: format!("an earlier call failed: {reason}"),
            }
            .into()),
        }
    }

    /// The other ranks, beginning behind this one, so that not all turn to the same one first.
    pub(crate) fn peers(&self) -> impl Iterator<Item = u32> + use<> {
        let (rank, size) = (self.rank, self.size);
        (1..size).map(move |step| (rank + step) % size)
    }

    /// What stands in the headers of a call that is no full collective.
    pub(crate) fn header(&self, kind: Kind, digest: u64) -> Header {
        Header {
            call: Call::new(kind, digest),
            reductions: self.reductions,
            requests: self.requests,
            failed: false,
        }
    }

    /// Between two tests that found nothing: passes the time, and looks around if it has become long. `missing` is a rank
    /// that is waited for.
    pub(crate) fn pass(&mut self, wait: &mut Wait, mine: &Header, missing: Option<u32>) -> Result<(), CollectiveError> {
        self.aborter.check()?;
        if wait.pause() {
            self.has_patience(wait, mine, missing)?;
            self.inbox.look()?;
            for peer in self.peers() {
                let Some(theirs) = self.inbox.header(peer) else {
                    continue;
                };
                // A peer may be a call ahead; then it has made this one.
                let behind = theirs.reductions < mine.reductions
                    || (theirs.reductions == mine.reductions && theirs.requests != mine.requests);
                if theirs.failed || behind {
                    theirs.agrees(mine, peer, self.ranks[peer as usize].pid)?;
                }
            }
        }
        Ok(())
    }

    /// # Errors
    /// The wait has been longer than it may.
    fn has_patience(&self, wait: &Wait, mine: &Header, missing: Option<u32>) -> Result<(), CollectiveError> {
        let waited = wait.waited();
        match (self.options.stall, missing) {
            (Some(stall), Some(rank)) if waited >= stall => Err(Error::Stalled {
                rank,
                pid: self.ranks[rank as usize].pid,
                call: mine.call.name().to_owned(),
                waited_ms: waited.as_millis() as u64,
            }
            .into()),
            _ => Ok(()),
        }
    }

    /// What every full collective does first: tells all ranks of the call, with `values`, and hears of theirs. Behind it
    /// the inbox has what they sent, until [`Inbox::expect_next`].
    fn enter(&mut self, kind: Kind, arguments: u64, values: &[u64]) -> Result<Header, CollectiveError> {
        let published = self.order.full_collective();
        let mine = self.header(kind, mix(arguments, published));
        let words = HEADER + values.len();
        let outgoing = self.outgoing.words_mut(0..words);
        outgoing[..HEADER].copy_from_slice(&mine.words());
        outgoing[HEADER..].copy_from_slice(values);
        let message = outgoing.as_ptr().cast();
        let mut sends = Requests::new(self.size as usize);
        for peer in self.peers() {
            // SAFETY: nobody writes `outgoing` before the sends are done; a failure gives the memory away.
            unsafe {
                sends.send(
                    peer as usize,
                    &self.group,
                    peer,
                    Tag::Header,
                    message,
                    words * size_of::<u64>(),
                )?;
            }
        }
        let mut wait = Wait::new();
        let mut heard = vec![false; self.size as usize];
        loop {
            sends.test()?;
            if self.inbox.look()? {
                wait.progress();
                for peer in self.peers() {
                    let Some(theirs) = self.inbox.header(peer).filter(|_| !heard[peer as usize]) else {
                        continue;
                    };
                    theirs.agrees(&mine, peer, self.ranks[peer as usize].pid)?;
                    heard[peer as usize] = true;
                }
            }
            if self.inbox.is_full() && sends.is_idle() {
                return Ok(mine);
            }
            self.aborter.check()?;
            if wait.pause() {
                let missing = self.peers().find(|peer| !heard[*peer as usize]);
                self.has_patience(&wait, &mine, missing)?;
            }
        }
    }

    /// Passes a call's error on. Where it leaves the communicator spent, every rank is told, and memory that MPI may still
    /// use is never freed.
    fn settle<T>(&mut self, kind: Kind, result: Result<T, CollectiveError>) -> Result<T, CollectiveError> {
        let Err(error) = &result else {
            return result;
        };
        if matches!(error, CollectiveError::Misuse { .. } | CollectiveError::Tree(_)) || self.spent.is_some() {
            return result;
        }
        self.spent = Some(error.to_string());
        self.arena.give_away();
        std::mem::forget(self.outgoing.hold());
        let farewell = Header {
            failed: true,
            ..self.header(kind, 0)
        };
        let Ok(mut memory) = HostMemory::anonymous(HEADER * size_of::<u64>()) else {
            return result;
        };
        memory.words_mut(0..HEADER).copy_from_slice(&farewell.words());
        std::mem::forget(memory.hold());
        let mut sends = Requests::new(self.size as usize);
        for peer in self.peers() {
            // Best effort: the error is told to the coordinator too.
            // SAFETY: the memory is never freed or written.
            let _ = unsafe {
                sends.send(
                    peer as usize,
                    &self.group,
                    peer,
                    Tag::Header,
                    memory.ptr().as_ptr(),
                    HEADER * size_of::<u64>(),
                )
            };
        }
        let _ = sends.test();
        result
    }

    /// A full collective: `arguments` are compared, `rest` follows.
    fn full(
        &mut self,
        kind: Kind,
        arguments: u64,
        rest: impl FnOnce(&mut Communicator, &Header) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        let result = self.enter(kind, arguments, &[]).and_then(|mine| {
            self.inbox.expect_next()?;
            rest(self, &mine)
        });
        self.settle(kind, result)
    }

    fn exchange(&mut self, table: &mut [u64], owner_of_slot: &[u32]) -> Result<(), CollectiveError> {
        let mut counts = vec![0usize; self.size as usize];
        let mut digest = table.len() as u64;
        for owner in owner_of_slot {
            counts[*owner as usize] += 1;
            digest = mix(digest, u64::from(*owner));
        }
        let own: Vec<u64> = table
            .iter()
            .zip(owner_of_slot)
            .filter(|(_, owner)| **owner == self.rank)
            .map(|(value, _)| *value)
            .collect();
        let inline = if own.len() <= INLINE { own.as_slice() } else { &[] };
        let mine = self.enter(Kind::ExchangeSlots, digest, inline)?;
        let received: Vec<Vec<u64>> = {
            let values: Vec<Vec<u64>> = (0..self.size).map(|peer| self.inbox.values(peer).to_vec()).collect();
            self.inbox.expect_next()?;
            self.long_tables(&own, &counts, values, &mine)?
        };
        let mut next = vec![0; self.size as usize];
        for (value, owner) in table
            .iter_mut()
            .zip(owner_of_slot)
            .filter(|(_, owner)| **owner != self.rank)
        {
            let place = &mut next[*owner as usize];
            *value = received[*owner as usize][*place];
            *place += 1;
        }
        Ok(())
    }
}

/// A buffer number that the communicator does not know: BufferIds come from `allocate` only.
fn foreign<T>() -> T {
    panic!("a buffer of another communicator was given")
}

/// A digest of words that must be equal on all ranks.
pub(crate) fn digest(words: impl IntoIterator<Item = u64>) -> u64 {
    words.into_iter().fold(0, mix)
}

impl Collective for Communicator {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn size(&self) -> u32 {
        self.size
    }

    fn backend_name(&self) -> &'static str {
        "mpi"
    }

    fn allocate(&mut self, name: &str, bytes: usize) -> Result<BufferId, CollectiveError> {
        self.usable()?;
        let arguments = digest(name.bytes().map(u64::from).chain([bytes as u64]));
        self.full(Kind::Allocate, arguments, |this, _| {
            this.arena.buffers.push(HostMemory::anonymous(bytes)?);
            Ok(())
        })?;
        Ok(BufferId::from_index(self.arena.buffers.len() - 1))
    }

    fn buffer(&self, id: BufferId) -> &HostMemory {
        self.arena.buffers.get(id.index()).unwrap_or_else(foreign)
    }

    fn buffer_mut(&mut self, id: BufferId) -> &mut HostMemory {
        self.arena.buffers.get_mut(id.index()).unwrap_or_else(foreign)
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(&self.order, &self.aborter, None)
    }

    fn reduce_lanes(&mut self, request: &ReduceLanes<'_>) -> Result<(), CollectiveError> {
        self.usable()?;
        let reduction = Reduction::plan(request, self.rank, self.size, &self.arena)?;
        self.order.next_reduce(request.bucket)?;
        let result = self.reduce(request, &reduction);
        self.settle(Kind::ReduceLanes, result)?;
        self.order.reduced();
        Ok(())
    }

    fn all_gather_v(&mut self, buffer: BufferId, ranges: &[GatherRange]) -> Result<(), CollectiveError> {
        self.usable()?;
        check_gather(self.arena.buffers.get(buffer.index()), ranges, self.size)?;
        let words = ranges
            .iter()
            .flat_map(|(bytes, owner)| [bytes.start as u64, bytes.end as u64, u64::from(*owner)]);
        let arguments = digest([buffer.index() as u64].into_iter().chain(words));
        self.full(Kind::AllGather, arguments, |this, mine| {
            this.gather(buffer, ranges, mine)
        })
    }

    fn exchange_slots(&mut self, table: &mut [u64], owner_of_slot: &[u32]) -> Result<(), CollectiveError> {
        self.usable()?;
        check_slots(table, owner_of_slot, self.size)?;
        let result = self.exchange(table, owner_of_slot);
        self.settle(Kind::ExchangeSlots, result)
    }

    fn broadcast(&mut self, buffer: BufferId, bytes: Range<usize>, root: u32) -> Result<(), CollectiveError> {
        self.usable()?;
        check_broadcast(self.arena.buffers.get(buffer.index()), &bytes, root, self.size)?;
        let arguments = digest([
            buffer.index() as u64,
            bytes.start as u64,
            bytes.end as u64,
            u64::from(root),
        ]);
        self.full(Kind::Broadcast, arguments, |this, mine| {
            this.spread(buffer, bytes, root, mine)
        })
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.usable()?;
        self.full(Kind::Barrier, 0, |_, _| Ok(()))
    }

    fn aborter(&self) -> Aborter {
        self.aborter.clone()
    }

    fn transports(&self) -> Vec<Option<Transport>> {
        (0..self.size)
            .map(|rank| (rank != self.rank).then_some(Transport::Mpi))
            .collect()
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // MPI frees the communicator itself when it is finalised: MPI_Comm_free waits for all ranks, and some may be gone.
        self.inbox.close();
    }
}

//! The next header of every peer, received whenever it comes: so that a wait for payload sees a peer that has failed or has
//! gone on to another call.

use std::ops::Range;

use lockstep_collective::{CollectiveError, HostMemory};

use crate::calls::{HEADER, Header};
use crate::requests::{Done, Group, Requests, Tag};

/// Values of a slot table that travel with the header. The whole message stays under what MPIs send at once (4 KiB).
pub(crate) const INLINE: usize = 480;

/// Words of one message.
const WORDS: usize = HEADER + INLINE;

/// One place a peer.
pub(crate) struct Inbox {
    group: Group,
    rank: u32,
    requests: Requests,
    memory: HostMemory,
    /// Words that have arrived, by peer.
    arrived: Vec<Option<usize>>,
}

impl Inbox {
    /// An inbox that receives.
    pub(crate) fn open(group: Group, rank: u32, size: u32) -> Result<Inbox, CollectiveError> {
        let mut inbox = Inbox {
            group,
            rank,
            requests: Requests::new(size as usize),
            memory: HostMemory::anonymous(size as usize * WORDS * size_of::<u64>())?,
            arrived: vec![None; size as usize],
        };
        inbox.expect_next()?;
        Ok(inbox)
    }

    /// Looks for what has come.
    pub(crate) fn look(&mut self) -> Result<bool, CollectiveError> {
        let done = self.requests.test()?;
        for Done { place, bytes } in done {
            self.arrived[*place] = Some(bytes / size_of::<u64>());
        }
        Ok(!done.is_empty())
    }

    /// Whether every peer's header is there.
    pub(crate) fn is_full(&self) -> bool {
        self.requests.is_idle()
    }

    /// The header of a peer, if it is there.
    pub(crate) fn header(&mut self, peer: u32) -> Option<Header> {
        Header::read(self.message(peer)?)
    }

    /// What came behind it.
    pub(crate) fn values(&mut self, peer: u32) -> &[u64] {
        self.message(peer).and_then(|words| words.get(HEADER..)).unwrap_or(&[])
    }

    fn message(&mut self, peer: u32) -> Option<&[u64]> {
        let words = self.arrived[peer as usize]?;
        let start = peer as usize * WORDS;
        Some(self.memory.words_mut(start..start + words))
    }

    /// What is here was read: the next one of each peer may come.
    pub(crate) fn expect_next(&mut self) -> Result<(), CollectiveError> {
        for peer in (0..self.arrived.len() as u32).filter(|peer| *peer != self.rank) {
            let place = peer as usize;
            self.arrived[place] = None;
            let bytes: Range<usize> = place * WORDS * size_of::<u64>()..(place + 1) * WORDS * size_of::<u64>();
            let memory = self.memory.bytes_mut(bytes.clone()).as_mut_ptr();
            // SAFETY: the memory is this peer's alone, and is read after the receive is done only. It outlives the receive:
            // `close` takes the receive back, and gives the memory away where that fails.
            unsafe {
                self.requests
                    .receive(place, &self.group, peer, Tag::Header, memory, bytes.len())?;
            }
        }
        Ok(())
    }

    /// Receives no more.
    pub(crate) fn close(&mut self) {
        self.requests.cancel();
        if !self.requests.is_idle() {
            std::mem::forget(self.memory.hold());
        }
    }
}

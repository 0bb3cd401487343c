//! What every rank tells every other one at the beginning of a full collective: which call it makes, with a digest of the
//! arguments that must be equal, and how far its reductions have come.

use lockstep_collective::CollectiveError;
use nccl_host::Error;

/// Words of a header; the values of a small slot table follow it in the same message.
pub(crate) const HEADER: usize = 3;

/// A kind of call, as it stands in headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Allocate = 1,
    Barrier,
    AllGather,
    ExchangeSlots,
    Broadcast,
    ReduceLanes,
    /// The sender's communicator is spent; the digest says in which call.
    Failed,
}

/// A kind and a digest of the arguments, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call(u64);

const DIGEST: u64 = u64::MAX >> 8;

impl Call {
    /// The digest's lower 56 bits count.
    pub(crate) fn new(kind: Kind, digest: u64) -> Call {
        Call((kind as u64) << 56 | digest & DIGEST)
    }

    fn kind(self) -> Option<Kind> {
        use Kind::{AllGather, Allocate, Barrier, Broadcast, ExchangeSlots, Failed, ReduceLanes};
        [
            Allocate,
            Barrier,
            AllGather,
            ExchangeSlots,
            Broadcast,
            ReduceLanes,
            Failed,
        ]
        .into_iter()
        .find(|kind| *kind as u64 == self.0 >> 56)
    }

    /// Its name, as callers know it.
    pub(crate) fn name(self) -> &'static str {
        match self.kind() {
            Some(Kind::Allocate) => "allocate",
            Some(Kind::Barrier) => "barrier",
            Some(Kind::AllGather) => "all_gather_v",
            Some(Kind::ExchangeSlots) => "exchange_slots",
            Some(Kind::Broadcast) => "broadcast",
            Some(Kind::ReduceLanes) => "reduce_lanes",
            Some(Kind::Failed) | None => "an unknown call",
        }
    }

    fn describe(self) -> String {
        format!("{} (arguments {:014x})", self.name(), self.0 & DIGEST)
    }
}

/// The first words of a message that begins a full collective, or that ends a communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// What the sender calls; of a spent communicator, what it was calling.
    pub(crate) call: Call,
    /// Reductions that it has finished.
    pub(crate) reductions: u64,
    /// A digest of all requests of those.
    pub(crate) requests: u64,
    /// Whether its communicator is spent.
    pub(crate) failed: bool,
}

impl Header {
    /// As it travels.
    pub(crate) fn words(self) -> [u64; HEADER] {
        // The mark takes the kind's place, so the kind moves into the second word, which counts to less than 2^56.
        let (mark, kind) = match self.failed {
            true => (Call::new(Kind::Failed, self.call.0).0, self.call.0 >> 56 << 56),
            false => (self.call.0, 0),
        };
        [mark, kind | self.reductions & DIGEST, self.requests]
    }

    /// From the beginning of a message; none if that is too short.
    pub(crate) fn read(words: &[u64]) -> Option<Header> {
        let [mark, count, requests] = *words.first_chunk::<HEADER>()?;
        let failed = Call(mark).kind() == Some(Kind::Failed);
        Some(Header {
            call: if failed {
                Call(count >> 56 << 56 | mark & DIGEST)
            } else {
                Call(mark)
            },
            reductions: count & DIGEST,
            requests,
            failed,
        })
    }

    /// What it means that `rank` (process `pid`) has sent this header while this rank is at `mine`.
    ///
    /// # Errors
    /// Another call, other arguments, or a spent communicator.
    pub(crate) fn agrees(&self, mine: &Header, rank: u32, pid: u32) -> Result<(), CollectiveError> {
        let mismatch = |theirs: String, ours: String| Err(Error::Mismatch { rank, theirs, ours }.into());
        if self.call.kind() != mine.call.kind() || !self.failed && self.call != mine.call {
            return mismatch(self.call.describe(), mine.call.describe());
        }
        if self.failed {
            return Err(Error::PeerLeft { rank, pid }.into());
        }
        if (self.reductions, self.requests) != (mine.reductions, mine.requests) {
            let after = |header: &Header| {
                format!(
                    "{} after {} reductions (requests {:016x})",
                    header.call.describe(),
                    header.reductions,
                    header.requests
                )
            };
            return mismatch(after(self), after(mine));
        }
        Ok(())
    }
}

/// Adds a word to a digest of arguments: not for enemies, for finding ranks that were told different things.
pub(crate) fn mix(digest: u64, word: u64) -> u64 {
    let mixed = (digest.rotate_left(29) ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn header(kind: Kind, failed: bool) -> Header {
        Header {
            call: Call::new(kind, 0x1234_5678_9abc_def0),
            reductions: 77,
            requests: u64::MAX,
            failed,
        }
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        for kind in [Kind::Allocate, Kind::Broadcast, Kind::ReduceLanes] {
            for failed in [false, true] {
                let header = header(kind, failed);
                assert_eq!(Header::read(&header.words()), Some(header));
            }
        }
        assert_eq!(Header::read(&[1, 2]), None);
    }

    #[test]
    fn another_call_is_named_and_so_is_a_rank_that_has_failed() {
        let mine = header(Kind::Barrier, false);
        mine.agrees(&mine, 3, 9).unwrap();
        let said = header(Kind::Broadcast, false)
            .agrees(&mine, 3, 9)
            .unwrap_err()
            .to_string();
        assert!(
            said.contains("rank 3 called broadcast") && said.contains("this rank called barrier"),
            "{said}"
        );
        let said = header(Kind::ReduceLanes, true)
            .agrees(&mine, 3, 9)
            .unwrap_err()
            .to_string();
        assert!(said.contains("rank 3 called reduce_lanes"), "{said}");
        let said = header(Kind::Barrier, true).agrees(&mine, 3, 9).unwrap_err().to_string();
        assert!(said.contains("rank 3 (pid 9) left"), "{said}");
        let behind = Header { reductions: 76, ..mine };
        let said = behind.agrees(&mine, 3, 9).unwrap_err().to_string();
        assert!(said.contains("after 76 reductions"), "{said}");
    }
}

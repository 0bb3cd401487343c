//! What ranks do together, as a word that they compare.

/// What a call is, so that ranks which disagree find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// Making a buffer.
    Allocate = 1,
    /// Meeting.
    Barrier = 2,
    /// Ranges from their owners to all.
    AllGather = 3,
    /// Slots from their owners to all.
    ExchangeSlots = 4,
    /// One range from one rank to all.
    Broadcast = 5,
    /// Partial sums to their owners; no rank waits for one that it has nothing to do with.
    Reduce = 6,
}

/// A call, with a digest of the arguments that must be equal on all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call(pub(crate) u64);

impl Call {
    /// A call of this kind; the digest's lower 56 bits count.
    pub fn new(kind: CallKind, digest: u64) -> Call {
        Call((kind as u64) << 56 | digest & (u64::MAX >> 8))
    }

    /// The word that a rank sends to others: kind and digest.
    pub fn word(self) -> u64 {
        self.0
    }

    /// What another rank has sent, whatever it is.
    pub fn from_word(word: u64) -> Call {
        Call(word)
    }

    /// Its name, as callers know it.
    pub fn name(self) -> &'static str {
        use CallKind::*;
        let kind = [Allocate, Barrier, AllGather, ExchangeSlots, Broadcast, Reduce]
            .into_iter()
            .find(|kind| *kind as u64 == self.0 >> 56);
        match kind {
            Some(Allocate) => "allocate",
            Some(Barrier) => "barrier",
            Some(AllGather) => "all_gather_v",
            Some(ExchangeSlots) => "exchange_slots",
            Some(Broadcast) => "broadcast",
            Some(Reduce) => "reduce_lanes",
            None => "an unknown call",
        }
    }

    /// In words, for an error.
    pub fn describe(self) -> String {
        let name = self.name();
        format!("{name} (arguments {:014x})", self.0 & (u64::MAX >> 8))
    }
}

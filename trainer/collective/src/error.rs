//! What a collective can return instead of a result.

use crate::tree::TreeError;

/// An error of a collective. After one that comes from the transport the communicator is spent.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// A peer is gone, somebody aborted, ranks disagree about the call …
    #[error(transparent)]
    Transport(#[from] nccl_host::Error),
    /// Lanes that do not make the tree's sum.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A call that breaks the rules of [`crate::Collective`]; a defect of the caller, found before anything was changed.
    #[error("{call}: {why}")]
    Misuse {
        /// The call.
        call: &'static str,
        /// The rule that it breaks.
        why: String,
    },
    /// A library that a backend stands on has failed.
    #[error("{library}: {call} failed: {why}")]
    Library {
        /// The library, such as "MPI".
        library: &'static str,
        /// Its call.
        call: &'static str,
        /// What it said, and which peer it was about, where that is known.
        why: String,
    },
    /// NCCL has failed, or refused a call.
    #[error("rank {rank}: {call}: {source}")]
    Nccl {
        /// This rank.
        rank: u32,
        /// The call of [`crate::Collective`].
        call: &'static str,
        /// What NCCL said.
        source: nccl_rs::Error,
    },
    /// Time was up, and NCCL does not say which of the ranks it waits for is missing.
    #[error(
        "rank {rank} waited {waited_ms} ms in {call} for {}: {}, or slower than collective.deadline_seconds allows",
        one_of(waited_for),
        if *begun { "stopped" } else { "it has not begun on this rank's device, or a rank is stopped" }
    )]
    Overdue {
        /// This rank.
        rank: u32,
        /// The call of [`crate::Collective`].
        call: &'static str,
        /// The ranks without which the call does not end; this one too where its own device has not begun.
        waited_for: Vec<u32>,
        /// Whether NCCL had put the work on this rank's device.
        begun: bool,
        /// How long the wait was.
        waited_ms: u64,
    },
    /// A backend that cannot serve this world.
    #[error("the solo backend serves one rank, not rank {rank} of {size}; use the host backend")]
    NotSolo {
        /// The rank asked for.
        rank: u32,
        /// The world's size.
        size: u32,
    },
}

/// "rank 3", or "one of the ranks 0, 1, 3".
fn one_of(ranks: &[u32]) -> String {
    match ranks {
        [rank] => format!("rank {rank}"),
        _ => {
            let words: Vec<String> = ranks.iter().map(u32::to_string).collect();
            format!("one of the ranks {}", words.join(", "))
        }
    }
}

impl CollectiveError {
    /// Shorthand for a broken rule.
    pub(crate) fn misuse(call: &'static str, why: impl Into<String>) -> CollectiveError {
        CollectiveError::Misuse { call, why: why.into() }
    }

    /// The peer (rank, pid) whose death this error reports, if that is what it is.
    pub fn lost_peer(&self) -> Option<(u32, u32)> {
        match self {
            CollectiveError::Transport(error) => error.lost_peer(),
            _ => None,
        }
    }

    /// Whether this is the echo of an abort, and not a cause of its own.
    pub fn is_aborted(&self) -> bool {
        matches!(self, CollectiveError::Transport(nccl_host::Error::Aborted { .. }))
    }
}

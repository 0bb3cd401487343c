//! What can go wrong in a communicator, in sentences for people and in types for programs.

use crate::goodbye::Fault;

/// An error of a communicator. After any of them in a collective the communicator is spent: later calls return
/// [`Error::Aborted`] with the first reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A peer's process has ended (or closed its end without a word) while this rank needed it.
    #[error("rank {rank} (pid {pid}) is gone: its process ended in the middle of the generation")]
    PeerLost {
        /// The rank that is gone.
        rank: u32,
        /// Its process, as this rank's kernel named it.
        pid: u32,
    },
    /// The connection to a peer broke while this rank needed it.
    #[error(
        "the connection to rank {rank} (pid {pid} on {host}) broke in the middle of the generation: its process ended, or the network between the hosts was cut"
    )]
    ConnectionLost {
        /// The rank at the other end.
        rank: u32,
        /// Its process, as it had named itself.
        pid: u32,
        /// Its host, as it had named itself.
        host: String,
    },
    /// A peer did not come in the time that a call may wait.
    #[error(
        "rank {rank} (pid {pid}) did not come to {call} in {waited_ms} ms: it is stopped, or slower than collective.deadline_seconds allows"
    )]
    Stalled {
        /// The rank that did not come.
        rank: u32,
        /// Its process.
        pid: u32,
        /// What this rank waited in.
        call: String,
        /// How long.
        waited_ms: u64,
    },
    /// This host has no such address to listen at.
    #[error(
        "cannot listen at {address} for the other ranks: {source}. Give the address at which other hosts reach this one with --advertise"
    )]
    Listen {
        /// The address.
        address: std::net::IpAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A peer left on its own account (it was aborted, or it had finished) while this rank still needed it.
    #[error("rank {rank} (pid {pid}) left the communicator while this rank was waiting for it")]
    PeerLeft {
        /// The rank that left.
        rank: u32,
        /// Its process.
        pid: u32,
    },
    /// A peer left, and said which rank was the cause.
    #[error("rank {by} left the communicator because it {fault} rank {rank} (pid {pid})")]
    Told {
        /// The rank that was the cause.
        rank: u32,
        /// Its process, as far as it is known here; else 0.
        pid: u32,
        /// The rank that left because of it.
        by: u32,
        /// What had happened between the two.
        fault: Fault,
    },
    /// A peer left, and said that this rank was the cause.
    #[error("rank {by} left the communicator because it {fault} this rank")]
    Accused {
        /// The rank that left.
        by: u32,
        /// What it had seen of this rank.
        fault: Fault,
    },
    /// Somebody in this process called [`crate::Aborter::abort`], or an earlier collective failed.
    #[error("the communicator was aborted: {reason}")]
    Aborted {
        /// The first reason given.
        reason: String,
    },
    /// Not all peers came in time.
    #[error("after {waited_ms} ms rank {rank} had not met {}{}", in_words(missing), refused.as_deref().map(|why| format!("; a connection was refused: {why}")).unwrap_or_default())]
    Deadline {
        /// The rank that waited.
        rank: u32,
        /// Who was missing.
        missing: Vec<u32>,
        /// How long the wait was.
        waited_ms: u64,
        /// The last connection that was turned away meanwhile, and why.
        refused: Option<String>,
    },
    /// A peer, or the id, was turned away.
    #[error("{} was refused: {why}", rank.map(|rank| format!("rank {rank}")).unwrap_or_else(|| "a connection".into()))]
    Refused {
        /// The rank that the other side claimed, where it got so far.
        rank: Option<u32>,
        /// Why, in words.
        why: String,
    },
    /// The id's bytes are not one that this version understands.
    #[error("the communicator id cannot be used: {why}; every rank of a generation needs the same build")]
    BadId {
        /// What is wrong with it.
        why: String,
    },
    /// Rank and size do not make a world.
    #[error("rank {rank} of {size} is not a place in a world of 1 to {most} ranks")]
    BadWorld {
        /// The rank asked for.
        rank: u32,
        /// The world's size asked for.
        size: u32,
        /// The largest world.
        most: u32,
    },
    /// Two ranks are not at the same call, or not with the same arguments.
    #[error(
        "rank {rank} called {theirs} where this rank called {ours}: every rank must make the same calls in the same order with the same sizes"
    )]
    Mismatch {
        /// The other rank.
        rank: u32,
        /// Its call, in words.
        theirs: String,
        /// This rank's call, in words.
        ours: String,
    },
    /// More memory than an address space can hold.
    #[error("{bytes} bytes cannot be mapped")]
    TooLarge {
        /// What was asked for.
        bytes: usize,
    },
    /// The machine has not that much left.
    #[error(
        "{bytes} bytes of shared memory were asked for, and the machine has {available} left: use a smaller model or fewer ranks on this machine"
    )]
    NoMemory {
        /// What was asked for.
        bytes: usize,
        /// What the machine could give.
        available: u64,
    },
    /// A system call failed.
    #[error("{call} failed: {source}")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl Error {
    /// The peer (rank, pid) whose loss this error reports, if that is what it is.
    pub fn lost_peer(&self) -> Option<(u32, u32)> {
        match self {
            Error::PeerLost { rank, pid }
            | Error::ConnectionLost { rank, pid, .. }
            | Error::Told {
                rank,
                pid,
                fault: Fault::Lost,
                ..
            } => Some((*rank, *pid)),
            _ => None,
        }
    }

    /// The ranks that this error holds responsible; none where the cause is here, or in no rank.
    pub fn named_ranks(&self) -> Vec<u32> {
        match self {
            Error::PeerLost { rank, .. }
            | Error::ConnectionLost { rank, .. }
            | Error::Stalled { rank, .. }
            | Error::PeerLeft { rank, .. }
            | Error::Told { rank, .. }
            | Error::Accused { by: rank, .. }
            | Error::Mismatch { rank, .. } => vec![*rank],
            Error::Deadline { missing, .. } => missing.clone(),
            Error::Refused { rank, .. } => rank.iter().copied().collect(),
            Error::Listen { .. }
            | Error::Aborted { .. }
            | Error::BadId { .. }
            | Error::BadWorld { .. }
            | Error::TooLarge { .. }
            | Error::NoMemory { .. }
            | Error::System { .. } => Vec::new(),
        }
    }

    /// A system call's failure.
    pub(crate) fn system(call: &'static str, source: rustix::io::Errno) -> Error {
        Error::System {
            call,
            source: source.into(),
        }
    }
}

/// Ranks, in words.
fn in_words(ranks: &[u32]) -> String {
    match ranks {
        [one] => format!("rank {one}"),
        _ => {
            let names: Vec<String> = ranks.iter().map(u32::to_string).collect();
            format!("ranks {}", names.join(", "))
        }
    }
}

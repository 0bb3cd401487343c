//! Which backend serves a world, and how its communicator comes about.

use std::time::Duration;

use nccl_host::{Aborter, CommunicatorId};

use crate::Collective;
use crate::error::CollectiveError;
use crate::host::Host;
use crate::solo::Solo;

/// The ways in which ranks can be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// One rank, no communication.
    Solo,
    /// Ranks on one machine, over shared memory.
    Host,
}

impl Backend {
    /// The name used in configs, `status` and summaries.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Solo => "solo",
            Backend::Host => "host",
        }
    }
}

/// A fresh communicator id for one generation, to be made by one rank and carried to all over an authenticated channel:
/// it contains the secret.
///
/// # Errors
/// The system has no random numbers.
pub fn new_id(secret: &[u8; 32], generation: u64) -> Result<Vec<u8>, CollectiveError> {
    Ok(CommunicatorId::new(secret, generation)?.to_bytes())
}

/// Joins the ranks that hold the same `id` into a communicator; returns when this rank is connected to every other one.
/// `deadline` is counted from now. `aborter` ends the wait here and every wait of the communicator later.
///
/// # Errors
/// An id of another version; a rank outside the world; peers that do not come in time or cannot prove the id's secret;
/// abort.
pub fn connect(
    backend: Backend,
    id: &[u8],
    rank: u32,
    size: u32,
    deadline: Duration,
    aborter: &Aborter,
) -> Result<Box<dyn Collective>, CollectiveError> {
    let id = CommunicatorId::from_bytes(id)?;
    aborter.check()?;
    match backend {
        Backend::Solo if (rank, size) != (0, 1) => Err(CollectiveError::NotSolo { rank, size }),
        Backend::Solo => Ok(Box::new(Solo::new(aborter))),
        Backend::Host => Ok(Box::new(Host::connect(&id, rank, size, deadline, aborter)?)),
    }
}

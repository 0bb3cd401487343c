//! Which backend serves a world, and how its communicator comes about.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nccl_host::{Aborter, Communicator, CommunicatorId, Options, Root};

use crate::Collective;
use crate::accelerator::Accelerator;
use crate::error::CollectiveError;
use crate::host::Host;
use crate::nccl::Nccl;
use crate::solo::Solo;

/// The ways in which ranks can be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// One rank, no communication.
    Solo,
    /// Ranks on any hosts: over shared memory inside a host, over TCP between hosts.
    Host,
    /// Ranks on GPUs, by NCCL. Its id is from [`new_nccl_id`].
    Nccl,
}

impl Backend {
    /// The name used in configs, `status` and summaries.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Solo => "solo",
            Backend::Host => "host",
            Backend::Nccl => "nccl",
        }
    }
}

/// A fresh communicator id for one generation whose ranks all share this host, to be made by one rank and carried to all over
/// an authenticated channel: it contains the secret.
///
/// # Errors
/// The system has no random numbers.
pub fn new_id(secret: &[u8; 32], generation: u64) -> Result<Vec<u8>, CollectiveError> {
    Ok(CommunicatorId::new(secret, generation)?.to_bytes())
}

/// A fresh communicator id for one generation whose ranks meet through NCCL. It names a listener in this process, which has
/// to live until all ranks have met, and it serves one attempt. NCCL is for trusted networks: the id is no secret.
///
/// # Errors
/// NCCL finds no network interface.
pub fn new_nccl_id(nccl: &nccl_rs::Nccl) -> Result<Vec<u8>, CollectiveError> {
    let id = nccl.unique_id().map_err(|source| CollectiveError::Nccl {
        rank: 0,
        call: "new_nccl_id",
        source,
    })?;
    Ok(id.to_bytes().to_vec())
}

/// What a rank brings to a meeting.
#[derive(Default)]
pub struct Meeting<'a> {
    /// This rank.
    pub rank: u32,
    /// The number of ranks.
    pub size: u32,
    /// How long ranks may take to meet, counted from [`join`].
    pub deadline: Duration,
    /// How long a call waits for a rank that does nothing; for ever if not given.
    pub stall: Option<Duration>,
    /// What rank 0 made the id with, where ranks of several hosts meet: it listens there.
    pub root: Option<Root>,
    /// The address at which other hosts reach this one; needed where the id is a [`Root`]'s.
    pub advertise: Option<IpAddr>,
    /// Whether ranks of one host use TCP too: for tests and measurements.
    pub only_tcp: bool,
    /// Ends the wait here and every wait of the communicator.
    pub aborter: Option<&'a Aborter>,
    /// The device whose memory is moved, already the calling thread's; needed by [`Backend::Nccl`], which is bound to that
    /// thread.
    pub accelerator: Option<Arc<dyn Accelerator>>,
    /// The NCCL to use; the one that the process has, if not given.
    pub nccl: Option<nccl_rs::Nccl>,
}

/// Joins the ranks that hold the same `id` into a communicator; returns when this rank is connected to every other one.
///
/// # Errors
/// An id of another version; a rank outside the world; peers that do not come in time or cannot prove the id's secret;
/// abort.
pub fn join(backend: Backend, id: &[u8], meeting: Meeting<'_>) -> Result<Box<dyn Collective>, CollectiveError> {
    let aborter = meeting.aborter.cloned().unwrap_or_default();
    aborter.check()?;
    let Meeting { rank, size, .. } = meeting;
    match backend {
        Backend::Solo if (rank, size) != (0, 1) => Err(CollectiveError::NotSolo { rank, size }),
        Backend::Solo => {
            CommunicatorId::from_bytes(id)?;
            Ok(Box::new(Solo::new(&aborter)))
        }
        Backend::Nccl => {
            let accelerator = meeting
                .accelerator
                .ok_or_else(|| CollectiveError::misuse("join", "the nccl backend was given no device"))?;
            let nccl = meeting
                .nccl
                .map_or_else(nccl_rs::Nccl::load, Ok)
                .map_err(|source| CollectiveError::Nccl {
                    rank,
                    call: "join",
                    source,
                })?;
            let times = (meeting.deadline, meeting.stall);
            Ok(Box::new(Nccl::meet(
                &nccl,
                id,
                (rank, size),
                times,
                accelerator,
                &aborter,
            )?))
        }
        Backend::Host => {
            let id = CommunicatorId::from_bytes(id)?;
            let options = Options {
                root: meeting.root,
                advertise: meeting.advertise,
                only_tcp: meeting.only_tcp,
                stall: meeting.stall,
                aborter: Some(&aborter),
            };
            let communicator = Communicator::join(&id, rank, size, meeting.deadline, options)?;
            Ok(Box::new(Host::new(communicator)))
        }
    }
}

/// As [`join`], for ranks that all share this host and wait for each other for ever.
///
/// # Errors
/// As [`join`].
pub fn connect(
    backend: Backend,
    id: &[u8],
    rank: u32,
    size: u32,
    deadline: Duration,
    aborter: &Aborter,
) -> Result<Box<dyn Collective>, CollectiveError> {
    let meeting = Meeting {
        rank,
        size,
        deadline,
        aborter: Some(aborter),
        ..Meeting::default()
    };
    join(backend, id, meeting)
}

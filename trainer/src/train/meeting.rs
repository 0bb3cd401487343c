//! The ranks of a generation meet: the communicator's id, the backend, the communication thread.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use lockstep_collective::communication::{Communication, Overlap};
use lockstep_collective::{Aborter, Backend, CollectiveError, Meeting, Root, join, new_nccl_id};
use lockstep_config::{HostTransport, RunConfig};
use lockstep_proto::domain::Generation;
use lockstep_session::Session;
use nccl_rs::Nccl;

use super::{Mpi, PATIENCE};
use crate::device::compute::Compute;
use crate::error::TrainerError;

/// How long ranks may take to meet over NCCL, and then to connect in their first groups: large fabrics take minutes.
const NCCL_PATIENCE: Duration = Duration::from_secs(600);

/// Where a rank stands among those that meet.
pub(super) struct Place {
    /// The rank.
    pub(super) rank: u32,
    /// The number of ranks.
    pub(super) size: u32,
    /// The address at which other hosts reach this one.
    pub(super) advertise: IpAddr,
    /// Ends every wait.
    pub(super) aborter: Aborter,
}

/// Meets the other ranks of a generation over the backend that the config names, and starts the communication.
///
/// # Errors
/// The backend is not there; the ranks do not meet.
pub(super) fn meet(
    session: &mut Session,
    config: &RunConfig,
    mpi: Option<&'static dyn Mpi>,
    place: Place,
    generation: &Generation,
    compute: &Compute,
) -> Result<Communication, TrainerError> {
    let Place {
        rank,
        size,
        advertise,
        aborter,
    } = place;
    let backend = config.backend_name(size);
    if backend == "mpi" && mpi.is_none() {
        return Err(TrainerError::Refused(
            "collective.backend is \"mpi\", and this trainer has no MPI: start lockstep-trainer-mpi instead".to_owned(),
        ));
    }
    let gpu = compute.accelerator();
    if gpu.is_some() != (backend == "nccl") {
        return Err(TrainerError::Refused(format!(
            "the backend {backend} does not move the memory of what run.device = \"{}\" computes on; leave collective.backend at \"auto\"",
            config.run.device.word()
        )));
    }
    let (mut root, mut made) = (None, Vec::new());
    match (rank, backend) {
        (0, "nccl") => {
            let nccl = Nccl::load().map_err(|source| CollectiveError::Nccl {
                rank,
                call: "join",
                source,
            })?;
            made = new_nccl_id(&nccl)?;
        }
        (0, _) => {
            let opened = Root::open(&generation.secret, generation.stamp.generation, advertise);
            let opened = opened.map_err(CollectiveError::from)?;
            made = opened.id().to_bytes();
            root = Some(opened);
        }
        _ => {}
    }
    let id = session.exchange_comm_id(rank == 0, || made)?;
    let overlap = match config.collective.overlap {
        true => Overlap::Thread,
        false => Overlap::None,
    };
    let only_tcp = config.collective.transport == HostTransport::Tcp;
    let stall = Duration::from_secs_f64(config.collective.deadline_seconds);
    let connect = move || {
        if let ("mpi", Some(mpi)) = (backend, mpi) {
            return mpi.connect(rank, size, PATIENCE, Some(stall), &aborter);
        }
        let meeting = Meeting {
            rank,
            size,
            deadline: if backend == "nccl" { NCCL_PATIENCE } else { PATIENCE },
            stall: Some(stall),
            root,
            advertise: Some(advertise),
            only_tcp,
            aborter: Some(&aborter),
            accelerator: gpu,
            ..Meeting::default()
        };
        let backend = match (backend, size) {
            ("nccl", _) => Backend::Nccl,
            (_, 1) => Backend::Solo,
            _ => Backend::Host,
        };
        join(backend, &id, meeting)
    };
    Ok(Communication::start(compute.collectives(), overlap, connect)?)
}

/// The address of this host that leads to the coordinator: what other hosts most likely reach it by.
pub(super) fn address_towards(coordinator: &str) -> Result<IpAddr, TrainerError> {
    let unknown = |why: String| {
        TrainerError::Refused(format!(
            "cannot find the address of this host that leads to {coordinator}: {why}. Give it with --advertise"
        ))
    };
    let authority = coordinator.split_once("://").map_or(coordinator, |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or_default();
    let target = authority
        .to_socket_addrs()
        .map_err(|error| unknown(error.to_string()))?
        .next()
        .ok_or_else(|| unknown("it names no address".to_owned()))?;
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connecting a datagram socket sends nothing; it asks the kernel for the route.
    let local = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(target)?;
        socket.local_addr()
    });
    Ok(local.map_err(|error| unknown(error.to_string()))?.ip())
}

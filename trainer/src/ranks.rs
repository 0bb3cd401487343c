//! Ranks of a measurement: processes that a command starts as copies of itself, and how they meet.
//!
//! The ranks find each other through a listener of the command's: rank 0 sends the communicator's id there, the others get
//! it. On GPUs rank r opens GPU r.

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_collective::{Accelerator, Backend, Collective, CollectiveError, Meeting, Root, join, new_nccl_id};
use lockstep_config::{Precision, prepare_for_gpu};
use nccl_rs::Nccl;

use crate::bench::Carrier;
use crate::device::compute::Compute;
use crate::device::opening::{open_gpu, require_gpus};
use crate::error::TrainerError;

/// How long ranks may take to meet, and a call may wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Where a rank started by this command finds its place.
const ENVIRONMENT: &str = "LOCKSTEP_BENCH_PLACE";
/// Begins the sentence where there is no GPU.
const ASKED: &str = "--backend nccl measures between GPUs";

/// The place of this process, if it is a rank that was started.
pub(crate) fn place() -> Option<String> {
    std::env::var(ENVIRONMENT).ok()
}

/// Starts one process a rank, with these arguments and what `prepare` adds, and waits for all.
pub(crate) fn start_ranks(
    backend: Carrier,
    (ranks, arguments): (u32, &[OsString]),
    prepare: impl Fn(&mut Command),
) -> Result<(), TrainerError> {
    if backend == Carrier::Nccl {
        require_gpus(ASKED, ranks)?;
    }
    let broken = |what: &str, error: std::io::Error| TrainerError::Broken(format!("cannot {what}: {error}"));
    let binary = std::env::current_exe().map_err(|error| broken("find this program", error))?;
    // The ranks bring their own sockets; they find each other through a listener that is handed to rank 0 by number.
    let rendezvous = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| broken("listen", error))?;
    let address = rendezvous.local_addr().map_err(|error| broken("listen", error))?;
    let mut children = Vec::new();
    for rank in 0..ranks {
        let mut command = Command::new(&binary);
        command.args(arguments).env(ENVIRONMENT, format!("{rank} {address}"));
        if backend == Carrier::Nccl {
            prepare_for_gpu(&mut command);
        }
        prepare(&mut command);
        let child = command.spawn().map_err(|error| broken("start a rank", error))?;
        children.push(child);
    }
    let passed = pass_id_on(&rendezvous, &mut children);
    let mut failed = None;
    for (rank, mut child) in (0u32..).zip(children) {
        if passed.is_err() {
            // It waits for an id that does not come.
            let _ = child.kill();
        }
        let status = child.wait().map_err(|error| broken("wait for a rank", error))?;
        if !status.success() {
            failed.get_or_insert(format!("rank {rank} ended with {status}"));
        }
    }
    passed.map_err(|error| broken("pass the communicator id on", error))?;
    failed.map_or(Ok(()), |why| Err(TrainerError::Broken(why)))
}

/// Takes the id from rank 0 and gives it to the others. A rank that ends before it has come ends the wait.
fn pass_id_on(rendezvous: &TcpListener, ranks: &mut [Child]) -> std::io::Result<()> {
    let mut others = Vec::new();
    let mut id = Vec::new();
    for _ in 0..ranks.len() {
        let mut stream = next_of(rendezvous, ranks)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut rank = [0; 4];
        stream.read_exact(&mut rank)?;
        if u32::from_le_bytes(rank) == 0 {
            stream.read_to_end(&mut id)?;
        } else {
            others.push(stream);
        }
    }
    others.iter_mut().try_for_each(|stream| stream.write_all(&id))
}

/// The next rank that comes.
fn next_of(rendezvous: &TcpListener, ranks: &mut [Child]) -> std::io::Result<TcpStream> {
    rendezvous.set_nonblocking(true)?;
    let began = Instant::now();
    loop {
        match rendezvous.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        for (rank, child) in (0u32..).zip(ranks.iter_mut()) {
            if let Some(status) = child.try_wait()?.filter(|status| !status.success()) {
                return Err(std::io::Error::other(format!("rank {rank} ended with {status}")));
            }
        }
        if began.elapsed() > PATIENCE {
            return Err(std::io::Error::other("a rank did not come in time"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One started rank's way into the communicator, and where its memory lies.
pub(crate) fn meet(place: &str, backend: Carrier, ranks: u32) -> Result<(Box<dyn Collective>, Compute), TrainerError> {
    let (rank, address) = place
        .split_once(' ')
        .and_then(|(rank, address)| Some((rank.parse::<u32>().ok()?, address)))
        .ok_or_else(|| TrainerError::Refused(format!("{ENVIRONMENT} is {place:?}, which is no place")))?;
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut meeting = Meeting {
        rank,
        size: ranks,
        deadline: PATIENCE,
        stall: Some(PATIENCE),
        ..Meeting::default()
    };
    if backend == Carrier::Nccl {
        let gpu = open_gpu(ASKED, Precision::Fp32, rank as usize)?;
        meeting.accelerator = Some(Arc::clone(&gpu) as Arc<dyn Accelerator>);
        let id = exchange_id(rank, address, || {
            let nccl = Nccl::load().map_err(|source| CollectiveError::Nccl {
                rank,
                call: "join",
                source,
            })?;
            Ok(new_nccl_id(&nccl)?)
        })?;
        return Ok((join(Backend::Nccl, &id, meeting)?, Compute::Gpu(gpu)));
    }
    let mut root = None;
    let id = exchange_id(rank, address, || {
        let mut secret = [0; 32];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut secret))
            .map_err(no_id)?;
        let made = Root::open(&secret, 1, loopback).map_err(CollectiveError::from)?;
        let id = made.id().to_bytes();
        root = Some(made);
        Ok(id)
    })?;
    meeting.root = root;
    meeting.advertise = Some(loopback);
    meeting.only_tcp = backend == Carrier::Tcp;
    let backend = if ranks == 1 { Backend::Solo } else { Backend::Host };
    Ok((join(backend, &id, meeting)?, Compute::Host))
}

fn no_id(error: std::io::Error) -> TrainerError {
    TrainerError::Broken(format!("cannot get the communicator id: {error}"))
}

/// The id of the communicator, which rank 0 makes and the others are given at `address`.
fn exchange_id(
    rank: u32,
    address: &str,
    make: impl FnOnce() -> Result<Vec<u8>, TrainerError>,
) -> Result<Vec<u8>, TrainerError> {
    let mut stream = TcpStream::connect(address).map_err(no_id)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(no_id)?;
    stream.write_all(&rank.to_le_bytes()).map_err(no_id)?;
    if rank == 0 {
        let id = make()?;
        stream.write_all(&id).map_err(no_id)?;
        return Ok(id);
    }
    let mut id = Vec::new();
    stream.read_to_end(&mut id).map_err(no_id)?;
    Ok(id)
}

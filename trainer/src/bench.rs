//! `lockstep-trainer bench collectives`: latency and bandwidth of the collectives by size, on this machine.
//!
//! The command starts itself once a rank, with the communicator's id in the environment (under MPI the processes are there
//! already). The ranks meet, measure in step, and rank 0 prints: the median of the rounds, the rate of the payload, and its
//! share of what memory or the link gives to a plain copy of the same bytes, measured in the same rounds.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use lockstep_collective::{Aborter, Backend, BufferId, Collective, LaneTree, Meeting, ReduceLanes, Root, Wire, join};

use crate::error::TrainerError;
use crate::train::Mpi;

/// How long ranks may take to meet, and a call may wait.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where a rank started by this command finds its place.
const ENVIRONMENT: &str = "LOCKSTEP_BENCH_PLACE";

/// What carries the data that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Carrier {
    /// Our own transport in shared memory.
    Host,
    /// Our own transport over TCP on the loopback interface.
    Tcp,
    /// MPI: start `mpirun -n 2 lockstep-trainer-mpi bench collectives --backend mpi`.
    Mpi,
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// What carries the data.
    pub backend: Carrier,
    /// Ranks.
    pub ranks: u32,
    /// The largest payload, in bytes.
    pub largest: usize,
    /// Calls of each size that are timed.
    pub rounds: usize,
    /// Whether to print one JSON object a line instead of a table.
    pub json: bool,
}

/// Measures.
///
/// # Errors
/// Ranks cannot be started or do not meet; a collective fails.
pub fn collectives(options: &BenchOptions, mpi: Option<&'static dyn Mpi>) -> Result<(), TrainerError> {
    if options.backend == Carrier::Mpi {
        let mpi = mpi.ok_or_else(|| {
            TrainerError::Refused("this trainer has no MPI: start lockstep-trainer-mpi instead".to_owned())
        })?;
        let (rank, size) = mpi.place();
        let collective = mpi.connect(rank, size, PATIENCE, Some(PATIENCE), &Aborter::new())?;
        return measure(collective, options);
    }
    if let Ok(place) = std::env::var(ENVIRONMENT) {
        return measure(meet(&place, options)?, options);
    }
    start_ranks(options)
}

/// Starts one process a rank and waits for all.
fn start_ranks(options: &BenchOptions) -> Result<(), TrainerError> {
    let broken = |what: &str, error: std::io::Error| TrainerError::Broken(format!("cannot {what}: {error}"));
    let binary = std::env::current_exe().map_err(|error| broken("find this program", error))?;
    // The ranks bring their own sockets; they find each other through a listener that is handed to rank 0 by number.
    let rendezvous = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| broken("listen", error))?;
    let address = rendezvous.local_addr().map_err(|error| broken("listen", error))?;
    let mut children = Vec::new();
    for rank in 0..options.ranks {
        let child = Command::new(&binary)
            .args(std::env::args_os().skip(1))
            .env(ENVIRONMENT, format!("{rank} {address}"))
            .spawn()
            .map_err(|error| broken("start a rank", error))?;
        children.push(child);
    }
    let passed = pass_id_on(&rendezvous, options.ranks);
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

/// Takes the id from rank 0 and gives it to the others.
fn pass_id_on(rendezvous: &TcpListener, ranks: u32) -> std::io::Result<()> {
    let mut others = Vec::new();
    let mut id = Vec::new();
    for _ in 0..ranks {
        let (mut stream, _) = rendezvous.accept()?;
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

/// One started rank's way into the communicator.
fn meet(place: &str, options: &BenchOptions) -> Result<Box<dyn Collective>, TrainerError> {
    let broken = |error: std::io::Error| TrainerError::Broken(format!("cannot get the communicator id: {error}"));
    let (rank, address) = place
        .split_once(' ')
        .and_then(|(rank, address)| Some((rank.parse::<u32>().ok()?, address)))
        .ok_or_else(|| TrainerError::Refused(format!("{ENVIRONMENT} is {place:?}, which is no place")))?;
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut stream = TcpStream::connect(address).map_err(broken)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
    stream.write_all(&rank.to_le_bytes()).map_err(broken)?;
    let (mut root, mut id) = (None, Vec::new());
    if rank == 0 {
        let mut secret = [0; 32];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut secret))
            .map_err(broken)?;
        let made = Root::open(&secret, 1, loopback).map_err(lockstep_collective::CollectiveError::from)?;
        id = made.id().to_bytes();
        stream.write_all(&id).map_err(broken)?;
        root = Some(made);
    } else {
        stream.read_to_end(&mut id).map_err(broken)?;
    }
    drop(stream);
    let meeting = Meeting {
        rank,
        size: options.ranks,
        deadline: PATIENCE,
        stall: Some(PATIENCE),
        root,
        advertise: Some(loopback),
        only_tcp: options.backend == Carrier::Tcp,
        ..Meeting::default()
    };
    Ok(join(Backend::Host, &id, meeting)?)
}

/// Median times of one size, in microseconds.
#[derive(Debug, serde::Serialize)]
struct Line {
    backend: String,
    call: &'static str,
    ranks: u32,
    bytes: usize,
    median_us: f64,
    least_us: f64,
    /// Payload that crosses between ranks, a rank and second, in GB.
    gigabytes_per_second: f64,
    /// The same of a plain copy (shared memory), or of a bare connection (TCP).
    share_of_limit: Option<f64>,
}

/// The buffers that are measured on.
struct Bench {
    collective: Box<dyn Collective>,
    partials: BufferId,
    parameters: BufferId,
    rounds: usize,
    tcp: Option<Duplex>,
}

fn measure(mut collective: Box<dyn Collective>, options: &BenchOptions) -> Result<(), TrainerError> {
    let partials = collective.allocate("partials", options.largest)?;
    let parameters = collective.allocate("parameters", options.largest)?;
    let elements = options.largest / 4;
    for (place, value) in (0u32..).zip(collective.buffer_mut(partials).floats_mut(0..elements)) {
        // Values that need all their bits, so that nothing travels halved.
        *value = (place % 1000) as f32 + 1.0 / 3.0;
    }
    let tcp = match options.backend {
        Carrier::Tcp if collective.size() == 2 => Some(Duplex::between(&mut *collective)?),
        _ => None,
    };
    let mut bench = Bench {
        collective,
        partials,
        parameters,
        rounds: options.rounds,
        tcp,
    };
    let mut lines = Vec::new();
    let mut bytes = 8;
    while bytes < options.largest {
        lines.extend(bench.size(bytes)?);
        bytes *= 8;
    }
    lines.extend(bench.size(options.largest)?);
    if bench.collective.rank() == 0 {
        let text = if options.json {
            as_json(&lines)?
        } else {
            as_table(&lines)
        };
        // A reader that went away is no failure of ours.
        let _ = std::io::stdout().write_all(text.as_bytes());
    }
    bench.collective.barrier()?;
    Ok(())
}

impl Bench {
    /// Every call at one size of the whole buffer.
    fn size(&mut self, bytes: usize) -> Result<Vec<Line>, TrainerError> {
        let (rank, ranks) = (self.collective.rank(), self.collective.size());
        let elements = bytes / 4;
        let share =
            |owner: u32| elements * owner as usize / ranks as usize..elements * (owner as usize + 1) / ranks as usize;
        let owners: Vec<_> = (0..ranks).map(|owner| (share(owner), owner)).collect();
        let ranges: Vec<_> = owners
            .iter()
            .map(|(elements, owner)| (4 * elements.start..4 * elements.end, *owner))
            .collect();
        let rank_lanes: Vec<_> = (0..ranks).map(|rank| rank..rank + 1).collect();
        let tree = LaneTree::full(ranks);
        let (partials, parameters) = (self.partials, self.parameters);
        // What a rank must at least read from others.
        let foreign = bytes - bytes / ranks as usize;
        let limit = self.limit(foreign)?;
        let reduce = self.time(bytes, |collective| {
            collective.publish(0)?;
            collective.reduce_lanes(&ReduceLanes {
                bucket: 0,
                owners: &owners,
                rank_lanes: &rank_lanes,
                tree: &tree,
                buffers: &[partials],
                wire: Wire::Float32,
            })
        })?;
        let gather = self.time(bytes, |collective| collective.all_gather_v(parameters, &ranges))?;
        let broadcast = self.time(bytes, |collective| collective.broadcast(parameters, 0..bytes, 0))?;
        let slots = bytes / 8;
        let mut table = vec![u64::from(rank); slots];
        let owner_of_slot: Vec<u32> = (0..slots).map(|slot| (slot * ranks as usize / slots) as u32).collect();
        let exchange = self.time(bytes, |collective| {
            collective.exchange_slots(&mut table, &owner_of_slot)
        })?;
        let backend = match self.tcp {
            Some(_) => "host over tcp".to_owned(),
            None => self.collective.backend_name().to_owned(),
        };
        let line = |call, (median, least): (f64, f64), moved: usize, limit: Option<f64>| Line {
            backend: backend.clone(),
            call,
            ranks,
            bytes,
            median_us: median,
            least_us: least,
            gigabytes_per_second: moved as f64 / median / 1e3,
            share_of_limit: limit.map(|limit| limit / median),
        };
        Ok(vec![
            line("reduce_lanes", reduce, foreign, limit),
            line("all_gather_v", gather, foreign, limit),
            line("broadcast", broadcast, bytes, None),
            line("exchange_slots", exchange, foreign, None),
        ])
    }

    /// Microseconds in which a rank can be given so many bytes at best, when all ranks are at once.
    fn limit(&mut self, bytes: usize) -> Result<Option<f64>, TrainerError> {
        if self.collective.backend_name() != "host" {
            return Ok(None);
        }
        if let Some(mut tcp) = self.tcp.take() {
            let mut failed = None;
            let (median, _) = self.time(bytes, |_| {
                failed = failed.take().or(tcp.exchange(bytes).err());
                Ok(())
            })?;
            self.tcp = Some(tcp);
            return match failed {
                Some(error) => Err(TrainerError::Broken(format!("the bare connection broke: {error}"))),
                None => Ok(Some(median)),
            };
        }
        let source = vec![1u8; bytes];
        let mut target = vec![0u8; bytes];
        let (median, _) = self.time(bytes, |_| {
            target.copy_from_slice(&source);
            std::hint::black_box(&target);
            Ok(())
        })?;
        Ok(Some(median))
    }

    /// Median and least microseconds of a call, ranks in step before each round; short calls several times a round.
    fn time(
        &mut self,
        bytes: usize,
        mut call: impl FnMut(&mut dyn Collective) -> Result<(), lockstep_collective::CollectiveError>,
    ) -> Result<(f64, f64), TrainerError> {
        let repeats = (200_000 / (bytes + 1000)).clamp(1, 200);
        let mut times = Vec::with_capacity(self.rounds);
        // The first round warms up.
        for round in 0..=self.rounds {
            let mut total = Duration::ZERO;
            self.collective.barrier()?;
            if repeats > 1 {
                let began = Instant::now();
                for _ in 0..repeats {
                    call(&mut *self.collective)?;
                    // A reduction must be fenced before its partials are published again.
                    self.fence()?;
                }
                total = began.elapsed();
            } else {
                let began = Instant::now();
                call(&mut *self.collective)?;
                total += began.elapsed();
                self.fence()?;
            }
            if round > 0 {
                times.push(total.as_secs_f64() * 1e6 / repeats as f64);
            }
        }
        times.sort_by(f64::total_cmp);
        // A call takes as long as it takes the slowest rank: the root of a broadcast has nothing to wait for.
        let (rank, ranks) = (self.collective.rank(), self.collective.size() as usize);
        let mut table = vec![0; 2 * ranks];
        table[rank as usize] = times[times.len() / 2].to_bits();
        table[ranks + rank as usize] = times[0].to_bits();
        let owners: Vec<u32> = (0..2 * ranks).map(|slot| (slot % ranks) as u32).collect();
        self.collective.exchange_slots(&mut table, &owners)?;
        let slowest = |words: &[u64]| words.iter().map(|word| f64::from_bits(*word)).fold(0.0, f64::max);
        Ok((slowest(&table[..ranks]), slowest(&table[ranks..])))
    }

    fn fence(&mut self) -> Result<(), TrainerError> {
        Ok(self.collective.barrier()?)
    }
}

/// A bare connection between two ranks, for what the link gives.
struct Duplex {
    sending: TcpStream,
    receiving: TcpStream,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
}

impl Duplex {
    fn between(collective: &mut dyn Collective) -> Result<Duplex, TrainerError> {
        let broken = |error: std::io::Error| TrainerError::Broken(format!("cannot connect: {error}"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(broken)?;
        let mut ports = [0, 0];
        ports[collective.rank() as usize] = u64::from(listener.local_addr().map_err(broken)?.port());
        collective.exchange_slots(&mut ports, &[0, 1])?;
        let other = ports[1 - collective.rank() as usize] as u16;
        let sending = TcpStream::connect((Ipv4Addr::LOCALHOST, other)).map_err(broken)?;
        let (receiving, _) = listener.accept().map_err(broken)?;
        for stream in [&sending, &receiving] {
            stream.set_nodelay(true).map_err(broken)?;
        }
        Ok(Duplex {
            sending,
            receiving,
            outgoing: Vec::new(),
            incoming: Vec::new(),
        })
    }

    /// Sends and receives so many bytes at once.
    fn exchange(&mut self, bytes: usize) -> std::io::Result<()> {
        self.outgoing.resize(bytes, 1);
        self.incoming.resize(bytes, 0);
        let (sending, outgoing) = (&mut self.sending, &self.outgoing);
        let (receiving, incoming) = (&mut self.receiving, &mut self.incoming);
        std::thread::scope(|scope| {
            let sender = scope.spawn(move || sending.write_all(outgoing));
            receiving.read_exact(incoming)?;
            sender
                .join()
                .unwrap_or_else(|_| Err(std::io::Error::other("the sender panicked")))
        })
    }
}

fn as_json(lines: &[Line]) -> Result<String, TrainerError> {
    let mut text = String::new();
    for line in lines {
        text += &serde_json::to_string(line).map_err(|error| TrainerError::Broken(error.to_string()))?;
        text.push('\n');
    }
    Ok(text)
}

fn as_table(lines: &[Line]) -> String {
    let mut text = format!(
        "{:<16}{:>12}{:>14}{:>14}{:>10}{:>10}\n",
        "call", "bytes", "median µs", "least µs", "GB/s", "of limit"
    );
    for line in lines {
        let share = line
            .share_of_limit
            .map_or(String::new(), |share| format!("{:.0}%", 100.0 * share));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<16}{:>12}{:>14.1}{:>14.1}{:>10.2}{share:>10}",
            line.call, line.bytes, line.median_us, line.least_us, line.gigabytes_per_second
        );
    }
    text
}

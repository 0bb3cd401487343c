//! `lockstep-trainer bench collectives`: latency and bandwidth of the collectives by size, on this machine.
//!
//! The command starts itself once a rank, with the communicator's id in the environment (under MPI the processes are there
//! already). The ranks meet, measure in step, and rank 0 prints: the median of the rounds, the rate of the payload, and its
//! share of what memory or the link gives to a plain copy of the same bytes, measured in the same rounds.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use lockstep_collective::{Aborter, BufferId, Collective, LaneTree, ReduceLanes, Wire};
use tch::Tensor;

use crate::device::FlatTensors;
use crate::device::compute::Compute;
use crate::device::memory::Flat;
use crate::error::TrainerError;
use crate::ranks::{self, PATIENCE};
use crate::train::Mpi;

mod duplex;

use duplex::Duplex;

/// What carries the data that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Carrier {
    /// Our own transport in shared memory.
    Host,
    /// Our own transport over TCP on the loopback interface.
    Tcp,
    /// NCCL between this machine's GPUs, one a rank.
    Nccl,
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
        return measure(collective, Compute::Host, options);
    }
    if let Some(place) = ranks::place() {
        let (collective, compute) = ranks::meet(&place, options.backend, options.ranks)?;
        return measure(collective, compute, options);
    }
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    ranks::start_ranks(options.backend, (options.ranks, &arguments), |_| {})
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
    compute: Compute,
    partials: BufferId,
    parameters: BufferId,
    rounds: usize,
    tcp: Option<Duplex>,
}

fn measure(mut collective: Box<dyn Collective>, compute: Compute, options: &BenchOptions) -> Result<(), TrainerError> {
    let partials = collective.allocate("partials", options.largest)?;
    let parameters = collective.allocate("parameters", options.largest)?;
    // Values that need all their bits, so that nothing travels halved.
    let values: Vec<f32> = (0..options.largest / 4)
        .map(|place| (place % 1000) as f32 + 1.0 / 3.0)
        .collect();
    Flat::of(collective.memory(partials), &compute)?
        .view::<f32>(0, &[values.len() as i64])?
        .f_copy_(&Tensor::from_slice(&values))?;
    compute.synchronize()?;
    let tcp = match options.backend {
        Carrier::Tcp if collective.size() == 2 => Some(Duplex::between(&mut *collective)?),
        _ => None,
    };
    let mut bench = Bench {
        collective,
        compute,
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
                // On a device a call has only been given to the stream when it returns.
                self.compute.synchronize()?;
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

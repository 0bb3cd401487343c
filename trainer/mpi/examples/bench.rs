//! What the MPI backend costs beside MPI's own collectives: 64 MiB over two ranks, turn about in one run, medians of the
//! slower rank.
//!
//! `cargo run --release -p lockstep-trainer-mpi --example bench [-- ROUNDS [CHUNK_KIB [AHEAD [GATHER_KIB [HALVES]]]]]`. It starts
//! itself under mpirun (LOCKSTEP_MPIRUN names another one); rank 0 prints a table, and one line of JSON at the end.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
#![allow(unsafe_code)] // MPI's own collectives are called as they are.

use std::ops::Range;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use lockstep_collective::{Aborter, BufferId, Collective, LaneTree, ReduceLanes, Wire};
use lockstep_trainer::started::mpi_rank;
use lockstep_trainer::train::Mpi as _;
use lockstep_trainer_mpi::{Communicator, Library, Options};
use mpi::ffi;
use serde_json::json;

const RANKS: u32 = 2;
const BYTES: usize = 64 << 20;
const ELEMENTS: usize = BYTES / size_of::<f32>();
const HALF: usize = ELEMENTS / RANKS as usize;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if mpi_rank().is_some() {
        measure(&words.iter().map(|word| word.parse().unwrap()).collect::<Vec<usize>>());
        return ExitCode::SUCCESS;
    }
    let mpirun = std::env::var("LOCKSTEP_MPIRUN").unwrap_or_else(|_| "mpirun".to_owned());
    let status = Command::new(mpirun)
        .args(["-n", &RANKS.to_string()])
        .arg(std::env::current_exe().unwrap())
        .args(words)
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .env("OMPI_MCA_hwloc_base_binding_policy", "none")
        .status()
        .unwrap();
    ExitCode::from(u8::from(!status.success()))
}

/// One thing that is measured.
struct Subject {
    name: &'static str,
    /// Calls in a row: many where one is shorter than a clock can tell.
    calls: u32,
    times: Vec<Duration>,
}

fn measure(words: &[usize]) {
    let word = |index: usize, usual: usize| words.get(index).copied().unwrap_or(usual);
    let usual = Options::default();
    let options = Options {
        chunk_bytes: word(1, usual.chunk_bytes >> 10) << 10,
        chunks_ahead: word(2, usual.chunks_ahead),
        gather_bytes: word(3, usual.gather_bytes >> 10) << 10,
        halves_when_near: word(4, 0) > 0,
        ..usual
    };
    Library.start().unwrap();
    let rank = mpi_rank().unwrap();
    let mut collective = Communicator::connect(rank, RANKS, options, Duration::from_secs(20), &Aborter::new()).unwrap();
    let gradients = collective.allocate("gradients", BYTES).unwrap();
    let halves = collective.allocate("bf16 gradients", BYTES).unwrap();
    let parameters = collective.allocate("parameters", BYTES).unwrap();
    let result = collective.allocate("result", BYTES / 2).unwrap();
    fill(&mut collective, gradients, |place| place as f32 * 1.000_1);
    fill(&mut collective, halves, |place| (place % 128) as f32);
    fill(&mut collective, parameters, |place| place as f32);

    let mut subjects = [
        ("reduce_lanes", 1),
        ("MPI_Reduce_scatter_block", 1),
        ("reduce_lanes of bf16", 1),
        ("all_gather_v", 1),
        ("MPI_Allgather", 1),
        ("exchange_slots of 8 bytes", 200),
        ("barrier", 200),
        ("MPI_Barrier", 200),
    ]
    .map(|(name, calls)| Subject {
        name,
        calls,
        times: Vec::new(),
    });
    let rounds = word(0, 30);
    for round in 0..=rounds {
        for (number, subject) in subjects.iter_mut().enumerate() {
            collective.barrier().unwrap();
            let started = Instant::now();
            for _ in 0..subject.calls {
                match number {
                    0 => reduce(&mut collective, gradients),
                    1 => reduce_by_mpi(&mut collective, gradients, result),
                    2 => reduce(&mut collective, halves),
                    3 => gather(&mut collective, parameters),
                    4 => gather_by_mpi(&mut collective, gradients, parameters),
                    5 => collective.exchange_slots(&mut [u64::from(rank)], &[0]).unwrap(),
                    6 => collective.barrier().unwrap(),
                    // SAFETY: all ranks come here, and nothing else is under way.
                    _ => assert_eq!(unsafe { ffi::MPI_Barrier(ffi::RSMPI_COMM_WORLD) }, 0),
                }
            }
            let took = slower(&mut collective, started.elapsed() / subject.calls);
            // The first round is for the pages and connections that it makes.
            if round > 0 {
                subject.times.push(took);
            }
        }
    }
    if rank == 0 {
        print(rounds, &options, &mut subjects);
    }
    drop(collective);
    Library.finish().unwrap();
}

fn print(rounds: usize, options: &Options, subjects: &mut [Subject]) {
    println!(
        "{RANKS} ranks, {rounds} rounds, {} MiB; {options:?}; {}",
        BYTES >> 20,
        Library.version()
    );
    println!("{:<28}{:>14}{:>14}", "", "median", "least");
    let mut medians = serde_json::Map::new();
    for Subject { name, times, .. } in subjects {
        times.sort();
        let median = times[times.len() / 2];
        println!("{name:<28}{median:>14.3?}{:>14.3?}", times[0]);
        medians.insert((*name).to_owned(), json!(median.as_secs_f64() * 1e3));
    }
    let ms = |name: &str| medians[name].as_f64().unwrap();
    println!(
        "{}",
        json!({
            "mpi": Library.version(), "ranks": RANKS, "bytes": BYTES, "rounds": rounds,
            "reduction_ratio": ms("reduce_lanes") / ms("MPI_Reduce_scatter_block"),
            "gather_ratio": ms("all_gather_v") / ms("MPI_Allgather"), "median_ms": medians,
        })
    );
}

fn fill(collective: &mut Communicator, buffer: BufferId, value: impl Fn(u32) -> f32) {
    let memory = collective.buffer_mut(buffer).floats_mut(0..ELEMENTS);
    for (place, element) in (0u32..).zip(memory) {
        *element = value(place);
    }
}

/// The time of the rank that took longer.
fn slower(collective: &mut Communicator, took: Duration) -> Duration {
    let mut table = [took.as_nanos() as u64; 2];
    collective.exchange_slots(&mut table, &[0, 1]).unwrap();
    Duration::from_nanos(table[0].max(table[1]))
}

fn reduce(collective: &mut Communicator, buffer: BufferId) {
    let rank_lanes: [Range<u32>; 2] = [0..1, 1..2];
    let tree = LaneTree::full(RANKS);
    let request = ReduceLanes {
        bucket: 0,
        owners: &[(0..HALF, 0), (HALF..ELEMENTS, 1)],
        rank_lanes: &rank_lanes,
        tree: &tree,
        buffers: &[buffer],
        wire: Wire::Float32,
    };
    collective.publish(0).unwrap();
    collective.reduce_lanes(&request).unwrap();
}

fn gather(collective: &mut Communicator, buffer: BufferId) {
    let ranges = [(0..BYTES / 2, 0), (BYTES / 2..BYTES, 1)];
    collective.all_gather_v(buffer, &ranges).unwrap();
}

fn reduce_by_mpi(collective: &mut Communicator, buffer: BufferId, result: BufferId) {
    let from = collective.buffer(buffer).ptr().as_ptr();
    let to = collective.buffer(result).ptr().as_ptr();
    // SAFETY: both buffers are as long as the counts say, and nothing else is under way.
    let code = unsafe {
        ffi::MPI_Reduce_scatter_block(
            from.cast(),
            to.cast(),
            HALF as i32,
            ffi::RSMPI_FLOAT,
            ffi::RSMPI_SUM,
            ffi::RSMPI_COMM_WORLD,
        )
    };
    assert_eq!(code, 0);
}

fn gather_by_mpi(collective: &mut Communicator, from: BufferId, to: BufferId) {
    let from = collective.buffer(from).ptr().as_ptr();
    let to = collective.buffer(to).ptr().as_ptr();
    // SAFETY: both buffers are as long as the counts say, and nothing else is under way.
    let code = unsafe {
        ffi::MPI_Allgather(
            from.cast(),
            HALF as i32,
            ffi::RSMPI_FLOAT,
            to.cast(),
            HALF as i32,
            ffi::RSMPI_FLOAT,
            ffi::RSMPI_COMM_WORLD,
        )
    };
    assert_eq!(code, 0);
}

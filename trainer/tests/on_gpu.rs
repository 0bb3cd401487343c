//! Engines on GPUs over NCCL: one hash a step, however often and on however many GPUs; sums of slots with the bits of the
//! CPU. Ignored where tests usually run; on a machine with GPUs: `cargo test --release -p lockstep-trainer --test on_gpu
//! -- --ignored --nocapture`, with LD_LIBRARY_PATH at the CUDA build's `torch/lib` where the binary was built for the CPU.
//!
//! Ranks are processes that a test starts, with the environment that the launcher gives them. They write what they have
//! made into a folder, and the test compares.
#![allow(clippy::unwrap_used, missing_docs)]

mod engines;
mod meeting;

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_autograd::cuda::open_libraries;
use lockstep_autograd::device::{Cuda, leave_if_opened};
use lockstep_collective::communication::{Communication, Overlap};
use lockstep_collective::{Accelerator, Backend, Meeting, join, new_id, new_nccl_id};
use lockstep_config::{Precision, prepare_for_gpu};
use lockstep_optim::tensors::sums::{BlockArithmetic as _, Halving};
use lockstep_trainer::device::compute::Compute;
use lockstep_trainer::device::opening::open_gpu;
use nccl_rs::Nccl;
use tch::{Device, Tensor};

use engines::{METHODS, Run, config, one_rank};
use meeting::communicate;

/// Where a rank finds its case: folder, precision, method by number, rank and world.
const PLACE: &str = "LOCKSTEP_TEST_PLACE";
const PATIENCE: Duration = Duration::from_secs(120);

fn gpus() -> u32 {
    open_libraries();
    let count = Cuda::count().unwrap() as u32;
    assert!(count > 0, "{}", Cuda::open(0).unwrap_err());
    count
}

/// The world of a case, rank by rank.
fn start(folder: &Path, case: (&str, usize), world: u32, environment: &[(&str, &str)]) -> Vec<Child> {
    let rank = |rank: u32| {
        let place = format!("{} {} {} {rank} {world}", folder.display(), case.0, case.1);
        let mut command = Command::new(std::env::current_exe().unwrap());
        prepare_for_gpu(&mut command);
        command
            .args(["--ignored", "--exact", "--nocapture", "one_rank_on_a_gpu"])
            .env(PLACE, place)
            .envs(environment.iter().copied())
            .spawn()
            .unwrap()
    };
    (0..world).map(rank).collect()
}

/// The hashes and numbers of a case, which all its ranks must agree on: as rank 0 has written them.
fn made(case: (&str, usize), world: u32, environment: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    for (rank, mut child) in start(folder.path(), case, world, environment).into_iter().enumerate() {
        let status = child.wait().unwrap();
        assert!(status.success(), "rank {rank} of {world} ended with {status}: {case:?}");
    }
    let told = |rank: u32| std::fs::read_to_string(folder.path().join(format!("rank-{rank}"))).unwrap();
    let first = told(0);
    for rank in 1..world {
        assert_eq!(told(rank), first, "rank {rank} of {world}: {case:?}");
    }
    first
}

/// A line a step: its hash, and the bits of its numbers.
fn written(run: &Run) -> String {
    let hashes = run.hashes.iter().map(|hash| format!("{hash:02x?}\n"));
    let numbers = run.numbers.iter().map(|all| format!("{:x?}\n", all.map(f64::to_bits)));
    hashes.chain(numbers).collect()
}

/// The communicator's id, through the folder.
fn id_in(folder: &Path, rank: u32) -> Vec<u8> {
    let (written, file) = (folder.join("id.part"), folder.join("id"));
    if rank == 0 {
        std::fs::write(&written, new_nccl_id(&Nccl::load().unwrap()).unwrap()).unwrap();
        std::fs::rename(&written, &file).unwrap();
    }
    let began = Instant::now();
    loop {
        if let Ok(id) = std::fs::read(&file) {
            return id;
        }
        assert!(began.elapsed() < PATIENCE, "rank 0 made no id");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
#[ignore = "a rank, started as a process by the tests below"]
fn one_rank_on_a_gpu() {
    let Ok(place) = std::env::var(PLACE) else { return };
    open_libraries();
    let words: Vec<&str> = place.split(' ').collect();
    let [folder, precision, method, rank, world] = words[..] else {
        panic!("{place}")
    };
    let (folder, rank, size) = (
        Path::new(folder),
        rank.parse::<u32>().unwrap(),
        world.parse::<u32>().unwrap(),
    );
    let config = config(precision, METHODS[method.parse::<usize>().unwrap()], "fp32");
    assert_eq!(config.run.precision == Precision::Bf16, precision == "bf16");
    let gpu = open_gpu("the test", config.run.precision, rank as usize).unwrap();
    let id = id_in(folder, rank);
    let accelerator = Arc::clone(&gpu) as Arc<dyn Accelerator>;
    let connect = move || {
        let meeting = Meeting {
            rank,
            size,
            deadline: PATIENCE,
            stall: Some(PATIENCE),
            accelerator: Some(accelerator),
            ..Meeting::default()
        };
        join(Backend::Nccl, &id, meeting)
    };
    let compute = Compute::Gpu(gpu);
    let communication = Communication::start(compute.collectives(), Overlap::Thread, connect).unwrap();
    let run = one_rank(&config, communication, size, &compute);
    std::fs::write(folder.join(format!("rank-{rank}")), written(&run)).unwrap();
    leave_if_opened(0);
}

const CASES: [(&str, usize); 4] = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("bf16", 0)];

#[test]
#[ignore = "needs a GPU"]
fn one_gpu_makes_the_same_hashes_twice_and_with_one_launch_after_the_other() {
    gpus();
    for case in CASES {
        let once = made(case, 1, &[]);
        assert_eq!(made(case, 1, &[]), once, "a second time: {case:?}");
        assert_eq!(
            made(case, 1, &[("CUDA_LAUNCH_BLOCKING", "1")]),
            once,
            "an event is missing somewhere: {case:?}"
        );
        println!("seen: {case:?}: one hash a step, three times");
    }
}

#[test]
#[ignore = "needs two GPUs or more"]
fn every_number_of_gpus_makes_the_hashes_of_one() {
    let most = gpus().min(4);
    assert!(most > 1, "there is one GPU, and one rank is not compared with itself");
    for case in CASES {
        let one = made(case, 1, &[]);
        for world in 2..=most {
            assert_eq!(made(case, world, &[]), one, "{world} GPUs: {case:?}");
        }
        println!("seen: {case:?}: one hash a step on 1 to {most} GPUs");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn losses_are_near_those_of_the_host() {
    gpus();
    for (case, near) in [(("fp32", 0), 1e-4), (("bf16", 0), 5e-2)] {
        let (precision, method) = case;
        let told = made(case, 1, &[]);
        let losses: Vec<f64> = told
            .lines()
            .filter_map(|line| line.strip_prefix('[')?.strip_suffix(']'))
            .map(|line| line.split(", ").collect::<Vec<_>>())
            .filter(|words| words.len() == 4)
            .map(|words| f64::from_bits(u64::from_str_radix(words[0], 16).unwrap()))
            .collect();
        let config = config(precision, METHODS[method], "fp32");
        let id = new_id(&[9; 32], 1).unwrap();
        let host = one_rank(&config, communicate(&id, 0, 1), 1, &Compute::HostTensors);
        assert_eq!(losses.len(), host.numbers.len());
        for (step, (ours, theirs)) in losses.iter().zip(&host.numbers).enumerate() {
            println!("step {step}: {ours} on the GPU, {} on the host", theirs[0]);
            assert!((ours / theirs[0] - 1.0).abs() < near, "step {step}: {case:?}");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn sums_and_hashes_of_slots_have_the_bits_of_the_cpu() {
    gpus();
    let gpu = Cuda::open(0).unwrap().device();
    for count in [1, 1000, 65_536, 200_001] {
        let value = |i: usize| f32::from_bits((i as u32).wrapping_mul(2_654_435_761) & 0xbfff_ffff);
        let a: Vec<f32> = (0..count).map(value).collect();
        let b: Vec<f32> = (0..count).map(|i| value(i + 17)).collect();
        for block in [256, 65_536] {
            let on = |device: Device| {
                let (a, b) = (
                    Tensor::from_slice(&a).to_device(device),
                    Tensor::from_slice(&b).to_device(device),
                );
                let bits = |tensor: Tensor| -> Vec<i64> {
                    let words = tensor.view_dtype(tch::Kind::Int64).to_device(Device::Cpu);
                    Vec::try_from(words).unwrap()
                };
                [
                    bits(Halving.dots(&a, &b, block).unwrap()),
                    bits(Halving.square_distances(&a, &b, block).unwrap()),
                    bits(Halving.not_finite(&a, block).unwrap()),
                    bits(Halving.hashes(&a, block).unwrap()),
                ]
            };
            assert_eq!(on(gpu), on(Device::Cpu), "{count} in blocks of {block}");
        }
    }
}

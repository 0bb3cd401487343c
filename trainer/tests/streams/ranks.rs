//! A world of two ranks: whole engines over NCCL's double, each on a device of its own that is watched, or over the host's
//! communicator.

use std::ops;
use std::sync::Arc;
use std::time::Duration;

use accelerator_double::{double, nccl};
use lockstep_collective::communication::{Communication, Overlap};
use lockstep_collective::{Aborter, Backend, HostDevice, Meeting, connect, join, new_id, new_nccl_id};
use lockstep_config::RunConfig;
use lockstep_data::MicroBatch;
use lockstep_device_recorder::{Completion, Log, Recorder};
use lockstep_proto::domain::Plan;
use lockstep_trainer::device::compute::Compute;
use lockstep_trainer::model::choice::from_config;
use lockstep_trainer::step::Engine;
use nccl_rs::UniqueId;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::watched::{Fault, Watched, tell_of_nccl};

pub(crate) const RANKS: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(60);
const ROWS: u32 = 2;
const COLUMNS: u32 = 8;
const VOCABULARY: u32 = 29;

/// What the ranks do.
#[derive(Clone, Debug)]
pub(crate) struct Play {
    pub(crate) seed: u64,
    pub(crate) lanes: u32,
    pub(crate) layers: u32,
    pub(crate) precision: &'static str,
    pub(crate) wire: &'static str,
    pub(crate) reduction: &'static str,
    pub(crate) method: &'static str,
    pub(crate) bucket_bytes: usize,
    pub(crate) micro_batches: u32,
    pub(crate) steps: u64,
    /// Steps between two comparisons of memory with what was written.
    pub(crate) drift_every: u64,
}

impl Play {
    /// A play of several buckets, drawn from a seed.
    pub(crate) fn random(seed: u64) -> Play {
        let mut random = StdRng::seed_from_u64(seed);
        let lanes = random.random_range(2..5);
        let (precision, wire) = [("fp32", "fp32"), ("bf16", "fp32"), ("fp32", "bf16")][random.random_range(0..3)];
        Play {
            seed,
            lanes,
            layers: random.random_range(1..3),
            precision,
            wire,
            reduction: ["invariant", "fast"][random.random_range(0..2)],
            method: METHODS[random.random_range(0..METHODS.len())],
            bucket_bytes: 4 * random.random_range(300..4000),
            micro_batches: random.random_range(1..6),
            steps: 3,
            drift_every: 1,
        }
    }

    /// The same, with so many micro-batches that no lane is idle.
    pub(crate) fn with_work_for_all(self) -> Play {
        let micro_batches = self.micro_batches + self.lanes - 1;
        Play { micro_batches, ..self }
    }

    /// Whether every lane has work.
    pub(crate) fn is_busy(&self) -> bool {
        self.micro_batches >= self.lanes
    }

    fn config(&self) -> RunConfig {
        let text = format!(
            "[run]\nname = \"streams\"\nseed = 7\nlanes = {}\nsteps = 40\nprecision = \"{}\"\nreduction = \"{}\"\n\
             [data]\npath = \"unused\"\nsequence_length = {COLUMNS}\n\
             [model]\nkind = \"gpt2\"\nlayers = {}\nheads = 2\nwidth = 16\nvocab = {VOCABULARY}\nbias = true\n\
             [batch]\nmicro_batch = {ROWS}\nschedule = 10\n\
             [learning_rate]\nschedule = 0.002\n\
             [collective]\nwire = \"{}\"\n\
             [fault]\ndrift_every = {}\n\
             [optimizer]\n{}\n",
            self.lanes, self.precision, self.reduction, self.layers, self.wire, self.drift_every, self.method
        );
        RunConfig::parse(&text, "streams.toml", &[]).unwrap()
    }

    /// The lanes of every rank; not the same number where they cannot be dealt evenly.
    fn rank_lanes(&self) -> Vec<ops::Range<u32>> {
        let border = |rank: u32| rank * self.lanes / RANKS;
        (0..RANKS).map(|rank| border(rank)..border(rank + 1)).collect()
    }
}

/// One that steps together, behind sums over all tensors, and one that steps bucket by bucket.
pub(crate) const METHODS: [&str; 2] = [
    "method = \"muonmax\"\nmomo = { lower_bound = 0.0 }",
    "method = \"adamw\"",
];

fn batch(step: u64, index: u32) -> MicroBatch {
    let count = (ROWS * COLUMNS) as usize;
    let token =
        |i: usize| (((i as u64 * 7 + step * 131 + u64::from(index) * 17) * 2_654_435_761) >> 7) % u64::from(VOCABULARY);
    let tokens: Vec<i64> = (0..=count).map(|i| token(i) as i64).collect();
    MicroBatch {
        rows: ROWS,
        columns: COLUMNS,
        inputs: tokens[..count].to_vec(),
        targets: tokens[1..].to_vec(),
        counted: count as u64,
    }
}

/// What a rank leaves: the hash of each step, and the masters, which are collected in the middle.
pub(crate) type Left = (Vec<[u8; 32]>, Vec<f32>);

/// Steps, then the masters, then one more step: it writes where the masters were collected.
fn one_rank(play: &Play, communication: Communication, compute: &Compute) -> Left {
    tch::set_num_threads(1);
    let config = play.config();
    let model = from_config(&config, VOCABULARY);
    let lanes = play.rank_lanes();
    let mut engine = Engine::with_buckets(&config, model, communication, lanes, compute, play.bucket_bytes).unwrap();
    let mut hashes = vec![engine.parameter_hash().unwrap()];
    let mut masters = Vec::new();
    for step in 1..=play.steps {
        if step == play.steps {
            engine.settle().unwrap();
            engine
                .gather_masters(|_, _, values| {
                    masters.extend_from_slice(values);
                    Ok(())
                })
                .unwrap();
        }
        let plan = Plan {
            step,
            learning_rate: 0.002,
            micro_batches: play.micro_batches,
            first_sample: 0,
            samples: u64::from(play.micro_batches * ROWS),
            validate: false,
            last: false,
            version: 0,
            checkpoint: false,
            momentum: None,
            weight_decay: None,
            stop: false,
        };
        let mut indices = engine.micro_batches_of(&plan).into_iter();
        let outcome = engine.step(&plan, 0, &mut || Ok(batch(step, indices.next().unwrap())));
        hashes.push(outcome.unwrap().parameter_hash);
    }
    engine.settle().unwrap();
    (hashes, masters)
}

/// Runs `rank` for each rank on a thread of its own, and gives what all of them leave: the same.
fn at_every_rank(rank: impl Fn(u32) -> Left + Sync) -> Left {
    let mut ranks: Vec<Left> = std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..RANKS)
            .map(|number| {
                let rank = &rank;
                let thread = std::thread::Builder::new().name(format!("D of rank {number}"));
                thread.spawn_scoped(scope, move || rank(number)).unwrap()
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let first = ranks.remove(0);
    assert!(ranks.iter().all(|other| *other == first), "every rank says the same");
    first
}

/// The play over NCCL's double without the edges of `fault`, and the log of it.
pub(crate) fn watched(play: &Play, fault: Fault) -> (Left, Log) {
    let recorder = Recorder::start(Completion::AtRandom { seed: play.seed }).unwrap();
    let pen = *recorder;
    tell_of_nccl(pen);
    let id = new_nccl_id(&nccl()).unwrap();
    let unique = UniqueId::from_bytes(&id).unwrap();
    double().set_polls(&unique, 2, 3);
    let devices: Vec<_> = (0..RANKS)
        .map(|rank| Watched::new(rank, pen, fault, play.seed + u64::from(rank)))
        .collect();
    let left = at_every_rank(|rank| {
        let device = &devices[rank as usize];
        let (id, accelerator) = (id.clone(), Arc::clone(device));
        let meet = move || {
            let meeting = Meeting {
                rank,
                size: RANKS,
                deadline: PATIENCE,
                stall: Some(PATIENCE),
                accelerator: Some(accelerator),
                nccl: Some(nccl()),
                ..Meeting::default()
            };
            join(Backend::Nccl, &id, meeting)
        };
        let communication = Communication::start(Arc::clone(device) as _, Overlap::Thread, meet).unwrap();
        one_rank(play, communication, &Compute::HostTensorsOver(Arc::clone(device) as _))
    });
    for device in &devices {
        assert_eq!(device.offences(), 0, "something came before NCCL's success");
    }
    let wrong = (double().live(&unique), double().misuse(&unique));
    assert_eq!(wrong, (0, 0), "communicators left, and misused");
    (left, recorder.log())
}

/// The same play over the host's communicator, where nothing runs later.
pub(crate) fn plain(play: &Play) -> Left {
    let id = new_id(&[9; 32], 1).unwrap();
    at_every_rank(|rank| {
        let id = id.clone();
        let meet = move || connect(Backend::Host, &id, rank, RANKS, PATIENCE, &Aborter::new());
        let communication = Communication::start(Arc::new(HostDevice), Overlap::Thread, meet).unwrap();
        one_rank(play, communication, &Compute::HostTensors)
    })
}

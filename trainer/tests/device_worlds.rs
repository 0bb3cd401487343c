//! Whole engines whose weights, gradients and optimiser are tensors, as on a GPU, over real communicators and the
//! communication thread: one hash a step on 1, 2 and 3 ranks, and near the engine that works over slices.
#![allow(clippy::unwrap_used, missing_docs)]

mod meeting;

use std::collections::HashMap;
use std::ops::Range;

use lockstep_collective::new_id;
use lockstep_config::RunConfig;
use lockstep_data::MicroBatch;
use lockstep_proto::domain::Plan;
use lockstep_trainer::device::compute::Compute;
use lockstep_trainer::model::choice::from_config;
use lockstep_trainer::step::Engine;

use meeting::communicate;

const ROWS: u32 = 2;
const COLUMNS: u32 = 24;
const VOCABULARY: u32 = 61;
const STEPS: u64 = 8;
/// An odd number, and not the same for every lane.
const MICRO_BATCHES: u32 = 5;

fn config(precision: &str, method: &str, wire: &str) -> RunConfig {
    let text = format!(
        "[run]\nname = \"worlds\"\nseed = 7\nlanes = 4\nsteps = 40\nprecision = \"{precision}\"\n\
         [data]\npath = \"unused\"\nsequence_length = {COLUMNS}\n\
         [model]\nkind = \"gpt2\"\nlayers = 2\nheads = 2\nwidth = 32\nvocab = {VOCABULARY}\nbias = true\n\
         [batch]\nmicro_batch = {ROWS}\nschedule = 10\n\
         [learning_rate]\nschedule = 0.002\n\
         [collective]\nwire = \"{wire}\"\n\
         [optimizer]\n{method}\n"
    );
    RunConfig::parse(&text, "device_worlds.toml", &[]).unwrap()
}

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

fn deal(lanes: u32, world: u32) -> Vec<Range<u32>> {
    (0..world).map(|r| r * lanes / world..(r + 1) * lanes / world).collect()
}

/// What every rank of a world agrees on: the hash and the numbers of each step, and the masters at the end.
#[derive(Debug, PartialEq)]
struct Run {
    hashes: Vec<[u8; 32]>,
    numbers: Vec<[f64; 4]>,
    masters: HashMap<String, Vec<f32>>,
}

fn one_rank(config: &RunConfig, id: &[u8], rank: u32, world: u32, compute: &Compute) -> Run {
    tch::set_num_threads(1);
    let communication = communicate(id, rank, world);
    let model = from_config(config, VOCABULARY);
    let mut engine = Engine::new(config, model, communication, deal(config.run.lanes, world), compute).unwrap();
    let mut hashes = vec![engine.parameter_hash().unwrap()];
    let mut numbers = Vec::new();
    for step in 1..=STEPS {
        let plan = Plan {
            step,
            learning_rate: 0.002,
            micro_batches: MICRO_BATCHES,
            first_sample: 0,
            samples: u64::from(MICRO_BATCHES * ROWS),
            validate: false,
            last: false,
            version: 0,
        };
        let mut indices = engine.micro_batches_of(&plan).into_iter();
        let outcome = engine
            .step(&plan, 0, &mut || Ok(batch(step, indices.next().unwrap())))
            .unwrap();
        assert_eq!(outcome.tokens, u64::from(MICRO_BATCHES * ROWS * COLUMNS));
        hashes.push(outcome.parameter_hash);
        numbers.push([
            outcome.loss,
            outcome.grad_norm,
            outcome.effective_learning_rate,
            outcome.update_norm,
        ]);
    }
    engine.settle().unwrap();
    let mut masters = HashMap::new();
    engine
        .gather_masters(|name, _, values| {
            masters.insert(name.to_owned(), values.to_vec());
            Ok(())
        })
        .unwrap();
    Run {
        hashes,
        numbers,
        masters,
    }
}

/// Runs a world, whose ranks must all say the same.
fn run(config: &RunConfig, world: u32, compute: &Compute) -> Run {
    let id = new_id(&[9; 32], 1).unwrap();
    let mut ranks: Vec<Run> = std::thread::scope(|scope| {
        let rank = |rank| {
            let id = &id;
            scope.spawn(move || one_rank(config, id, rank, world, compute))
        };
        let ranks: Vec<_> = (0..world).map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let first = ranks.remove(0);
    for other in ranks {
        assert_eq!(other, first, "every rank says the same");
    }
    first
}

const METHODS: [&str; 3] = [
    "method = \"muon\"\nweight_decay = 0.1\nclip_norm = 1.0",
    "method = \"muonmax\"\nmomo = { lower_bound = 0.0 }",
    "method = \"adamw\"\nclip_norm = 1.0",
];

#[test]
fn engines_over_tensors_make_the_same_hashes_in_every_world_and_follow_the_engine_over_slices() {
    for (precision, wire, near) in [("fp32", "fp32", 1e-4), ("bf16", "fp32", 5e-2), ("fp32", "bf16", 5e-2)] {
        for method in METHODS {
            let config = config(precision, method, wire);
            let place = format!("{precision}, wire {wire}, {method}");
            let alone = run(&config, 1, &Compute::HostTensors);
            for pair in alone.hashes.windows(2) {
                assert_ne!(pair[0], pair[1], "every step changes the parameters: {place}");
            }
            for world in [2, 3] {
                let several = run(&config, world, &Compute::HostTensors);
                assert_eq!(several, alone, "{world} ranks: {place}");
            }
            let host = run(&config, 2, &Compute::Host);
            assert_eq!(host.hashes[0], alone.hashes[0], "initial values are the same: {place}");
            for (step, (ours, theirs)) in alone.numbers.iter().zip(&host.numbers).enumerate() {
                for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                    // A loss is a mean over all tokens, and nearer than a norm of a gradient or of an update.
                    let limit = if index == 0 { near / 10.0 } else { near };
                    assert!(
                        (ours / theirs - 1.0).abs() < limit,
                        "{ours} for {theirs} in step {step}: {place}"
                    );
                }
            }
            // All together: the gradient of a key's bias is zero but for rounding, and some methods divide by its size.
            let (mut apart, mut size) = (0.0, 0.0);
            for (name, ours) in &alone.masters {
                for (ours, theirs) in ours.iter().zip(&host.masters[name]) {
                    apart += f64::from(ours - theirs).powi(2);
                    size += f64::from(*theirs).powi(2);
                }
            }
            let apart = f64::sqrt(apart / size);
            println!("masters are {apart:.1e} apart: {place}");
            assert!(apart < near, "masters are {apart} apart: {place}");
        }
    }
}

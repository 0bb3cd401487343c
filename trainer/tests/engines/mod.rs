//! Eight steps of an engine of a small model, for tests that compare devices and worlds.
#![allow(dead_code)] // Each test file uses its part.

use std::collections::HashMap;
use std::ops::Range;

use lockstep_collective::communication::Communication;
use lockstep_config::RunConfig;
use lockstep_data::MicroBatch;
use lockstep_proto::domain::Plan;
use lockstep_trainer::device::compute::Compute;
use lockstep_trainer::model::choice::from_config;
use lockstep_trainer::step::Engine;

const ROWS: u32 = 2;
const COLUMNS: u32 = 24;
pub(crate) const VOCABULARY: u32 = 61;
const STEPS: u64 = 8;
/// An odd number, and not the same for every lane.
pub(crate) const MICRO_BATCHES: u32 = 5;

pub(crate) fn config(precision: &str, method: &str, wire: &str) -> RunConfig {
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

pub(crate) fn batch(step: u64, index: u32) -> MicroBatch {
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

pub(crate) fn deal(lanes: u32, world: u32) -> Vec<Range<u32>> {
    (0..world).map(|r| r * lanes / world..(r + 1) * lanes / world).collect()
}

pub(crate) fn plan(step: u64) -> Plan {
    Plan {
        step,
        learning_rate: 0.002,
        micro_batches: MICRO_BATCHES,
        first_sample: 0,
        samples: u64::from(MICRO_BATCHES * ROWS),
        validate: false,
        last: false,
        version: 0,
        checkpoint: false,
        momentum: None,
        weight_decay: None,
        stop: false,
    }
}

/// What every rank of a world agrees on: the hash and the numbers of each step, and the masters at the end.
#[derive(Debug, PartialEq)]
pub(crate) struct Run {
    pub(crate) hashes: Vec<[u8; 32]>,
    pub(crate) numbers: Vec<[f64; 4]>,
    /// Variance and square of the gradient, as the lanes of each step estimate them.
    pub(crate) noise: Vec<[f64; 2]>,
    pub(crate) masters: HashMap<String, Vec<f32>>,
}

/// Eight steps of one rank.
pub(crate) fn one_rank(config: &RunConfig, communication: Communication, world: u32, compute: &Compute) -> Run {
    tch::set_num_threads(1);
    let model = from_config(config, VOCABULARY);
    let mut engine = Engine::new(config, model, communication, deal(config.run.lanes, world), compute).unwrap();
    let mut hashes = vec![engine.parameter_hash().unwrap()];
    let (mut numbers, mut noise) = (Vec::new(), Vec::new());
    for step in 1..=STEPS {
        let plan = plan(step);
        let mut indices = engine.micro_batches_of(&plan).into_iter();
        let outcome = engine
            .step(&plan, 0, &mut || Ok(batch(step, indices.next().unwrap())))
            .unwrap();
        assert_eq!(outcome.tokens, u64::from(MICRO_BATCHES * ROWS * COLUMNS));
        hashes.push(outcome.parameter_hash);
        let measured = outcome.noise.unwrap();
        noise.push([measured.variance, measured.square]);
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
        noise,
        masters,
    }
}

pub(crate) const METHODS: [&str; 3] = [
    "method = \"muon\"\nweight_decay = 0.1\nclip_norm = 1.0",
    "method = \"muonmax\"\nmomo = { lower_bound = 0.0 }",
    "method = \"adamw\"\nclip_norm = 1.0",
];

//! The noise of the gradient as the lanes of many steps estimate it, beside what the gradients of all single samples say, made
//! one by one in float64 by plain tensor code.
#![allow(clippy::unwrap_used, missing_docs)]

mod meeting;
mod reference;

use std::collections::HashMap;

use lockstep_collective::new_id;
use lockstep_config::RunConfig;
use lockstep_coordinator::adaptive::{Observation, Policy};
use lockstep_data::MicroBatch;
use lockstep_inventory::gpt2::Shape;
use lockstep_proto::domain::{Plan, StepMetrics};
use lockstep_trainer::device::compute::Compute;
use lockstep_trainer::model::choice::from_config;
use lockstep_trainer::step::Engine;
use meeting::communicate;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tch::{Device, Kind, Tensor};

const VOCABULARY: u32 = 19;
const COLUMNS: usize = 12;
/// Sequences that samples are drawn from.
const POOL: usize = 384;
const STEPS: u64 = 600;
const ROWS: u32 = 2;
/// Not the same for every lane: five lanes have two or three.
const MICRO_BATCHES: u32 = 12;

/// Nothing moves: the steps see the same parameters, those that the run begins with.
fn config() -> RunConfig {
    let text = format!(
        "run = {{ name = \"noise\", lanes = 5, steps = {STEPS}, precision = \"fp32\" }}\n\
         data = {{ path = \"unused\", sequence_length = {COLUMNS} }}\n\
         model = {{ kind = \"gpt2\", layers = 1, heads = 2, width = 16, vocab = {VOCABULARY} }}\n\
         batch = {{ micro_batch = {ROWS}, schedule = 24 }}\n\
         learning_rate = {{ schedule = 1e-30 }}\n\
         optimizer = {{ method = \"adamw\" }}\n"
    );
    RunConfig::parse(&text, "noise.toml", &[]).unwrap()
}

/// Sequences with a rule in them, so that their gradients have something in common, and with exceptions, so that they differ.
fn pool(random: &mut StdRng) -> Vec<Vec<i64>> {
    let sequence = |_| {
        let mut tokens = vec![random.random_range(0..i64::from(VOCABULARY))];
        while tokens.len() <= COLUMNS {
            let last = tokens[tokens.len() - 1];
            tokens.push(match random.random_ratio(2, 3) {
                true => (last % 4) + 3,
                false => random.random_range(0..i64::from(VOCABULARY)),
            });
        }
        tokens
    };
    (0..POOL).map(sequence).collect()
}

/// tr σ² of one sample's gradient and ‖G‖², over all samples of the pool.
fn of_single_gradients(pool: &[Vec<i64>], names: &HashMap<String, Tensor>) -> (f64, f64) {
    let shape = Shape {
        layers: 1,
        heads: 2,
        width: 16,
        vocabulary: VOCABULARY,
        context: COLUMNS as u32,
        bias: false,
        qk_norm: false,
    };
    let mut order: Vec<&String> = names.keys().collect();
    order.sort();
    let (mut sum, mut squares): (Option<Tensor>, f64) = (None, 0.0);
    for tokens in pool {
        let row = |from: usize| Tensor::from_slice(&tokens[from..from + COLUMNS]).reshape([1, COLUMNS as i64]);
        let loss = reference::loss(shape, 1, COLUMNS, names, &row(0), &row(1)) / COLUMNS as f64;
        let leaves: Vec<&Tensor> = order.iter().map(|name| &names[*name]).collect();
        let gradients = Tensor::run_backward(&[&loss], &leaves, false, false);
        let flat = Tensor::cat(&gradients.iter().map(|g| g.reshape([-1])).collect::<Vec<_>>(), 0);
        squares += flat.square().sum(Kind::Double).double_value(&[]);
        sum = Some(match sum {
            Some(sum) => sum + flat,
            None => flat,
        });
    }
    let count = pool.len() as f64;
    let mean_square = (sum.unwrap() / count).square().sum(Kind::Double).double_value(&[]);
    // Samples are drawn from the pool, so the pool is the whole population.
    (squares / count - mean_square, mean_square)
}

#[test]
fn the_noise_scale_of_lanes_is_that_of_single_gradients_within_ten_percent() {
    let seed: u64 = std::env::var("LOCKSTEP_NOISE_SEED").map_or(11, |seed| seed.parse().unwrap());
    println!("samples from seed {seed} (LOCKSTEP_NOISE_SEED changes it)");
    tch::set_num_threads(1);
    let mut random = StdRng::seed_from_u64(seed);
    let pool = pool(&mut random);
    let config = config();
    let id = new_id(&[5; 32], 1).unwrap();
    let model = from_config(&config, VOCABULARY);
    let mut engine = Engine::new(
        &config,
        model,
        communicate(&id, 0, 1),
        std::iter::once(0..config.run.lanes).collect(),
        &Compute::Host,
    )
    .unwrap();
    let mut names = HashMap::new();
    engine
        .gather_masters(|name, shape, values| {
            let leaf = Tensor::from_slice(values).reshape(shape).to_kind(Kind::Double);
            names.insert(name.to_owned(), leaf.to_device(Device::Cpu).set_requires_grad(true));
            Ok(())
        })
        .unwrap();
    let (variance, square) = of_single_gradients(&pool, &names);

    let mut policy = Policy::of(&config);
    let (mut variances, mut squares) = (0.0, 0.0);
    let unmoved = engine.parameter_hash().unwrap();
    for step in 1..=STEPS {
        let plan = Plan {
            step,
            learning_rate: 1e-30,
            micro_batches: MICRO_BATCHES,
            first_sample: 0,
            samples: u64::from(MICRO_BATCHES * ROWS),
            validate: false,
            last: false,
            version: 1,
            checkpoint: false,
            momentum: None,
            weight_decay: None,
            stop: false,
        };
        let outcome = engine
            .step(&plan, 0, &mut || {
                let rows: Vec<&Vec<i64>> = (0..ROWS).map(|_| &pool[random.random_range(0..POOL)]).collect();
                Ok(MicroBatch {
                    rows: ROWS,
                    columns: COLUMNS as u32,
                    inputs: rows.iter().flat_map(|row| row[..COLUMNS].to_vec()).collect(),
                    targets: rows.iter().flat_map(|row| row[1..].to_vec()).collect(),
                    counted: (ROWS as usize * COLUMNS) as u64,
                })
            })
            .unwrap();
        assert_eq!(outcome.parameter_hash, unmoved, "the parameters stay where they are");
        let noise = outcome.noise.unwrap();
        variances += noise.variance / STEPS as f64;
        squares += noise.square / STEPS as f64;
        policy.observe(&Observation::of(
            &plan,
            &StepMetrics {
                gradient_variance: Some(noise.variance),
                gradient_square: Some(noise.square),
                ..StepMetrics::default()
            },
        ));
    }
    let (direct, lanes) = (variance / square, variances / squares);
    let smoothed = policy.noise_scale().unwrap();
    println!(
        "tr σ² {variance:.4} directly, {variances:.4} from lanes; ‖G‖² {square:.5} and {squares:.5}; noise scale {direct:.2}, \
         {lanes:.2}, smoothed over 100 steps {smoothed:.2}"
    );
    for (what, ours, theirs) in [
        ("variance", variances, variance),
        ("square", squares, square),
        ("noise scale", lanes, direct),
    ] {
        assert!(
            (ours / theirs - 1.0).abs() < 0.1,
            "{what}: {ours} from lanes, {theirs} directly"
        );
    }
    assert!(
        (smoothed / direct - 1.0).abs() < 0.2,
        "over 100 steps: {smoothed} for {direct}"
    );
}

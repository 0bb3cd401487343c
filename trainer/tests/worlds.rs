//! Same bits on any world: engines over real communicators, one thread a rank, make the same parameter hash at every step
//! on 1, 2, 3 and 4 ranks; and ten of their steps equal ten steps of plain single-process tensor code.
#![allow(clippy::unwrap_used, missing_docs)]

mod meeting;
mod reference;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lockstep_collective::new_id;
use lockstep_config::{Method, Reduction, RunConfig, Wire};
use lockstep_data::{Dataset, MicroBatch, Options, TokenizerChoice, ValidationSet, prepare};
use lockstep_inventory::gpt2::Shape;
use lockstep_proto::domain::Plan;
use lockstep_session::Activity;
use lockstep_trainer::device::compute::Compute;
use lockstep_trainer::model::choice::from_config;
use lockstep_trainer::model::initial::values;
use lockstep_trainer::step::Engine;
use tch::{Device, Kind, Tensor};

use meeting::communicate;

const ROWS: u32 = 2;
const COLUMNS: u32 = 24;
const VOCABULARY: u32 = 61;

fn config(precision: &str, method: &str) -> RunConfig {
    let text = format!(
        "[run]\nname = \"worlds\"\nseed = 7\nlanes = 4\nsteps = 40\nprecision = \"{precision}\"\n\
         [data]\npath = \"unused\"\nsequence_length = {COLUMNS}\n\
         [model]\nkind = \"gpt2\"\nlayers = 2\nheads = 2\nwidth = 32\nvocab = {VOCABULARY}\nbias = true\n\
         [batch]\nmicro_batch = {ROWS}\nschedule = 8\n\
         [learning_rate]\nschedule = 0.002\n\
         [optimizer]\nclip_norm = 1.0\nweight_decay = 0.1\nmethod = \"{method}\"\n"
    );
    RunConfig::parse(&text, "worlds.toml", &[]).unwrap()
}

/// Micro-batch `index` of a step: the same for every world, made of a formula.
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

fn plan(step: u64, micro_batches: u32) -> Plan {
    Plan {
        step,
        learning_rate: 0.002,
        micro_batches,
        first_sample: 0,
        samples: u64::from(micro_batches * ROWS),
        validate: false,
        last: false,
        version: 0,
        checkpoint: false,
        momentum: None,
        weight_decay: None,
        stop: false,
    }
}

/// Lanes dealt as the coordinator deals them.
fn deal(lanes: u32, world: u32) -> Vec<Range<u32>> {
    (0..world).map(|r| r * lanes / world..(r + 1) * lanes / world).collect()
}

type Masters = HashMap<String, (Vec<i64>, Vec<f32>)>;

/// Runs a whole world and returns the hash of every step (the initial one first), losses, and the final masters.
fn run(
    config: &RunConfig,
    world: u32,
    steps: u64,
    micro_batches: fn(u64) -> u32,
) -> (Vec<[u8; 32]>, Vec<f64>, Masters) {
    let id = new_id(&[9; 32], 1).unwrap();
    let ranks: Vec<_> = (0..world)
        .map(|rank| {
            let (config, id) = (config.clone(), id.clone());
            std::thread::spawn(move || {
                tch::set_num_threads(1);
                let communication = communicate(&id, rank, world);
                let model = from_config(&config, VOCABULARY);
                let mut engine = Engine::new(
                    &config,
                    model,
                    communication,
                    deal(config.run.lanes, world),
                    &Compute::Host,
                )
                .unwrap();
                let mut hashes = vec![engine.parameter_hash().unwrap()];
                let mut losses = Vec::new();
                for step in 1..=steps {
                    let plan = plan(step, micro_batches(step));
                    let mut indices = engine.micro_batches_of(&plan).into_iter();
                    let outcome = engine
                        .step(&plan, u64::from(rank), &mut || Ok(batch(step, indices.next().unwrap())))
                        .unwrap();
                    assert_eq!(
                        outcome.directive,
                        u64::from(world - 1),
                        "the highest directive of any rank"
                    );
                    assert_eq!(outcome.tokens, u64::from(plan.micro_batches * ROWS * COLUMNS));
                    let hidden = if config.optimizer.method == Method::Muon { 8 } else { 0 };
                    assert_eq!(outcome.polar_factors, hidden);
                    hashes.push(outcome.parameter_hash);
                    losses.push(outcome.loss);
                }
                engine.settle().unwrap();
                let mut masters = Masters::new();
                engine
                    .gather_masters(|name, shape, values| {
                        masters.insert(name.to_owned(), (shape.to_vec(), values.to_vec()));
                        Ok(())
                    })
                    .unwrap();
                (hashes, losses, masters)
            })
        })
        .collect();
    let mut results: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
    let first = results.remove(0);
    for other in results {
        assert_eq!(other.0, first.0, "every rank reports the same hashes");
        assert_eq!(other.2, first.2, "every rank gathers the same masters");
    }
    first
}

fn same_on_every_world(precision: &str, method: &str, steps: u64, micro_batches: fn(u64) -> u32) {
    same_bits(&config(precision, method), steps, micro_batches);
}

/// Returns the hashes.
fn same_bits(config: &RunConfig, steps: u64, micro_batches: fn(u64) -> u32) -> Vec<[u8; 32]> {
    let (alone, losses, masters) = run(config, 1, steps, micro_batches);
    let distinct: std::collections::HashSet<_> = alone.iter().collect();
    assert_eq!(distinct.len(), alone.len(), "every step changes the parameters");
    for world in 2..=4 {
        let (hashes, other_losses, other_masters) = run(config, world, steps, micro_batches);
        for (step, (a, b)) in alone.iter().zip(&hashes).enumerate() {
            assert_eq!(a, b, "{:?}: hash of step {step} on {world} ranks", config.run);
        }
        assert_eq!(losses, other_losses);
        assert_eq!(masters, other_masters);
    }
    alone
}

#[test]
fn a_wire_that_rounds_gives_other_bits_but_the_same_on_every_world() {
    let mut config = config("bf16", "muon");
    let exact = same_bits(&config, 8, |step| [6, 3, 4, 11][step as usize % 4]);
    config.collective.wire = Wire::Bf16;
    let rounded = same_bits(&config, 8, |step| [6, 3, 4, 11][step as usize % 4]);
    assert_eq!(exact[0], rounded[0], "the initial parameters");
    assert_ne!(exact[1..], rounded[1..]);
}

#[test]
fn a_fast_reduction_trains_alike_but_its_bits_depend_on_the_world() {
    let mut config = config("fp32", "muon");
    config.run.reduction = Reduction::Fast;
    let (alone, losses, _) = run(&config, 1, 8, |_| 8);
    let (halves, other_losses, _) = run(&config, 2, 8, |_| 8);
    assert_eq!(alone[0], halves[0]);
    assert_ne!(alone[1..], halves[1..]);
    for (loss, other) in losses.iter().zip(&other_losses) {
        assert!((loss - other).abs() < 1e-3 * loss, "{loss} {other}");
    }
    // Two runs on one world are equal, all the same.
    assert_eq!(run(&config, 2, 8, |_| 8).0, halves);
}

#[test]
fn forty_steps_have_the_same_hashes_on_1_2_3_and_4_ranks_in_fp32() {
    same_on_every_world("fp32", "muon", 40, |_| 4);
}

#[test]
fn forty_steps_have_the_same_hashes_on_1_2_3_and_4_ranks_in_bf16() {
    same_on_every_world("bf16", "muon", 40, |_| 4);
}

#[test]
fn adamw_with_every_tensor_in_blocks_has_the_same_hashes_on_every_world() {
    same_on_every_world("fp32", "adamw", 10, |_| 4);
    same_on_every_world("bf16", "adamw", 10, |_| 4);
}

#[test]
fn micro_batches_that_lanes_do_not_divide_and_lanes_without_work_change_nothing() {
    // 6, 3, 1 and 11 micro-batches on 4 lanes: uneven lanes, one idle lane, three idle lanes.
    same_on_every_world("fp32", "muon", 8, |step| [6, 3, 1, 11][step as usize % 4]);
    same_on_every_world("bf16", "muon", 8, |step| [6, 3, 1, 11][step as usize % 4]);
}

#[test]
fn a_gradient_that_is_not_finite_is_refused_on_every_rank_before_anything_has_changed() {
    let config = config("fp32", "muon");
    let id = new_id(&[3; 32], 1).unwrap();
    let ranks: Vec<_> = (0..2u32)
        .map(|rank| {
            let (config, id) = (config.clone(), id.clone());
            std::thread::spawn(move || {
                tch::set_num_threads(1);
                let communication = communicate(&id, rank, 2);
                let mut engine = Engine::new(
                    &config,
                    from_config(&config, VOCABULARY),
                    communication,
                    deal(4, 2),
                    &Compute::Host,
                )
                .unwrap();
                let before = engine.parameter_hash().unwrap();
                // A learning rate that no float32 holds makes the first step's parameters infinite or NaN.
                let plan = Plan {
                    learning_rate: 1e38,
                    ..plan(1, 4)
                };
                let mut index = engine.micro_batches_of(&plan).into_iter();
                engine
                    .step(&plan, 0, &mut || Ok(batch(1, index.next().unwrap())))
                    .unwrap();
                let after = engine.parameter_hash().unwrap();
                assert_ne!(before, after);
                let mut index = engine.micro_batches_of(&plan).into_iter();
                let error = engine
                    .step(&plan, 0, &mut || Ok(batch(2, index.next().unwrap())))
                    .unwrap_err();
                (error.to_string(), after == engine.parameter_hash().unwrap())
            })
        })
        .collect();
    let results: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
    assert_eq!(results[0], results[1]);
    assert!(
        results[0].0.contains("not finite") || results[0].0.contains("the loss is"),
        "{}",
        results[0].0
    );
    assert!(results[0].1, "no parameter has changed");
}

/// Ten steps of the same run in float64 tensor code: gradients by library autograd, Muon and AdamW written out.
fn plain(config: &RunConfig, steps: u64, micro_batches: u32) -> Masters {
    let shape = Shape::from_config(config, VOCABULARY);
    let model = from_config(config, VOCABULARY);
    let keys = &config.optimizer;
    let double = |t: &Tensor| t.to_kind(Kind::Double);
    let mut parameters: HashMap<String, Tensor> = HashMap::new();
    let mut state: HashMap<String, (Tensor, Tensor)> = HashMap::new();
    for spec in model.inventory() {
        let start = Tensor::from_slice(&values(spec, config.run.seed)).reshape(&spec.shape[..]);
        let zeros = Tensor::zeros(&spec.shape[..], (Kind::Double, Device::Cpu));
        state.insert(spec.name.clone(), (zeros.copy(), zeros));
        parameters.insert(spec.name.clone(), double(&start).set_requires_grad(true));
    }
    let norm = |t: &Tensor| t.square().sum(Kind::Double).sqrt().double_value(&[]);
    for step in 1..=steps {
        let mut tokens = 0;
        for index in 0..micro_batches {
            let data = batch(step, index);
            let size = [i64::from(ROWS), i64::from(COLUMNS)];
            let (inputs, targets) = (
                Tensor::from_slice(&data.inputs).reshape(size),
                Tensor::from_slice(&data.targets).reshape(size),
            );
            reference::loss(shape, ROWS as usize, COLUMNS as usize, &parameters, &inputs, &targets).backward();
            tokens += data.counted;
        }
        let gradients: HashMap<&String, Tensor> =
            parameters.iter().map(|(n, p)| (n, p.grad() / tokens as f64)).collect();
        let total = gradients.values().map(|g| norm(g).powi(2)).sum::<f64>().sqrt();
        let clip = keys.clip_norm.map_or(1.0, |limit| (limit / total).min(1.0));
        let rate = 0.002;
        let mut next = HashMap::new();
        for spec in model.inventory() {
            let (p, g) = (parameters[&spec.name].detach(), &gradients[&spec.name] * clip);
            let (m, v) = &state[&spec.name];
            let (m, v, p) = if spec.role == lockstep_inventory::Role::Hidden {
                let m = m * 0.95 + &g * 0.05;
                let u = &g * 0.05 + &m * 0.95;
                let (rows, columns) = (spec.shape[0] as f64, spec.shape[1] as f64);
                let scale = keys.hidden_scale * rate;
                let moved = reference::polar_express(&u) * (scale * (rows / columns).max(1.0).sqrt());
                (m, v.copy(), p * (1.0 - rate * keys.weight_decay) - moved)
            } else {
                let (m, v) = (m * 0.9 + &g * 0.1, v * 0.95 + (&g * &g) * 0.05);
                let (mh, vh) = (
                    &m / (1.0 - 0.9f64.powi(step as i32)),
                    &v / (1.0 - 0.95f64.powi(step as i32)),
                );
                let decay = if spec.role.is_decayed() {
                    rate * keys.weight_decay
                } else {
                    0.0
                };
                let p = p * (1.0 - decay) - (mh / (vh.sqrt() + 1e-8)) * rate;
                (m, v, p)
            };
            state.insert(spec.name.clone(), (m, v));
            next.insert(spec.name.clone(), p.set_requires_grad(true));
        }
        drop(gradients);
        parameters = next;
    }
    let values = |t: &Tensor| Vec::<f32>::try_from(t.detach().to_kind(Kind::Float).flatten(0, -1)).unwrap();
    parameters
        .iter()
        .map(|(name, p)| (name.clone(), (p.size(), values(p))))
        .collect()
}

#[test]
fn ten_distributed_steps_equal_ten_steps_of_plain_tensor_code() {
    let config = config("fp32", "muon");
    let expected = plain(&config, 10, 4);
    let start: HashMap<String, Vec<f32>> = from_config(&config, VOCABULARY)
        .inventory()
        .iter()
        .map(|spec| (spec.name.clone(), values(spec, config.run.seed)))
        .collect();
    for world in [1, 3] {
        let (_, _, got) = run(&config, world, 10, |_| 4);
        for (name, (_, values)) in &expected {
            let (mut error, mut moved) = (0.0, 0.0);
            for ((a, b), s) in got[name].1.iter().zip(values).zip(&start[name]) {
                error += f64::from(a - b).powi(2);
                moved += f64::from(b - s).powi(2);
            }
            // Relative to how far ten steps have moved the tensor, which is the stricter measure.
            assert!(
                (error / moved).sqrt() < 2e-3,
                "{name} on {world} ranks: {}",
                (error / moved).sqrt()
            );
        }
    }
}

#[test]
fn a_long_validation_is_seen_to_move_with_every_micro_batch() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "a line of some words\n".repeat(800)).unwrap();
    let options = Options {
        inputs: vec![text],
        out: folder.path().join("data"),
        tokenizer: TokenizerChoice::Byte,
    };
    prepare(&options, &AtomicBool::new(false)).unwrap();
    let dataset = Arc::new(Dataset::open(&options.out).unwrap());
    let set = ValidationSet::new(dataset, ROWS, COLUMNS);
    let config = RunConfig::parse(
        &config("fp32", "muon")
            .to_toml()
            .replace(&format!("vocab = {VOCABULARY}"), "vocab = 256"),
        "validating.toml",
        &[],
    )
    .unwrap();
    let communication = communicate(&new_id(&[9; 32], 1).unwrap(), 0, 1);
    let model = from_config(&config, 256);
    let mut engine = Engine::new(&config, model, communication, deal(4, 1), &Compute::Host).unwrap();
    let activity = Arc::new(Activity::default());
    engine.watch(Arc::clone(&activity));
    activity.begins(1, "validation");
    let before = activity.progress().counter;
    let validation = engine.validate(&set).unwrap();
    let moved = activity.progress().counter - before;
    assert!(
        set.count() > 30 && moved >= u64::from(set.count()),
        "{moved} of {}",
        set.count()
    );
    assert_eq!(validation.tokens, set.tokens());
    // Untrained, it knows nothing of 256 bytes.
    assert!((validation.loss - 256f64.ln()).abs() < 0.5, "{}", validation.loss);
}

//! Every optimiser makes the same bits on any world: sixty steps in bf16 on 1, 2, 3 and 4 ranks, of a model with a tied
//! embedding, a QKV tensor that is split into three matrices, a convolution, and a group rule.
#![allow(clippy::unwrap_used, missing_docs)]

mod meeting;

use std::collections::HashSet;
use std::ops::Range;
use std::rc::Rc;

use lockstep_autograd::{custom, elements};
use lockstep_collective::new_id;
use lockstep_config::RunConfig;
use lockstep_data::MicroBatch;
use lockstep_inventory::{Initial, Norm, Role, TensorSpec};
use lockstep_kernels::attention::Shape as Heads;
use lockstep_proto::domain::Plan;
use lockstep_trainer::device::compute::Compute;
use lockstep_trainer::error::TrainerError;
use lockstep_trainer::model::functions::{add_norm, attention, embed, head_loss, linear};
use lockstep_trainer::model::weights::Weights;
use lockstep_trainer::model::{Batch, Gate, Model};
use lockstep_trainer::step::{Engine, StepOutcome};
use tch::{Kind, Tensor};

use meeting::communicate;

const ROWS: u32 = 2;
const COLUMNS: u32 = 16;
const VOCABULARY: u32 = 61;
const WIDTH: i64 = 32;
const TAPS: i64 = 3;

/// One block of attention and a causal convolution over time, with a tied embedding.
struct Mixer {
    inventory: Vec<TensorSpec>,
}

impl Mixer {
    fn new() -> Mixer {
        let spec = |name: &str, shape: &[i64], layer, role, initial| TensorSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
            layer,
            role,
            initial,
        };
        let normal = Initial::Normal(0.05);
        Mixer {
            inventory: vec![
                spec(
                    "wte.weight",
                    &[i64::from(VOCABULARY), WIDTH],
                    0,
                    Role::Embedding,
                    normal,
                ),
                spec("wpe.weight", &[i64::from(COLUMNS), WIDTH], 0, Role::Embedding, normal),
                spec("norm1.weight", &[WIDTH], 1, Role::Norm, Initial::Ones),
                spec("qkv.weight", &[3 * WIDTH, WIDTH], 1, Role::Hidden, normal),
                spec("qkv.bias", &[3 * WIDTH], 1, Role::Bias, Initial::Zeros),
                spec("conv.weight", &[WIDTH, WIDTH, TAPS], 1, Role::Hidden, normal),
                spec("norm2.weight", &[WIDTH], 2, Role::Norm, Initial::Ones),
            ],
        }
    }
}

/// y[t] = Σ over taps of W[:, :, tap]·x[t − tap], zero before the start; x and y are `[rows·time, width]`.
fn convolution(weights: &Weights, x: &Tensor, weight: usize, rows: i64) -> Result<Tensor, TrainerError> {
    let time = x.size()[0] / rows;
    // [rows·time, width·taps], column = channel·taps + tap: the weight's own order, out × rest.
    let unfold = |x: &Tensor| -> Tensor {
        let x = x.reshape([rows, time, WIDTH]);
        let shifted = |tap: i64| match tap {
            0 => x.shallow_clone(),
            _ => x.narrow(1, 0, time - tap).constant_pad_nd([0, 0, tap, 0]),
        };
        let all: Vec<Tensor> = (0..TAPS).map(shifted).collect();
        Tensor::stack(&all, 3).reshape([rows * time, WIDTH * TAPS]).contiguous()
    };
    let fold = move |d: &Tensor| -> Tensor {
        let d = d.reshape([rows, time, WIDTH, TAPS]);
        let back = |tap: i64| {
            let d = d.select(3, tap);
            match tap {
                0 => d,
                _ => d.narrow(1, tap, time - tap).constant_pad_nd([0, 0, 0, tap]),
            }
        };
        (1..TAPS)
            .fold(back(0), |sum, tap| sum + back(tap))
            .reshape([rows * time, WIDTH])
            .contiguous()
    };
    let products = weights.products;
    let leaf = weights.leaf(weight);
    let flat = leaf.detach().reshape([WIDTH, WIDTH * TAPS]);
    let columns = tch::no_grad(|| unfold(&x.detach()));
    let y = tch::no_grad(|| products.multiply(&columns, &flat.tr()))?;
    if let Some(slot) = weights.slot(weight) {
        custom("convolution", &[x, leaf], &[&y], move |gradients| {
            let dy = gradients[0].as_ref().unwrap().contiguous();
            let d_weight = dy
                .to_kind(Kind::Float)
                .tr()
                .matmul(&columns.to_kind(Kind::Float))
                .contiguous();
            slot.add_with(|d| {
                for (d, add) in d.iter_mut().zip(elements::<f32>(&d_weight)) {
                    *d += add;
                }
            });
            Ok(vec![Some(fold(&products.multiply(&dy, &flat)?)), None])
        })?;
    }
    Ok(y)
}

impl Model for Mixer {
    fn inventory(&self) -> &[TensorSpec] {
        &self.inventory
    }

    fn layers(&self) -> usize {
        3
    }

    fn loss(&self, weights: &Weights, batch: Batch<'_>, gate: &mut dyn Gate) -> Result<Tensor, TrainerError> {
        let ids: Rc<[i64]> = batch.inputs.into();
        let heads = Heads {
            batch: batch.rows,
            time: batch.columns,
            heads: 2,
            head_width: WIDTH as usize / 2,
        };
        gate.open(0)?;
        let x = embed(weights, 0, 1, &ids, batch.columns)?;
        gate.open(1)?;
        let norm = |gain| Norm { gain, bias: None };
        let (x, y) = add_norm(weights, &x, None, norm(2))?;
        let mixed = attention(weights, &linear(weights, &y, 3, Some(4))?, heads, false)?;
        let branch = convolution(weights, &mixed, 5, batch.rows as i64)?;
        gate.open(2)?;
        let (_, y) = add_norm(weights, &x, Some(&branch), norm(6))?;
        head_loss(weights, &y, 0, batch.targets)
    }

    fn next_token_logits(&self, _weights: &Weights, _tokens: &[i64]) -> Result<Vec<f32>, TrainerError> {
        Err(TrainerError::Refused("this model only trains".to_owned()))
    }
}

fn config(optimizer: &str) -> RunConfig {
    let text = format!(
        "[run]\nname = \"members\"\nseed = 3\nlanes = 4\nsteps = 60\nprecision = \"bf16\"\n\
         [data]\npath = \"unused\"\nsequence_length = {COLUMNS}\n\
         [model]\nkind = \"gpt2\"\nlayers = 1\nheads = 2\nwidth = {WIDTH}\nvocab = {VOCABULARY}\n\
         [batch]\nmicro_batch = {ROWS}\nschedule = 8\n\
         [learning_rate]\nschedule = 0.002\n\
         [optimizer]\n{optimizer}\n"
    );
    RunConfig::parse(&text, "members.toml", &[]).unwrap()
}

/// What methods that orthogonalise get besides: QKV in thirds, the convolution whole, a group.
const RULES: &str = "weight_decay = 0.1\n\
    hidden = [{ match = \"qkv.weight\", split = \"thirds\" }, \"conv.*\"]\n\
    groups = [{ match = \"wte.*\", lr_scale = 0.5, weight_decay = 0.0 }]\n";

/// Micro-batch `index` of a step: text of a short cycle with noise, so that there is something to learn.
fn batch(step: u64, index: u32) -> MicroBatch {
    let count = (ROWS * COLUMNS) as usize;
    let token = |i: usize| {
        let noise = (i as u64 * 7 + step * 131 + u64::from(index) * 17).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        let regular = i as u64 % 7 * 5;
        if noise.is_multiple_of(5) {
            noise % u64::from(VOCABULARY)
        } else {
            regular
        }
    };
    let tokens: Vec<i64> = (0..=count).map(|i| token(i) as i64).collect();
    MicroBatch {
        rows: ROWS,
        columns: COLUMNS,
        inputs: tokens[..count].to_vec(),
        targets: tokens[1..].to_vec(),
        counted: count as u64,
    }
}

fn plan(step: u64) -> Plan {
    Plan {
        step,
        learning_rate: 0.002,
        micro_batches: 4,
        first_sample: 0,
        samples: u64::from(4 * ROWS),
        validate: false,
        last: false,
        version: 0,
        checkpoint: false,
        momentum: None,
        weight_decay: None,
        stop: false,
    }
}

/// Runs a world of `ranks` and returns each rank's outcomes and bytes of masters and state.
fn run(config: &RunConfig, ranks: u32, steps: u64) -> Vec<(Vec<StepOutcome>, usize)> {
    let id = new_id(&[5; 32], 1).unwrap();
    let lanes = config.run.lanes;
    let deal: Vec<Range<u32>> = (0..ranks).map(|r| r * lanes / ranks..(r + 1) * lanes / ranks).collect();
    let threads: Vec<_> = (0..ranks)
        .map(|rank| {
            let (config, id, deal) = (config.clone(), id.clone(), deal.clone());
            std::thread::spawn(move || {
                tch::set_num_threads(1);
                let communication = communicate(&id, rank, ranks);
                let mut engine =
                    Engine::new(&config, Box::new(Mixer::new()), communication, deal, &Compute::Host).unwrap();
                let outcomes = (1..=steps).map(|step| {
                    let plan = plan(step);
                    let mut indices = engine.micro_batches_of(&plan).into_iter();
                    engine
                        .step(&plan, 0, &mut || Ok(batch(step, indices.next().unwrap())))
                        .unwrap()
                });
                let outcomes = outcomes.collect();
                (outcomes, engine.state_bytes())
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// Sixty steps on 1 to 4 ranks with one hash a step; the loss falls; returns the outcomes.
fn same_bits(optimizer: &str) -> Vec<StepOutcome> {
    let config = config(optimizer);
    let (alone, state) = run(&config, 1, 60).remove(0);
    let hashes: HashSet<_> = alone.iter().map(|outcome| outcome.parameter_hash).collect();
    assert_eq!(hashes.len(), 60, "{optimizer}: every step changes the parameters");
    let mean = |outcomes: &[StepOutcome]| outcomes.iter().map(|o| o.loss).sum::<f64>() / outcomes.len() as f64;
    let (first, last) = (mean(&alone[..5]), mean(&alone[55..]));
    assert!(last < first - 0.2, "{optimizer}: the loss went from {first} to {last}");
    for ranks in 2..=4 {
        let world = run(&config, ranks, 60);
        let total: usize = world.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(
            total, state,
            "{optimizer}: masters and state are divided, not repeated, on {ranks} ranks"
        );
        for (rank, (outcomes, _)) in world.iter().enumerate() {
            for (a, b) in alone.iter().zip(outcomes) {
                let place = format!("{optimizer} on rank {rank} of {ranks}");
                assert_eq!(a.parameter_hash, b.parameter_hash, "{place}");
                assert_eq!(a.loss.to_bits(), b.loss.to_bits(), "{place}");
                assert_eq!(
                    a.effective_learning_rate.to_bits(),
                    b.effective_learning_rate.to_bits(),
                    "{place}"
                );
                assert_eq!((a.model, a.dual_norm), (b.model, b.dual_norm), "{place}");
                assert_eq!(a.orthogonality, b.orthogonality, "{place}");
            }
        }
    }
    alone
}

/// A method that orthogonalises: the four matrices have a polar factor each in every step, and each is probed in turn.
fn orthogonalises(optimizer: &str) -> Vec<StepOutcome> {
    let outcomes = same_bits(&format!("{optimizer}\n{RULES}"));
    let mut probed = HashSet::new();
    for outcome in &outcomes {
        assert_eq!(outcome.polar_factors, 4, "{optimizer}");
        let (name, error) = outcome.orthogonality.clone().unwrap();
        // Five steps of Polar Express leave singular values of well-conditioned momenta within 1 ± 0.2; small ones lag.
        assert!(
            error.is_finite() && error < 1.0,
            "{optimizer}: {name} has error {error}"
        );
        probed.insert(name);
    }
    let expected = ["qkv.weight[0]", "qkv.weight[1]", "qkv.weight[2]", "conv.weight"];
    assert_eq!(probed, expected.map(str::to_owned).into());
    outcomes
}

#[test]
fn muonadam_scion_muonmax_and_polargrad_have_the_same_bits_on_every_world() {
    for (method, scale) in [("muonadam", 8.0), ("scion", 4.0), ("muonmax", 4.0), ("polargrad", 8.0)] {
        let outcomes = orthogonalises(&format!("method = \"{method}\"\nhidden_scale = {scale}"));
        assert!(
            outcomes
                .iter()
                .all(|o| o.model.is_none() && o.effective_learning_rate == 0.002)
        );
    }
}

#[test]
fn their_momo_forms_have_the_same_bits_on_every_world() {
    for (method, scale, bound) in [
        ("muonadam", 8.0, "2.5"),
        ("scion", 4.0, "2.5"),
        ("muonmax", 4.0, "\"auto\""),
        ("polargrad", 8.0, "0.0"),
    ] {
        let momo = format!("momo = {{ lower_bound = {bound}, decay = \"exact\" }}");
        let outcomes = orthogonalises(&format!("method = \"{method}\"\nhidden_scale = {scale}\n{momo}"));
        assert!(outcomes.iter().all(|o| o.model.is_some() && o.dual_norm.is_some()));
        assert!(
            outcomes
                .iter()
                .all(|o| (0.0..=0.002).contains(&o.effective_learning_rate))
        );
    }
}

#[test]
fn members_without_a_name_muon_and_normuon_have_the_same_bits_on_every_world() {
    orthogonalises("descent = \"constrained\"\nproduct = \"hybrid\"\nother = \"ada-2\"\nhidden_scale = 8.0");
    orthogonalises("method = \"muon\"\nclip_norm = 1.0\ncautious = true");
    orthogonalises("method = \"normuon\"");
    orthogonalises("method = \"muon\"\npolar = { method = \"gram\" }");
    orthogonalises("method = \"muon\"\npolar = { method = \"newton-schulz\", table = \"jordan\" }");
}

#[test]
fn methods_without_hidden_matrices_have_the_same_bits_on_every_world() {
    for optimizer in [
        "method = \"adamw\"",
        "method = \"sgd\"\nnesterov = true",
        "method = \"momo\"",
        "method = \"momo-adam\"\nweight_decay = 0.1",
    ] {
        // The plan's rate is small for these: they are driven by a scale of the rate in a group where they have one.
        let outcomes = same_bits_of_slow(optimizer);
        assert!(
            outcomes
                .iter()
                .all(|o| o.polar_factors == 0 && o.orthogonality.is_none())
        );
    }
}

/// As [`same_bits`], without the demand that sixty small steps lower the loss by much.
fn same_bits_of_slow(optimizer: &str) -> Vec<StepOutcome> {
    let config = config(optimizer);
    let (alone, _) = run(&config, 1, 60).remove(0);
    assert!(alone[59].loss.is_finite());
    for ranks in 2..=4 {
        for (outcomes, _) in run(&config, ranks, 60) {
            for (a, b) in alone.iter().zip(&outcomes) {
                assert_eq!(a.parameter_hash, b.parameter_hash, "{optimizer} on {ranks} ranks");
                assert_eq!(a.effective_learning_rate.to_bits(), b.effective_learning_rate.to_bits());
            }
        }
    }
    alone
}

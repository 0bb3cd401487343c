//! The two sets of functions that a model can be made of agree: the host's kernels, and libtorch's functions on tensors of
//! any device, here on the CPU.
#![allow(clippy::unwrap_used, missing_docs)]

use std::cell::RefCell;

use lockstep_autograd::{on_gradient_ready, run_backward};
use lockstep_inventory::gpt2::Shape;
use lockstep_inventory::{Initial, Role, TensorSpec};
use lockstep_optim::products::Products;
use lockstep_trainer::error::TrainerError;
use lockstep_trainer::model::arithmetic::{Arithmetic, add_norm, embed, head_loss};
use lockstep_trainer::model::gpt2::Gpt2;
use lockstep_trainer::model::initial::values;
use lockstep_trainer::model::lane_losses::LaneLosses;
use lockstep_trainer::model::weights::Weights;
use lockstep_trainer::model::{Batch, Gate, Model, OpenGate};
use tch::{Device, Kind, Tensor};

const SEED: u64 = 23;

/// Weights over plain tensors, with the buffers that they lie in.
struct Stage {
    weights: Weights,
    copies: Vec<Tensor>,
    gradients: Vec<Tensor>,
}

impl Stage {
    /// Random values, so that no gradient vanishes by accident, in one buffer; gradient places full of NaN: what was there
    /// before must not matter.
    fn new(inventory: &[TensorSpec], products: Products, arithmetic: Arithmetic) -> Stage {
        tch::set_num_threads(1);
        let mut copies = Vec::new();
        for spec in inventory {
            let centre = f64::from(u8::from(spec.role == Role::Norm));
            // libtorch's generator is one for all threads of tests.
            let random = TensorSpec {
                initial: Initial::Normal(0.15),
                ..spec.clone()
            };
            let values = Tensor::from_slice(&values(&random, SEED)).reshape(&spec.shape[..]) + centre;
            copies.push(match spec.role.is_narrow() {
                true => values.to_kind(products.kind()),
                false => values,
            });
        }
        let gradients: Vec<Tensor> = inventory
            .iter()
            .map(|spec| Tensor::full(&spec.shape[..], f64::NAN, (Kind::Float, Device::Cpu)))
            .collect();
        let views = vec![gradients.iter().map(Tensor::shallow_clone).collect()];
        Stage {
            weights: Weights::over(products, arithmetic, &copies, views).unwrap(),
            copies,
            gradients,
        }
    }

    /// The loss of a micro-batch, and its gradient added to the lane's.
    fn run(&self, model: &dyn Model, batch: &Tokens) -> Tensor {
        let loss = model.loss(&self.weights, batch.view(), &mut OpenGate).unwrap();
        run_backward(&loss).unwrap();
        loss.detach()
    }
}

struct Tokens {
    rows: usize,
    columns: usize,
    inputs: Vec<i64>,
    targets: Vec<i64>,
}

impl Tokens {
    /// Random tokens; some targets of the first sequence do not count.
    fn new(vocabulary: u32, rows: usize, columns: usize, seed: u64) -> Tokens {
        let spec = TensorSpec {
            name: "tokens".to_owned(),
            shape: vec![2, (rows * columns) as i64],
            layer: 0,
            role: Role::Embedding,
            initial: Initial::Normal(1e6),
        };
        let draws = values(&spec, seed);
        let mut inputs: Vec<i64> = draws
            .iter()
            .map(|x| (*x as i64).rem_euclid(i64::from(vocabulary)))
            .collect();
        let mut targets = inputs.split_off(rows * columns);
        targets[columns / 2..columns / 2 + 3].fill(lockstep_data::IGNORE);
        Tokens {
            rows,
            columns,
            inputs,
            targets,
        }
    }

    fn view(&self) -> Batch<'_> {
        Batch {
            rows: self.rows,
            columns: self.columns,
            inputs: &self.inputs,
            targets: &self.targets,
        }
    }
}

const PLAIN: Shape = Shape {
    layers: 2,
    heads: 3,
    width: 48,
    vocabulary: 97,
    context: 700,
    bias: false,
    qk_norm: false,
};

/// A shape with rows and columns of its micro-batches.
fn cases() -> Vec<(Shape, usize, usize)> {
    let biased = Shape { bias: true, ..PLAIN };
    let normed = Shape {
        qk_norm: true,
        ..biased
    };
    vec![(PLAIN, 2, 33), (biased, 3, 40), (normed, 2, 150), (PLAIN, 1, 600)]
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |t: &Tensor| {
        t.to_kind(Kind::Double)
            .square()
            .sum(Kind::Double)
            .sqrt()
            .double_value(&[])
    };
    norm(&(a.to_kind(Kind::Double) - b)) / norm(b)
}

/// The distance of losses and of every gradient between the two sets, over two micro-batches of a lane.
fn distances(products: Products) -> Vec<(String, f64)> {
    let mut out = Vec::new();
    for (shape, rows, columns) in cases() {
        let model = Gpt2::new(shape);
        let [host, tensors] =
            [Arithmetic::Host, Arithmetic::Tensors].map(|set| Stage::new(model.inventory(), products, set));
        for seed in [1, 2] {
            let batch = Tokens::new(shape.vocabulary, rows, columns, seed);
            let (theirs, ours) = (host.run(&model, &batch), tensors.run(&model, &batch));
            assert_eq!((ours.kind(), ours.dim()), (Kind::Double, 0));
            out.push(("the loss".to_owned(), distance(&ours, &theirs)));
            let again = tensors
                .weights
                .without_recording(|| model.loss(&tensors.weights, batch.view(), &mut OpenGate))
                .unwrap();
            assert!(again.equal(&ours), "validation computes the same loss");
        }
        for stage in [&host, &tensors] {
            assert!(
                stage.weights.end_lane().unwrap().is_empty(),
                "every tensor has a gradient"
            );
        }
        for (index, spec) in model.inventory().iter().enumerate() {
            let name = format!("{} of {shape:?}", spec.name);
            out.push((name, distance(&tensors.gradients[index], &host.gradients[index])));
        }
    }
    out
}

/// Holds losses and gradients to limits, and prints the largest distance.
fn agree(products: Products, of_loss: f64, of_gradient: f64) {
    let mut worst = (String::new(), 0.0);
    for (name, error) in distances(products) {
        let limit = if name == "the loss" { of_loss } else { of_gradient };
        assert!(error < limit, "{products:?}: {name}: {error}");
        if error > worst.1 {
            worst = (name, error);
        }
    }
    println!("{products:?}: at most {:.1e}, {}", worst.1, worst.0);
}

#[test]
fn loss_and_every_gradient_agree_to_1e_minus_5_in_fp32() {
    agree(Products::Float32, 1e-6, 1e-5);
}

/// Activations and their gradients are rounded to 8 bits some ten times on the way, in each set at places of its own.
#[test]
fn loss_and_every_gradient_agree_to_a_few_hundredths_in_bf16() {
    for products in [Products::NativeBf16, Products::WidenedBf16] {
        agree(products, 1e-3, 3e-2);
    }
}

#[test]
fn the_gradient_of_a_micro_batch_has_the_same_bits_whatever_ran_before() {
    let model = Gpt2::new(Shape { bias: true, ..PLAIN });
    let [first, second] = [(2, 33, 1), (3, 50, 2)].map(|(rows, columns, seed)| Tokens::new(97, rows, columns, seed));
    for products in [Products::Float32, Products::NativeBf16] {
        let stage = Stage::new(model.inventory(), products, Arithmetic::Tensors);
        let loss = stage.run(&model, &first);
        let alone: Vec<Tensor> = stage.gradients.iter().map(Tensor::copy).collect();
        stage.weights.begin_lane(0, false).unwrap();
        let _ = stage.run(&model, &second);
        stage.weights.begin_lane(0, false).unwrap();
        assert!(stage.run(&model, &first).equal(&loss), "{products:?}");
        for (index, spec) in model.inventory().iter().enumerate() {
            assert!(
                alone[index].equal(&stage.gradients[index]),
                "{products:?}: {}",
                spec.name
            );
        }
    }
}

/// Embedding, norm and head of a [`Gpt2`] without blocks: the tensors of blocks take no part.
struct Shallow(Gpt2);

impl Model for Shallow {
    fn inventory(&self) -> &[TensorSpec] {
        self.0.inventory()
    }
    fn layers(&self) -> usize {
        self.0.layers()
    }
    fn loss(&self, weights: &Weights, batch: Batch<'_>, _gate: &mut dyn Gate) -> Result<Tensor, TrainerError> {
        let last = self.inventory().len() - 1;
        let norm = lockstep_inventory::Norm { gain: last, bias: None };
        let x = embed(weights, 0, 1, &batch.inputs.into(), batch.columns)?;
        head_loss(weights, &add_norm(weights, &x, None, norm)?.1, 0, batch.targets)
    }
    fn next_token_logits(&self, _weights: &Weights, _tokens: &[i64]) -> Result<Vec<f32>, TrainerError> {
        Ok(Vec::new())
    }
}

#[test]
fn tensors_that_no_gradient_reached_are_named_and_count_as_zero() {
    let model = Shallow(Gpt2::new(PLAIN));
    let stage = Stage::new(model.inventory(), Products::Float32, Arithmetic::Tensors);
    let _ = stage.run(&model, &Tokens::new(97, 2, 20, 1));
    let last = model.inventory().len() - 1;
    let blocks: Vec<usize> = (2..last).collect();
    assert_eq!(stage.weights.end_lane().unwrap(), blocks);
    for tensor in blocks {
        assert_eq!(stage.gradients[tensor].abs().max().double_value(&[]), 0.0);
    }
    for tensor in [0, 1, last] {
        assert!(stage.gradients[tensor].abs().max().double_value(&[]) > 0.0);
    }
}

#[test]
fn hooks_of_leaves_fire_once_a_backward_from_the_head_down() {
    let model = Gpt2::new(PLAIN);
    let stage = Stage::new(model.inventory(), Products::Float32, Arithmetic::Tensors);
    let fired = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    for tensor in 0..model.inventory().len() {
        let fired = std::sync::Arc::clone(&fired);
        on_gradient_ready(stage.weights.leaf(tensor), move || fired.lock().unwrap().push(tensor)).unwrap();
    }
    let _ = stage.run(&model, &Tokens::new(97, 2, 20, 1));
    let mut fired = fired.lock().unwrap().clone();
    let layer = |tensor: &usize| model.inventory()[*tensor].layer;
    // The tied table is complete with the embedding.
    let layers: Vec<usize> = fired.iter().map(layer).collect();
    assert!(layers.is_sorted_by(|a, b| a >= b), "{layers:?}");
    fired.sort_unstable();
    assert_eq!(fired, (0..model.inventory().len()).collect::<Vec<_>>());
}

#[test]
fn backward_may_run_on_another_thread_as_it_does_on_gpus() {
    let model = Gpt2::new(Shape { bias: true, ..PLAIN });
    let [here, there] = [0, 1].map(|_| Stage::new(model.inventory(), Products::Float32, Arithmetic::Tensors));
    let batch = Tokens::new(97, 2, 20, 1);
    let _ = here.run(&model, &batch);
    let loss = model.loss(&there.weights, batch.view(), &mut OpenGate).unwrap();
    std::thread::spawn(move || run_backward(&loss).unwrap()).join().unwrap();
    assert!(here.gradients.iter().zip(&there.gradients).all(|(a, b)| a.equal(b)));
    assert!(there.weights.end_lane().unwrap().is_empty());
}

/// Writes other working copies of a layer when its gate opens, as a gather does.
struct Gathering<'a> {
    model: &'a Gpt2,
    from: &'a [Tensor],
    to: RefCell<Vec<Tensor>>,
}

impl Gate for Gathering<'_> {
    fn open(&mut self, layer: usize) -> Result<(), TrainerError> {
        for (tensor, spec) in self.model.inventory().iter().enumerate() {
            if spec.layer == layer {
                tch::no_grad(|| self.to.borrow_mut()[tensor].copy_(&self.from[tensor]));
            }
        }
        Ok(())
    }
}

#[test]
fn a_gather_into_a_layer_at_its_gate_is_no_change_of_what_earlier_layers_have_kept() {
    let model = Gpt2::new(PLAIN);
    // All working copies in one buffer: libtorch counts changes by buffer.
    let stage = Stage::new(model.inventory(), Products::Float32, Arithmetic::Tensors);
    let buffer = Tensor::cat(&stage.copies.iter().map(|t| t.flatten(0, -1)).collect::<Vec<_>>(), 0);
    let mut at = 0;
    let inside: Vec<Tensor> = stage
        .copies
        .iter()
        .map(|copy| {
            let count = copy.numel() as i64;
            at += count;
            buffer.narrow(0, at - count, count).view_as(copy)
        })
        .collect();
    let views = vec![stage.gradients.iter().map(Tensor::shallow_clone).collect()];
    let weights = Weights::over(Products::Float32, Arithmetic::Tensors, &inside, views).unwrap();
    let wanted: Vec<Tensor> = stage.copies.iter().map(|copy| copy * 2.0).collect();
    let mut gate = Gathering {
        model: &model,
        from: &wanted,
        to: RefCell::new(inside),
    };
    let batch = Tokens::new(97, 2, 20, 1);
    let loss = model.loss(&weights, batch.view(), &mut gate).unwrap();
    run_backward(&loss).unwrap();
    let got: Vec<Tensor> = stage.gradients.iter().map(Tensor::copy).collect();
    weights.begin_lane(0, false).unwrap();
    let expected = model.loss(&weights, batch.view(), &mut OpenGate).unwrap();
    run_backward(&expected).unwrap();
    assert!(loss.equal(&expected));
    assert!(got.iter().zip(&stage.gradients).all(|(a, b)| a.equal(b)));
}

#[test]
fn losses_are_added_lane_by_lane_with_the_bits_of_the_host() {
    let mut losses = LaneLosses::new(3, Device::Cpu).unwrap();
    for _ in 0..2 {
        losses.clear().unwrap();
        for (lane, loss) in [(2, 0.1f64), (0, 1e300), (2, 0.2), (2, 1e-20)] {
            losses.add(lane, &Tensor::from(loss)).unwrap();
        }
        assert_eq!(losses.sums().unwrap().read().unwrap(), [1e300, 0.0, 0.1 + 0.2 + 1e-20]);
    }
}

//! Forward and gradients equal a plain reference: the same GPT-2 in library operations and library autograd, in float64.
#![allow(clippy::unwrap_used, missing_docs)]

mod reference;

use std::collections::HashMap;

use lockstep_autograd::{FlatBuffer, run_backward};
use lockstep_config::{OptimizerSection, Precision};
use lockstep_inventory::gpt2::Shape;
use lockstep_inventory::treatments;
use lockstep_kernels::real::{bf16, convert};
use lockstep_optim::products::Products;
use lockstep_trainer::model::gpt2::Gpt2;
use lockstep_trainer::model::weights::Weights;
use lockstep_trainer::model::{Batch, Model, OpenGate};
use lockstep_trainer::sharding::layout::Layout;
use tch::{Device, Kind, Tensor};

struct Case {
    shape: Shape,
    rows: usize,
    columns: usize,
    micro_batches: usize,
}

/// Not initial values: every tensor random, so that no gradient vanishes by accident.
fn start(model: &Gpt2, seed: i64) -> Vec<Vec<f32>> {
    tch::manual_seed(seed);
    let values = |spec: &lockstep_inventory::TensorSpec| {
        let noise = Tensor::randn(&spec.shape[..], (Kind::Float, Device::Cpu)) * 0.15;
        let centre = if spec.name.contains("norm") && spec.name.ends_with("weight") {
            1.0
        } else {
            0.0
        };
        Vec::try_from((noise + centre).flatten(0, -1)).unwrap()
    };
    model.inventory().iter().map(values).collect()
}

/// Relative errors of the loss and of every gradient.
fn errors(case: &Case, products: Products) -> (f64, Vec<(String, f64)>) {
    let bf16_precision = products != Products::Float32;
    let model = Gpt2::new(case.shape);
    let muon = OptimizerSection::parse("method = \"muon\"".parse().unwrap(), "gradients", Precision::Fp32).unwrap();
    let treatments = treatments(&muon, model.inventory(), None).unwrap();
    let layout = Layout::new(model.inventory(), &treatments, bf16_precision);
    let mut working = FlatBuffer::heap(layout.working_bytes).unwrap();
    let gradients = FlatBuffer::heap(layout.gradient_elements * 4).unwrap();
    let values = start(&model, 11);
    let mut names = HashMap::new();
    for ((spec, place), values) in model.inventory().iter().zip(&layout.places).zip(&values) {
        let exact = if place.bf16 {
            let copies = working.slice_mut::<bf16>(place.working.start, values.len()).unwrap();
            convert::<f32, bf16>(values, copies);
            copies.iter().map(|v| v.to_f32()).collect()
        } else {
            working
                .slice_mut::<f32>(place.working.start, values.len())
                .unwrap()
                .copy_from_slice(values);
            values.clone()
        };
        let leaf = Tensor::from_slice(&exact)
            .reshape(&spec.shape[..])
            .to_kind(Kind::Double)
            .set_requires_grad(true);
        names.insert(spec.name.clone(), leaf);
    }
    // What was there before must not matter.
    let mut dirty = gradients.clone();
    dirty
        .slice_mut::<f32>(0, layout.gradient_elements)
        .unwrap()
        .fill(f32::NAN);
    let weights = Weights::new(
        model.inventory(),
        &layout,
        products,
        &working,
        std::slice::from_ref(&gradients),
    )
    .unwrap();
    tch::manual_seed(5);
    let (mut ours, mut plain) = (0.0, 0.0);
    weights.begin_lane(0, false).unwrap();
    for _ in 0..case.micro_batches {
        let size = [case.rows as i64, case.columns as i64];
        let inputs = Tensor::randint(i64::from(case.shape.vocabulary), size, (Kind::Int64, Device::Cpu));
        let targets = Tensor::randint(i64::from(case.shape.vocabulary), size, (Kind::Int64, Device::Cpu));
        let _ = targets
            .get(0)
            .narrow(0, case.columns as i64 / 2, 3)
            .fill_(lockstep_data::IGNORE);
        let (i, t): (Vec<i64>, Vec<i64>) = (
            Vec::try_from(inputs.flatten(0, -1)).unwrap(),
            Vec::try_from(targets.flatten(0, -1)).unwrap(),
        );
        let batch = Batch {
            rows: case.rows,
            columns: case.columns,
            inputs: &i,
            targets: &t,
        };
        let loss = model.loss(&weights, batch, &mut OpenGate).unwrap();
        run_backward(&loss).unwrap();
        ours += loss.double_value(&[]);
        let expected = reference::loss(case.shape, case.rows, case.columns, &names, &inputs, &targets);
        expected.backward();
        plain += expected.double_value(&[]);
        let again = weights
            .without_recording(|| model.loss(&weights, batch, &mut OpenGate))
            .unwrap();
        assert_eq!(
            again.double_value(&[]).to_bits(),
            loss.double_value(&[]).to_bits(),
            "validation computes the same loss"
        );
    }
    assert!(weights.end_lane().unwrap().is_empty(), "every tensor has a gradient");
    let mut out = Vec::new();
    for (spec, place) in model.inventory().iter().zip(&layout.places) {
        let got = Tensor::from_slice(
            gradients
                .slice::<f32>(place.gradient.start * 4, spec.elements())
                .unwrap(),
        );
        let expected = names[&spec.name].grad().flatten(0, -1);
        let norm = |t: &Tensor| t.square().sum(Kind::Double).sqrt().double_value(&[]);
        out.push((
            spec.name.clone(),
            norm(&(got.to_kind(Kind::Double) - &expected)) / norm(&expected),
        ));
    }
    ((ours - plain).abs() / plain.abs(), out)
}

fn cases() -> Vec<Case> {
    let shape = Shape {
        layers: 2,
        heads: 3,
        width: 48,
        vocabulary: 97,
        context: 700,
        bias: false,
        qk_norm: false,
    };
    vec![
        Case {
            shape,
            rows: 2,
            columns: 33,
            micro_batches: 2,
        },
        Case {
            shape: Shape { bias: true, ..shape },
            rows: 3,
            columns: 40,
            micro_batches: 1,
        },
        Case {
            shape: Shape {
                qk_norm: true,
                bias: true,
                ..shape
            },
            rows: 1,
            columns: 150,
            micro_batches: 1,
        },
        // Longer than what attention keeps: probabilities are made again in backward.
        Case {
            shape: Shape { layers: 1, ..shape },
            rows: 1,
            columns: 600,
            micro_batches: 1,
        },
    ]
}

#[test]
fn loss_and_gradients_match_float64_to_1e_minus_5_in_fp32() {
    tch::set_num_threads(1);
    for case in cases() {
        let (loss, gradients) = errors(&case, Products::Float32);
        assert!(loss < 1e-6, "loss: {loss}");
        for (name, error) in gradients {
            assert!(error < 1e-5, "{name}: {error}");
        }
    }
}

/// Both ways to multiply bf16, whichever this processor would choose.
#[test]
fn bf16_gradients_stay_near_the_float64_ones() {
    tch::set_num_threads(1);
    // bf16 has 8 bits: activations and their gradients are rounded some ten times on the way. The native way rounds
    // attention scores and probabilities too.
    for (products, limit) in [(Products::WidenedBf16, 4e-2), (Products::NativeBf16, 8e-2)] {
        for case in cases() {
            let (loss, gradients) = errors(&case, products);
            assert!(loss < 4e-3, "{products:?}: loss: {loss}");
            for (name, error) in gradients {
                assert!(error < limit, "{products:?}: {name}: {error}");
            }
        }
    }
}

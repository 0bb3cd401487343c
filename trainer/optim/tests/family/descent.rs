//! The reference itself: each of its steps is the best under its norm, whatever the norm, against random directions in
//! float64.

use rand::SeedableRng;
use rand::rngs::StdRng;
use tch::Tensor;

use crate::SEED;
use crate::recorded::gaussian;
use crate::reference::norms::{
    Block, Descent, Member, dot, global_dual, hidden_block, hidden_norm, other_block, other_norm, product_norm, strides,
};

const LEARNING_RATE: f64 = 0.3;
const S: f64 = 3.0;
const EPSILON: f64 = 1e-2;

/// Random directions a member.
const DIRECTIONS: usize = 300;

/// Matrices, then vectors.
const SHAPES: [&[i64]; 5] = [&[6, 4], &[3, 5], &[4, 4], &[7], &[1]];

fn random_tensors(random: &mut StdRng) -> Vec<Tensor> {
    SHAPES
        .iter()
        .map(|shape| {
            let values: Vec<f64> = (0..shape.iter().product::<i64>()).map(|_| gaussian(random)).collect();
            Tensor::from_slice(&values).reshape(*shape)
        })
        .collect()
}

/// A linear model of the loss, h + ⟨m, d⟩, and the norm in which a member steps.
struct Model {
    member: Member,
    m: Vec<Tensor>,
    v: Vec<Tensor>,
    h: f64,
}

impl Model {
    fn blocks(&self) -> Vec<Block> {
        let moments = self.m.iter().zip(&self.v);
        moments
            .map(|(m, v)| match m.dim() {
                2 => hidden_block(m, S),
                _ => other_block(self.member.other, m, v, EPSILON),
            })
            .collect()
    }

    fn slope(&self, d: &[Tensor]) -> f64 {
        self.m.iter().zip(d).map(|(m, d)| dot(m, d)).sum()
    }

    fn norm(&self, d: &[Tensor]) -> f64 {
        let norms: Vec<(bool, f64)> = d
            .iter()
            .enumerate()
            .map(|(i, d)| match d.dim() {
                2 => (true, hidden_norm(d, S)),
                _ => (false, other_norm(self.member.other, d, &self.m[i], &self.v[i], EPSILON)),
            })
            .collect();
        product_norm(self.member.product, &norms)
    }

    /// What a step d is to make small, among d of at most the norm `LEARNING_RATE` where constrained.
    fn objective(&self, d: &[Tensor], bound: f64) -> f64 {
        let loss = (self.h + self.slope(d)).max(bound);
        match self.member.descent {
            Descent::Constrained => loss,
            Descent::Regularized => loss + self.norm(d).powi(2) / (2.0 * LEARNING_RATE),
        }
    }
}

fn scaled(d: &[Tensor], by: f64) -> Vec<Tensor> {
    d.iter().map(|d| d * by).collect()
}

/// Lengths of a direction to try: the longest allowed where constrained; else the best without a bound, and others near it.
fn lengths(model: &Model, direction: &[Tensor]) -> Vec<f64> {
    let norm = model.norm(direction);
    let best = match model.member.descent {
        Descent::Constrained => LEARNING_RATE / norm,
        Descent::Regularized => LEARNING_RATE * model.slope(direction).abs() / norm.powi(2),
    };
    [1.0, 0.9, 0.5, 0.25, 0.1].iter().map(|part| best * part).collect()
}

#[test]
fn no_random_direction_does_better_than_the_step_of_any_member() {
    println!("directions of seed {SEED}");
    let random = &mut StdRng::seed_from_u64(SEED);
    for member in Member::all() {
        let m = random_tensors(random);
        let v = random_tensors(random).iter().map(|x| x.square() + 0.1).collect();
        let model = Model { member, m, v, h: 2.0 };
        let blocks = model.blocks();
        let dual = global_dual(member.product, &blocks);
        let strides = strides(member, &blocks);
        let (length, fall) = match member.descent {
            Descent::Constrained => (1.0, dual),
            Descent::Regularized => (dual, dual * dual),
        };
        // Without a bound, and with one that takes four tenths of the step.
        let half = model.h - 0.4 * LEARNING_RATE * fall;
        for (bound, rate) in [(f64::NEG_INFINITY, LEARNING_RATE), (half, (model.h - half) / fall)] {
            let along = blocks.iter().zip(&strides);
            let step: Vec<Tensor> = along
                .map(|(block, stride)| &block.direction * (-rate * stride))
                .collect();
            // The norm's own claims: ⟨m, d⟩ = −‖m‖_*·‖d‖, and the length of the step.
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs();
            assert!(
                close(model.norm(&step), rate * length),
                "{member:?}: {}",
                model.norm(&step)
            );
            assert!(
                close(model.slope(&step), -rate * fall),
                "{member:?}: {}",
                model.slope(&step)
            );
            let reached = model.objective(&step, bound);
            for index in 0..DIRECTIONS {
                // Far directions, and ever nearer neighbours of the step.
                let noise = random_tensors(random);
                let nearness = 10f64.powi(-(index as i32 % 5)) * frobenius_of(&step) / frobenius_of(&noise);
                let direction: Vec<Tensor> = match index % 5 {
                    0 => noise,
                    _ => step
                        .iter()
                        .zip(&noise)
                        .map(|(step, noise)| step + noise * nearness)
                        .collect(),
                };
                for by in lengths(&model, &direction).into_iter().flat_map(|by| [by, -by]) {
                    let other = model.objective(&scaled(&direction, by), bound);
                    assert!(
                        other >= reached - 1e-9,
                        "{member:?}, bound {bound}: {other} below {reached}"
                    );
                }
            }
        }
    }
}

fn frobenius_of(tensors: &[Tensor]) -> f64 {
    tensors.iter().map(|tensor| dot(tensor, tensor)).sum::<f64>().sqrt()
}

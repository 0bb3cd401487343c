//! The family of steepest descent under product norms, and Momo, written out from the paper: float64, one tensor at a time,
//! polar factors by the SVD. Slow and obvious; the optimiser is measured against it and shares no code with it.
//!
//! Data flows: gradients of a step → moments → blocks (direction and dual norm) → one global dual norm → the step of each
//! block → Momo's step size → parameters.
//!
//! Source: Crawshaw, Modi, Liu, Gower, "An Exploration of Non-Euclidean Gradient Descent: Muon and its Many Variants",
//! arXiv 2510.09827, and its public code. Momo's estimated bound: Schaipp et al., arXiv 2305.07583.

pub mod methods;
pub mod norms;

use norms::{Block, Member, dot, hidden_block, other_block, strides};
use tch::{Kind, Tensor};

/// A lower bound of the loss.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    Fixed(f64),
    /// Estimated, from 0.
    Auto,
}

/// Truncation by the model of the loss.
#[derive(Clone, Copy, Debug)]
pub struct Momo {
    pub bound: Bound,
    /// h where the step starts, after the decay; else at w, as published.
    pub exact_decay: bool,
}

/// What the step of a matrix does with its shape.
#[derive(Clone, Copy, Debug)]
pub enum Scaling {
    None,
    Original,
    MatchRms,
    Fan,
}

/// The factor by shape: torch.optim.Muon's "original" √max(1, rows/columns) and "match_rms_adamw"
/// 0.2·√max(rows, columns); √(fan out/fan in) of dion.
pub fn shape_factor(scaling: Scaling, rows: i64, columns: i64) -> f64 {
    let (rows, columns) = (rows as f64, columns as f64);
    match scaling {
        Scaling::None => 1.0,
        Scaling::Original => (rows / columns).max(1.0).sqrt(),
        Scaling::MatchRms => 0.2 * rows.max(columns).sqrt(),
        Scaling::Fan => (rows / columns).sqrt(),
    }
}

/// A tensor and how it is treated.
pub struct Weight {
    pub name: &'static str,
    /// Float64, in its own shape.
    pub value: Tensor,
    /// Matrices by rows that it is cut into; none: an other tensor.
    pub parts: Option<i64>,
    /// c: the learning rate of its group, over the scheduled one.
    pub learning_rate_scale: f64,
    pub weight_decay: f64,
}

impl Weight {
    /// The matrices of a hidden tensor: `[rows / parts, columns]` each, with columns = all dimensions but the first.
    pub fn matrices(&self, tensor: &Tensor) -> Vec<Tensor> {
        let rows = self.value.size()[0];
        tensor.reshape([rows, -1]).chunk(self.parts.unwrap_or(1), 0)
    }
}

/// The choices of a run.
#[derive(Clone, Debug)]
pub struct Choices {
    pub member: Member,
    pub learning_rate: f64,
    /// β₁ of every tensor.
    pub momentum: f64,
    /// β₂ of other tensors.
    pub second: f64,
    pub epsilon: f64,
    pub hidden_scale: f64,
    pub scaling: Scaling,
    pub cautious: bool,
    pub momo: Option<Momo>,
}

/// What a step measured.
pub struct Step {
    pub effective: f64,
    /// h, without Momo 0.
    pub model: f64,
    /// Γ, by how much the model falls per unit of learning rate.
    pub fall: f64,
    /// F*, without Momo −∞.
    pub bound: f64,
}

/// The optimiser.
pub struct Reference {
    pub choices: Choices,
    pub weights: Vec<Weight>,
    pub first: Vec<Tensor>,
    pub second: Vec<Tensor>,
    /// F̄.
    average: Option<f64>,
    /// F*, where it is estimated.
    estimate: f64,
}

/// m ← β·m + (1 − β)·x, where the first m is x.
pub fn average(old: Option<&Tensor>, beta: f64, x: &Tensor) -> Tensor {
    match old {
        None => x.copy(),
        Some(old) => old * beta + x * (1.0 - beta),
    }
}

impl Reference {
    pub fn new(choices: Choices, weights: Vec<Weight>) -> Reference {
        Reference {
            choices,
            weights,
            first: Vec::new(),
            second: Vec::new(),
            average: None,
            estimate: 0.0,
        }
    }

    /// The blocks of each tensor at the present moments.
    pub fn blocks(&self) -> Vec<Vec<Block>> {
        let moments = self.first.iter().zip(&self.second);
        self.weights
            .iter()
            .zip(moments)
            .map(|(weight, (m, v))| match weight.parts {
                None => vec![other_block(self.choices.member.other, m, v, self.choices.epsilon)],
                Some(_) => weight
                    .matrices(m)
                    .iter()
                    .map(|part| {
                        let (rows, columns) = part.size2().unwrap();
                        let factor = shape_factor(self.choices.scaling, rows, columns);
                        hidden_block(part, self.choices.hidden_scale * factor)
                    })
                    .collect(),
            })
            .collect()
    }

    /// One step with the gradients and the loss at the present parameters.
    pub fn step(&mut self, gradients: &[Tensor], loss: f64) -> Step {
        // m ← β₁·m + (1 − β₁)·g, v ← β₂·v + (1 − β₂)·g²; the first are g and g².
        let choices = self.choices.clone();
        let fold = |old: &[Tensor], beta: f64, new: Vec<Tensor>| -> Vec<Tensor> {
            let new = new.iter().enumerate();
            new.map(|(i, x)| average(old.get(i), beta, x)).collect()
        };
        self.first = fold(
            &self.first,
            choices.momentum,
            gradients.iter().map(Tensor::copy).collect(),
        );
        self.second = fold(
            &self.second,
            choices.second,
            gradients.iter().map(Tensor::square).collect(),
        );

        let by_tensor = self.blocks();
        let tensor_of: Vec<usize> = by_tensor
            .iter()
            .enumerate()
            .flat_map(|(t, blocks)| vec![t; blocks.len()])
            .collect();
        let blocks: Vec<Block> = by_tensor.into_iter().flatten().collect();
        let strides: Vec<f64> = strides(choices.member, &blocks)
            .iter()
            .zip(&tensor_of)
            .map(|(stride, tensor)| stride * self.weights[*tensor].learning_rate_scale)
            .collect();
        // Γ = Σ c·multiplier·[G]·dual: G (constrained) or G² (regularised) where every c is 1.
        let fall = strides
            .iter()
            .zip(&blocks)
            .map(|(stride, block)| stride * block.dual)
            .sum();

        let (effective, model, bound) = self.truncate(gradients, loss, fall);
        let mut next = 0;
        for (tensor, weight) in self.weights.iter_mut().enumerate() {
            let mut directions = Vec::new();
            let mut steps = Vec::new();
            while next < blocks.len() && tensor_of[next] == tensor {
                let step = &blocks[next].direction * (effective * strides[next]);
                directions.push(&blocks[next].direction);
                steps.push(step);
                next += 1;
            }
            let shape = weight.value.size();
            let joined = |pieces: &[Tensor]| Tensor::cat(pieces, 0).reshape(&shape);
            let (step, direction) = match weight.parts {
                None => (steps[0].copy(), directions[0].copy()),
                Some(_) => (joined(&steps), Tensor::cat(&directions, 0).reshape(&shape)),
            };
            // The decay keeps the untruncated learning rate.
            let rate = choices.learning_rate * weight.learning_rate_scale;
            weight.value = decayed(weight, &direction, rate, choices.cautious) - step;
        }
        Step {
            effective,
            model,
            fall,
            bound,
        }
    }

    /// Momo for any norm: the effective learning rate, h and F*.
    fn truncate(&mut self, gradients: &[Tensor], loss: f64, fall: f64) -> (f64, f64, f64) {
        let rate = self.choices.learning_rate;
        let Some(momo) = self.choices.momo else {
            return (rate, 0.0, f64::NEG_INFINITY);
        };
        // F̄ ← β₁·F̄ + (1 − β₁)·(F − ⟨g, w⟩), and F − ⟨g, w⟩ at first.
        let beta = self.choices.momentum;
        let slope: f64 = self.weights.iter().zip(gradients).map(|(w, g)| dot(g, &w.value)).sum();
        let average = match self.average {
            None => loss - slope,
            Some(old) => beta * old + (1.0 - beta) * (loss - slope),
        };
        self.average = Some(average);
        // h = F̄ + ⟨m, w⟩; exact: w after its decay.
        let kept = |w: &Weight| match momo.exact_decay {
            true => 1.0 - rate * w.learning_rate_scale * w.weight_decay,
            false => 1.0,
        };
        let moments = self.weights.iter().zip(&self.first);
        let h = average + moments.map(|(w, m)| kept(w) * dot(m, &w.value)).sum::<f64>();
        let mut bound = match momo.bound {
            Bound::Fixed(bound) => bound,
            Bound::Auto => self.estimate,
        };
        // MoMo*, before the step: where h < F*, F* ← max(h ÷ 2, the first bound).
        if matches!(momo.bound, Bound::Auto) && h < bound {
            bound = (h / 2.0).max(0.0);
        }
        let effective = rate.min((h - bound).max(0.0) / fall);
        // MoMo*, after it: F* ← max(h − τ·N² ÷ 2, the first bound), with N² = G² or G.
        self.estimate = (h - effective * fall / 2.0).max(0.0);
        (effective, h, bound)
    }
}

/// (1 − rate·λ)·p; cautious: only elements on which the step and p have one sign (or one of them is 0).
pub fn decayed(weight: &Weight, direction: &Tensor, rate: f64, cautious: bool) -> Tensor {
    let p = &weight.value;
    let decay = p * (rate * weight.weight_decay);
    match cautious {
        false => p - decay,
        true => p - decay * (direction * p).ge(0.0).to_kind(Kind::Double),
    }
}

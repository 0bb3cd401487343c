//! From sums over everything to the step of each tensor: pure functions, the same on every rank.
//!
//! Way of data: the second slot exchange gives [`Measured`] per tensor → [`decide`] → the norm of the momentum under the
//! member's product norm (arXiv 2510.09827, section on product norms), the model of the loss and the truncated learning
//! rate ([`ModelState`] goes from step to step), and [`TensorStep`]s. Steps that depend on nothing but the learning rate
//! come from [`local_steps`].
//!
//! The formulas, with s_l the hidden scale of matrix l (times its shape factor), c_j a group's learning-rate scale,
//! U the factor that is applied, D = √v + ε:
//!
//! | block | dual norm | direction of steepest descent (norm 1) |
//! | --- | --- | --- |
//! | hidden matrix | d = s·⟨M, U⟩ | s·U |
//! | other, sign | e = Σ abs(m) | sign(m) |
//! | other, ada-inf | e = Σ m²/D | m/D |
//! | other, ada-2 | e = √(Σ m²/D) | m/(D·e) |
//!
//! | product | G | multiplier of a block |
//! | --- | --- | --- |
//! | max | Σ d + Σ e | 1 |
//! | l2 | √(Σ d² + Σ e²) | d/G, e/G |
//! | hybrid | √((Σ d)² + Σ e²) | (Σ d)/G for every matrix, e/G |
//!
//! A step moves a block by a·c·multiplier·(G if regularised)·direction; a is the learning rate or the truncated one.

use lockstep_config::{Descent, LowerBound, Method, MomoDecay, MomoSection, OtherNorm, Product, Steepest};
use lockstep_inventory::{Treatment, Use};

use crate::OptimError;
use crate::settings::Optimizer;

/// What the second exchange says of one tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Hidden: ⟨M, U⟩ of each part. Other: one value, Σ m·d over its blocks.
    pub duals: Vec<f64>,
    /// ⟨g, w⟩.
    pub gradient_dot: f64,
    /// ⟨m, w⟩.
    pub momentum_dot: f64,
}

/// How a tensor steps: p ← keep·p − step·direction.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorStep {
    /// Of each part of a hidden tensor, the factor's multiple; of an other tensor one value, its direction's (Adam's bias
    /// correction is not in it).
    pub steps: Vec<f64>,
    /// What weight decay leaves.
    pub keep: f64,
}

/// The model of the loss from step to step. Equal on every rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ModelState {
    /// Steps so far.
    pub steps: u32,
    /// Average of the loss F (family: of F − ⟨g, w⟩).
    pub loss: f64,
    /// Average of ⟨g, w⟩ (family: unused).
    pub gradient_dot: f64,
    /// The estimated lower bound under `lower_bound = "auto"`.
    pub lower_bound: f64,
}

/// What the model of the loss said of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossModel {
    /// h: its value where the step starts, in the loss's unit.
    pub value: f64,
    /// F*: the lower bound that the step was truncated with.
    pub lower_bound: f64,
}

/// The steps of all tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// By tensor.
    pub steps: Vec<TensorStep>,
    /// The learning rate after truncation.
    pub effective_learning_rate: f64,
    /// G: the dual norm of the momentum; none where no norm was measured.
    pub dual_norm: Option<f64>,
    /// The model of the loss, where there is one.
    pub model: Option<LossModel>,
}

/// The steps of a method whose steps depend on the learning rate alone (`!optimizer.is_global()`).
pub fn local_steps(optimizer: &Optimizer, treatments: &[Treatment], learning_rate: f64) -> Decision {
    let steps = treatments.iter().map(|treatment| {
        let rate = learning_rate * treatment.lr_scale;
        TensorStep {
            steps: match treatment.kind {
                Use::Hidden { parts, rows, columns } => vec![rate * optimizer.hidden_scale(rows, columns); parts],
                Use::Other => vec![rate],
            },
            keep: 1.0 - rate * treatment.weight_decay,
        }
    });
    Decision {
        steps: steps.collect(),
        effective_learning_rate: learning_rate,
        dual_norm: None,
        model: None,
    }
}

/// The steps of a method that needs sums over all tensors, and the next state of its model. `loss` is the step's mean
/// loss. Sums are added in the order of the tensors.
///
/// # Errors
/// A sum that is not finite.
pub fn decide(
    optimizer: &Optimizer,
    treatments: &[Treatment],
    state: ModelState,
    learning_rate: f64,
    loss: f64,
    measured: &[Measured],
) -> Result<(Decision, ModelState), OptimError> {
    let decided = match optimizer.keys().method {
        Method::Steepest(steepest) => family(optimizer, steepest, treatments, state, learning_rate, loss, measured),
        Method::Momo | Method::MomoAdam => stand_alone(optimizer, treatments, state, learning_rate, loss, measured),
        Method::Muon | Method::NorMuon | Method::AdamW | Method::Sgd => {
            (local_steps(optimizer, treatments, learning_rate), state)
        }
    };
    let finite = decided.0.effective_learning_rate.is_finite()
        && decided.0.dual_norm.is_none_or(f64::is_finite)
        && decided.0.model.is_none_or(|model| model.value.is_finite());
    match finite {
        true => Ok(decided),
        false => Err(OptimError::NotFinite {
            what: format!(
                "{:?}, effective learning rate {}",
                decided.0.model, decided.0.effective_learning_rate
            ),
        }),
    }
}

/// The norm of the momentum and what each block moves per unit of learning rate.
struct Norm {
    /// G.
    dual: f64,
    /// By tensor and part: c·multiplier·(G if regularised)·(scale of the direction).
    multiples: Vec<Vec<f64>>,
    /// By how much the linear model falls per unit of learning rate: G², or G if constrained, where no group has a scale.
    fall: f64,
}

/// 0 where nothing is to be divided: a block whose momentum is zero does not move.
fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

fn norm_of(optimizer: &Optimizer, steepest: Steepest, treatments: &[Treatment], measured: &[Measured]) -> Norm {
    // Dual norms of the blocks, and the scale of each block's stored direction that makes its norm one.
    let blocks: Vec<Vec<(f64, f64)>> = treatments
        .iter()
        .zip(measured)
        .map(|(treatment, measured)| match treatment.kind {
            Use::Hidden { rows, columns, .. } => {
                let scale = optimizer.hidden_scale(rows, columns);
                measured.duals.iter().map(|nuclear| (scale * nuclear, scale)).collect()
            }
            Use::Other => {
                let sum = measured.duals[0];
                vec![match steepest.other {
                    OtherNorm::Sign | OtherNorm::AdaInf => (sum, 1.0),
                    OtherNorm::Ada2 => (sum.sqrt(), ratio(1.0, sum.sqrt())),
                }]
            }
        })
        .collect();
    let (mut hidden, mut hidden_squares, mut others, mut other_squares) = (0.0, 0.0, 0.0, 0.0);
    for (treatment, blocks) in treatments.iter().zip(&blocks) {
        for (dual, _) in blocks {
            if treatment.is_hidden() {
                hidden += dual;
                hidden_squares += dual * dual;
            } else {
                others += dual;
                other_squares += dual * dual;
            }
        }
    }
    let dual: f64 = match steepest.product {
        Product::Max => hidden + others,
        Product::L2 => (hidden_squares + other_squares).sqrt(),
        Product::Hybrid => (hidden * hidden + other_squares).sqrt(),
    };
    let length = match steepest.descent {
        Descent::Constrained => 1.0,
        Descent::Regularized => dual,
    };
    let mut fall = 0.0;
    let multiples = treatments
        .iter()
        .zip(&blocks)
        .map(|(treatment, blocks)| {
            blocks
                .iter()
                .map(|(block, scale)| {
                    let multiplier = match steepest.product {
                        Product::Max => 1.0,
                        Product::Hybrid if treatment.is_hidden() => ratio(hidden, dual),
                        Product::L2 | Product::Hybrid => ratio(*block, dual),
                    };
                    let multiple = treatment.lr_scale * multiplier * length;
                    fall += multiple * block;
                    multiple * scale
                })
                .collect()
        })
        .collect();
    Norm { dual, multiples, fall }
}

/// How far a step may go before the model reaches the lower bound.
fn room(height: f64, fall: f64) -> f64 {
    if height <= 0.0 {
        0.0
    } else if fall > 0.0 {
        height / fall
    } else {
        f64::INFINITY
    }
}

/// The lower bound of a step: fixed, or the estimate, lowered first if the model lies below it (MoMo's rule for an unknown
/// bound, arXiv 2305.07583, with a first estimate of 0). `unit` is the model's weight of the bound.
fn lower_bound(momo: MomoSection, state: &mut ModelState, height: f64, unit: f64) -> f64 {
    match momo.lower_bound {
        LowerBound::Fixed(bound) => bound,
        LowerBound::Auto => {
            if height < unit * state.lower_bound {
                state.lower_bound = (height / (2.0 * unit)).max(0.0);
            }
            state.lower_bound
        }
    }
}

/// A member of the family, with or without a model of the loss.
///
/// F̄ ← β·F̄ + (1−β)·(F − ⟨g, w⟩), the first F̄ being F − ⟨g, w⟩; h = F̄ + ⟨m, w⟩; a = min(η, max(0, h − F*)/fall).
/// `decay = "exact"` takes h at (1 − ηλ)·w, where the step starts.
fn family(
    optimizer: &Optimizer,
    steepest: Steepest,
    treatments: &[Treatment],
    mut state: ModelState,
    learning_rate: f64,
    loss: f64,
    measured: &[Measured],
) -> (Decision, ModelState) {
    let norm = norm_of(optimizer, steepest, treatments, measured);
    let keep = |treatment: &Treatment| 1.0 - learning_rate * treatment.lr_scale * treatment.weight_decay;
    let (mut effective, mut model) = (learning_rate, None);
    if let Some(momo) = optimizer.momo() {
        let beta = if state.steps == 0 {
            0.0
        } else {
            optimizer.keys().momentum
        };
        let gradient_dot: f64 = measured.iter().map(|m| m.gradient_dot).sum();
        state.loss = beta * state.loss + (1.0 - beta) * (loss - gradient_dot);
        let momentum_dot: f64 = match momo.decay {
            MomoDecay::Paper => measured.iter().map(|m| m.momentum_dot).sum(),
            MomoDecay::Exact => treatments
                .iter()
                .zip(measured)
                .map(|(treatment, m)| keep(treatment) * m.momentum_dot)
                .sum(),
        };
        let value = state.loss + momentum_dot;
        let bound = lower_bound(momo, &mut state, value, 1.0);
        effective = learning_rate.min(room(value - bound, norm.fall));
        if momo.lower_bound == LowerBound::Auto {
            state.lower_bound = (value - effective * norm.fall / 2.0).max(0.0);
        }
        model = Some(LossModel {
            value,
            lower_bound: bound,
        });
    }
    state.steps += 1;
    let steps = treatments
        .iter()
        .zip(&norm.multiples)
        .map(|(treatment, multiples)| TensorStep {
            steps: multiples.iter().map(|multiple| effective * multiple).collect(),
            keep: keep(treatment),
        });
    let decision = Decision {
        steps: steps.collect(),
        effective_learning_rate: effective,
        dual_norm: Some(norm.dual),
        model,
    };
    (decision, state)
}

/// MoMo and MoMo-Adam (arXiv 2305.07583), λ the weight decay of all, ρ = 1 (MoMo) or 1 − β₁ᵏ:
/// τ = min(η/ρ, max(0, (1+ηλ)(F̄ − ρF*) + ⟨d, x⟩ − (1+ηλ)γ)/‖d‖²), x ← (x − τ·d)/(1+ηλ), with the norm's square Σ d²
/// or Σ d²/D.
fn stand_alone(
    optimizer: &Optimizer,
    treatments: &[Treatment],
    mut state: ModelState,
    learning_rate: f64,
    loss: f64,
    measured: &[Measured],
) -> (Decision, ModelState) {
    let keys = optimizer.keys();
    let adaptive = keys.method == Method::MomoAdam;
    let beta = if adaptive { keys.betas[0] } else { keys.momentum };
    // MoMo's averages start at the first values, MoMo-Adam's at zero.
    let first = if state.steps == 0 && !adaptive { 0.0 } else { beta };
    let gradient_dot: f64 = measured.iter().map(|m| m.gradient_dot).sum();
    state.loss = first * state.loss + (1.0 - first) * loss;
    state.gradient_dot = first * state.gradient_dot + (1.0 - first) * gradient_dot;
    state.steps += 1;
    let unit = if adaptive {
        1.0 - beta.powi(state.steps as i32)
    } else {
        1.0
    };
    let shrink = 1.0 + learning_rate * keys.weight_decay;
    let momentum_dot: f64 = measured.iter().map(|m| m.momentum_dot).sum();
    let square: f64 = measured.iter().flat_map(|m| &m.duals).sum();
    let momo = optimizer.momo().unwrap_or(MomoSection {
        lower_bound: LowerBound::Fixed(0.0),
        decay: MomoDecay::Paper,
    });
    let height = shrink * state.loss + momentum_dot - shrink * state.gradient_dot;
    let bound = lower_bound(momo, &mut state, height, shrink * unit);
    let effective = (learning_rate / unit).min(room(height - shrink * unit * bound, square));
    let value = state.loss + momentum_dot - state.gradient_dot;
    if momo.lower_bound == LowerBound::Auto {
        state.lower_bound = ((value - effective * square / 2.0) / unit).max(0.0);
    }
    let step = TensorStep {
        steps: vec![effective / shrink],
        keep: 1.0 / shrink,
    };
    let decision = Decision {
        steps: vec![step; treatments.len()],
        effective_learning_rate: effective,
        dual_norm: Some(square.sqrt()),
        model: Some(LossModel {
            value: value / unit,
            lower_bound: bound,
        }),
    };
    (decision, state)
}

//! The functions that a model is made of, by the set that its weights ask for.
//!
//! Both sets keep the same rules: residual stream, norms and gradient sums in float32, products in the run's kind, the
//! embedding's gradient added in token order, the loss a float64 scalar on the weights' device. Their bits differ, so a
//! run stays with one set.

use std::rc::Rc;

use lockstep_inventory::Norm;
use lockstep_kernels::attention::Shape as Heads;
use tch::{Device, Kind, Tensor};

use crate::error::TrainerError;
use crate::model::weights::Weights;
use crate::model::{functions, tensors};

/// Which functions a forward pass is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// Custom functions over our host kernels ([`functions`]): CPU tensors only.
    Host,
    /// libtorch's functions ([`tensors`]): tensors of any device.
    Tensors,
}

impl Arithmetic {
    /// The set for weights on a device.
    pub fn for_device(device: Device) -> Arithmetic {
        match device {
            Device::Cpu => Arithmetic::Host,
            _ => Arithmetic::Tensors,
        }
    }
}

/// x = table[ids] + positions, float32 `[N, width]`.
pub fn embed(
    weights: &Weights,
    table: usize,
    positions: usize,
    ids: &Rc<[i64]>,
    time: usize,
) -> Result<Tensor, TrainerError> {
    match weights.arithmetic {
        Arithmetic::Host => functions::embed(weights, table, positions, ids, time),
        Arithmetic::Tensors => tensors::embed(weights, table, positions, ids, time),
    }
}

/// x = residual + branch (or residual itself) and y = norm(x); returns (x, y), y of the activation kind.
pub fn add_norm(
    weights: &Weights,
    residual: &Tensor,
    branch: Option<&Tensor>,
    parameters: Norm,
) -> Result<(Tensor, Tensor), TrainerError> {
    match weights.arithmetic {
        Arithmetic::Host => functions::add_norm(weights, residual, branch, parameters),
        Arithmetic::Tensors => tensors::add_norm(weights, residual, branch, parameters),
    }
}

/// y = x·Wᵀ + b, with W `[out, in]`.
pub fn linear(weights: &Weights, x: &Tensor, weight: usize, bias: Option<usize>) -> Result<Tensor, TrainerError> {
    match weights.arithmetic {
        Arithmetic::Host => functions::linear(weights, x, weight, bias),
        Arithmetic::Tensors => tensors::linear(weights, x, weight, bias),
    }
}

/// y = GELU(x), tanh form.
pub fn gelu(weights: &Weights, x: &Tensor) -> Result<Tensor, TrainerError> {
    match weights.arithmetic {
        Arithmetic::Host => functions::gelu(weights, x),
        Arithmetic::Tensors => tensors::gelu(x),
    }
}

/// Causal self-attention: qkv `[N, 3·width]` → `[N, width]`.
pub fn attention(weights: &Weights, qkv: &Tensor, heads: Heads, qk_norm: bool) -> Result<Tensor, TrainerError> {
    match weights.arithmetic {
        Arithmetic::Host => functions::attention(weights, qkv, heads, qk_norm),
        Arithmetic::Tensors => tensors::attention(qkv, heads, qk_norm),
    }
}

/// The head with cross-entropy: Σ over counted targets of −log softmax(y·Wᵀ), a float64 scalar.
pub fn head_loss(weights: &Weights, y: &Tensor, weight: usize, targets: &[i64]) -> Result<Tensor, TrainerError> {
    match weights.arithmetic {
        Arithmetic::Host => functions::head_loss(weights, y, weight, targets),
        Arithmetic::Tensors => tensors::head_loss(weights, y, weight, targets),
    }
}

/// Float32 logits of rows in host memory, row-major, for inference.
pub fn logits(weights: &Weights, y: &Tensor, weight: usize) -> Result<Vec<f32>, TrainerError> {
    let w = weights.leaf(weight).f_detach()?;
    let logits = weights.products.multiply(y, &w.f_transpose(0, 1)?)?;
    let logits = logits.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
    Ok(Vec::try_from(logits.f_flatten(0, -1)?)?)
}

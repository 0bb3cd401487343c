//! The functions of a transformer by libtorch's own operations, on tensors of any device.
//!
//! Shapes and rules are those of [`crate::model::functions`]. What has parameters is a custom function, so that their
//! gradients go straight into the float32 slots: the embedding's rows in token order, each use of a tied or repeated
//! tensor on its own, and a tensor that nothing reached stays untouched and can be named. The rest is the library's
//! autograd. No value is read here: nothing waits for the device.
//!
//! Attention is the library's `scaled_dot_product_attention`: its memory grows with the sequence and not with its square,
//! and each of its kernels has a backward of one fixed order under deterministic algorithms. Which kernel runs is a
//! setting of the process that allows exactly one; where that one cannot serve, libtorch refuses rather than take another.

use std::rc::Rc;

use lockstep_autograd::custom;
use lockstep_inventory::Norm;
use lockstep_kernels::attention::Shape as Heads;
use lockstep_kernels::loss::IGNORED;
use lockstep_kernels::norm::EPSILON;
use lockstep_optim::tensors::sums::sum;
use tch::{Device, Kind, TchError, Tensor};

use crate::error::TrainerError;
use crate::model::weights::Weights;

/// Bytes of float32 logits that the head holds at once: few large products rather than many small ones.
const LOGIT_BYTES: usize = 256 << 20;
/// Added to the mean square of a query or a key.
const QUERY_KEY_EPSILON: f64 = 1e-6;

/// [`custom`] with a backward that may run on another thread, as it does on GPUs.
fn function(
    label: &str,
    inputs: &[&Tensor],
    outputs: &[&Tensor],
    backward: impl FnOnce(Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>, TchError> + Send + 'static,
) -> Result<(), TrainerError> {
    Ok(custom(label, inputs, outputs, backward)?)
}

fn missing(what: &str) -> TchError {
    TchError::Kind(format!("no gradient reached {what}"))
}

/// A parameter as the library's functions read it: each use adds its gradient to the slot in float32.
fn parameter(weights: &Weights, tensor: usize) -> Result<Tensor, TrainerError> {
    let leaf = weights.leaf(tensor);
    let read = leaf.f_detach()?;
    if let Some(slot) = weights.slot(tensor) {
        function("parameter", &[leaf], &[&read], move |gradients| {
            if let Some(gradient) = &gradients[0] {
                slot.add_tensor(gradient)?;
            }
            Ok(vec![None])
        })?;
    }
    Ok(read)
}

/// Tokens on a device. The copy is enqueued from a staging area of the driver's: nobody waits for what the device has
/// still to do.
fn tokens_on(tokens: &[i64], device: Device) -> Result<Tensor, TchError> {
    Tensor::from_slice(tokens).f_to_device_(device, Kind::Int64, true, false)
}

/// x = table[ids] + positions, float32 `[N, width]`.
pub fn embed(
    weights: &Weights,
    table: usize,
    positions: usize,
    ids: &Rc<[i64]>,
    time: usize,
) -> Result<Tensor, TrainerError> {
    let (leaf, place) = (weights.leaf(table), weights.leaf(positions));
    let (width, time) = (leaf.size2()?.1, time as i64);
    let ids = tokens_on(ids, leaf.device())?;
    let x = tch::no_grad(|| -> Result<_, TchError> {
        let tokens = leaf.f_index_select(0, &ids)?.f_to_kind(Kind::Float)?;
        let places = place.f_narrow(0, 0, time)?.f_to_kind(Kind::Float)?;
        // [rows, time, width] + [time, width] → [N, width]
        tokens.f_view([-1, time, width])?.f_add(&places)?.f_view([-1, width])
    })?;
    if let (Some(d_table), Some(d_positions)) = (weights.slot(table), weights.slot(positions)) {
        function("embedding", &[leaf, place], &[&x], move |gradients| {
            let dx = gradients[0]
                .as_ref()
                .ok_or_else(|| missing("the embedding"))?
                .f_contiguous()?;
            d_table.add_in_place(|slot| slot.f_index_add_(0, &ids, &dx).map(drop))?;
            let dx = dx.f_view([-1, time, width])?;
            d_positions.add_in_place(|slot| {
                let mut used = slot.f_narrow(0, 0, time)?;
                // Sequence after sequence, so that the order is that of the tokens.
                (0..dx.size()[0]).try_for_each(|row| used.f_add_(&dx.f_select(0, row)?).map(drop))
            })?;
            Ok(vec![None, None])
        })?;
    }
    Ok(x)
}

/// x = residual + branch (or residual itself) and y = norm(x); returns (x, y), y of the activation kind.
pub fn add_norm(
    weights: &Weights,
    residual: &Tensor,
    branch: Option<&Tensor>,
    parameters: Norm,
) -> Result<(Tensor, Tensor), TrainerError> {
    let x = match branch {
        // Float32 and bf16 are added in float32.
        Some(branch) => residual.f_add(branch)?,
        None => residual.shallow_clone(),
    };
    let gain = parameter(weights, parameters.gain)?;
    let bias = parameters.bias.map(|bias| parameter(weights, bias)).transpose()?;
    let width = x.size2()?.1;
    let y = x
        .f_layer_norm([width], Some(&gain), bias.as_ref(), f64::from(EPSILON), false)?
        .f_to_kind(weights.activations())?;
    Ok((x, y))
}

/// y = x·Wᵀ + b, with W `[out, in]`.
pub fn linear(weights: &Weights, x: &Tensor, weight: usize, bias: Option<usize>) -> Result<Tensor, TrainerError> {
    let products = weights.products;
    let w = weights.leaf(weight);
    let y = tch::no_grad(|| products.multiply(x, &w.f_transpose(0, 1)?))?;
    if let Some(slot) = weights.slot(weight) {
        let (saved, matrix) = (x.f_detach()?, w.f_detach()?);
        function("linear", &[x, w], &[&y], move |gradients| {
            let dy = gradients[0]
                .as_ref()
                .ok_or_else(|| missing("a linear layer"))?
                .f_contiguous()?;
            slot.add_product(products, &dy.f_transpose(0, 1)?, &saved)?;
            Ok(vec![Some(products.multiply(&dy, &matrix)?), None])
        })?;
    }
    match bias {
        // The bias is float32: so is the sum, and its gradient is summed in float32.
        Some(bias) => Ok(y.f_add(&parameter(weights, bias)?)?.f_to_kind(y.kind())?),
        None => Ok(y),
    }
}

/// y = GELU(x), tanh form.
pub fn gelu(x: &Tensor) -> Result<Tensor, TrainerError> {
    Ok(x.f_gelu("tanh")?)
}

/// Each head vector divided by its root mean square, without gain: float32 inside.
fn rms_norm(x: &Tensor) -> Result<Tensor, TchError> {
    let values = x.f_to_kind(Kind::Float)?;
    let mean_square = values.f_square()?.f_mean_dim(&[-1i64][..], true, Kind::Float)?;
    let inverse = mean_square.f_add_scalar(QUERY_KEY_EPSILON)?.f_rsqrt()?;
    values.f_mul(&inverse)?.f_to_kind(x.kind())
}

/// Causal self-attention: qkv `[N, 3·width]` → `[N, width]`.
pub fn attention(qkv: &Tensor, heads: Heads, qk_norm: bool) -> Result<Tensor, TrainerError> {
    let [batch, time, count, head_width] = [heads.batch, heads.time, heads.heads, heads.head_width].map(|n| n as i64);
    // [batch, time, 3, heads, head_width] → [3, batch, heads, time, head_width]
    let parts = qkv
        .f_view([batch, time, 3, count, head_width])?
        .f_permute([2, 0, 3, 1, 4])?;
    let part = |index: i64| parts.f_select(0, index);
    let (q, k) = match qk_norm {
        true => (rms_norm(&part(0)?)?, rms_norm(&part(1)?)?),
        false => (part(0)?, part(1)?),
    };
    let none: Option<&Tensor> = None;
    let mixed = Tensor::f_scaled_dot_product_attention(&q, &k, &part(2)?, none, 0.0, true, None, false)?;
    // [batch, heads, time, head_width] → [N, width]
    Ok(mixed.f_transpose(1, 2)?.f_reshape([batch * time, count * head_width])?)
}

/// The head with cross-entropy: Σ over counted targets of −log softmax(y·Wᵀ), a float64 scalar on y's device.
///
/// As on the host, logits live only chunk by chunk: the gradients of y and of W are made in the forward pass, since the
/// gradient of a step's loss is known to be 1.
pub fn head_loss(weights: &Weights, y: &Tensor, weight: usize, targets: &[i64]) -> Result<Tensor, TrainerError> {
    let vocabulary = weights.leaf(weight).size2()?.0 as usize;
    let chunk = (LOGIT_BYTES / (4 * vocabulary)).clamp(1, targets.len().max(1));
    head_loss_by_chunks(weights, y, weight, targets, chunk)
}

fn head_loss_by_chunks(
    weights: &Weights,
    y: &Tensor,
    weight: usize,
    targets: &[i64],
    chunk: usize,
) -> Result<Tensor, TrainerError> {
    let products = weights.products;
    let w = weights.leaf(weight);
    let slot = weights.slot(weight);
    let targets = tokens_on(targets, y.device())?;
    let (total, dy) = tch::no_grad(|| -> Result<_, TrainerError> {
        let (y, w) = (y.f_detach()?, products.operand(&w.f_detach()?)?);
        let transposed = w.f_transpose(0, 1)?;
        let mut total = Tensor::f_zeros([0i64; 0], (Kind::Double, y.device()))?;
        let mut dys = Vec::new();
        for (part, targets) in y
            .f_split(chunk as i64, 0)?
            .iter()
            .zip(targets.f_split(chunk as i64, 0)?)
        {
            let logits = products.multiply(part, &transposed)?; // [rows, vocabulary]
            let (loss, gradient) = cross_entropy(&logits, &targets, slot.is_some())?;
            let _ = total.f_add_(&loss)?;
            if let (Some(slot), Some(gradient)) = (&slot, gradient) {
                slot.add_product(products, &gradient.f_transpose(0, 1)?, part)?;
                dys.push(products.multiply(&gradient, &w)?);
            }
        }
        let dy = match &slot {
            Some(_) => Some(Tensor::f_cat(&dys, 0)?),
            None => None,
        };
        Ok((total, dy))
    })?;
    if let Some(dy) = dy {
        function("head_loss", &[y, w], &[&total], move |gradients| {
            gradients[0].as_ref().ok_or_else(|| missing("the head"))?;
            Ok(vec![Some(dy), None])
        })?;
    }
    Ok(total)
}

/// Σ over counted rows of −log softmax(row)[target], float64, and softmax(row) − onehot in the logits' kind if asked for;
/// zeros where the target is [`IGNORED`].
fn cross_entropy(logits: &Tensor, targets: &Tensor, gradient: bool) -> Result<(Tensor, Option<Tensor>), TrainerError> {
    let ignored = targets.f_eq(IGNORED)?;
    let index = targets.f_clamp_min(0)?;
    let mut p = logits.f_log_softmax(-1, Kind::Float)?;
    let at_target = p.f_gather(1, &index.f_unsqueeze(1)?, false)?.f_squeeze_dim(1)?; // [rows]
    let losses = at_target
        .f_to_kind(Kind::Double)?
        .f_neg()?
        .f_masked_fill(&ignored, 0.0)?;
    let loss = sum(&losses)?;
    if !gradient {
        return Ok((loss, None));
    }
    let _ = p.f_exp_()?;
    // One place in each row: no two values go to the same one.
    let rows = Tensor::f_arange(index.numel() as i64, (Kind::Int64, index.device()))?;
    let d_target = at_target.f_exp()?.f_sub_scalar(1.0)?;
    let _ = p.f_index_put_(&[Some(&rows), Some(&index)], &d_target, false)?;
    let _ = p.f_masked_fill_(&ignored.f_unsqueeze(1)?, 0.0)?;
    Ok((loss, Some(p.f_to_kind(logits.kind())?)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use lockstep_autograd::run_backward;
    use lockstep_optim::products::Products;

    use super::*;
    use crate::model::arithmetic::Arithmetic;

    /// Numbers of both signs, `[rows, columns]`.
    fn numbers(rows: i64, columns: i64, step: i64) -> Tensor {
        let values: Vec<f32> = (0..rows * columns)
            .map(|i| (i * step % 101 - 50) as f32 / 40.0)
            .collect();
        Tensor::from_slice(&values).reshape([rows, columns])
    }

    #[test]
    fn the_head_gives_the_same_loss_and_gradients_by_any_chunk() {
        let (rows, width, vocabulary) = (23, 8, 11);
        let mut targets: Vec<i64> = (0..rows).map(|n| n * 7 % vocabulary).collect();
        targets[4] = IGNORED;
        let run = |chunk: usize| {
            let slot = Tensor::zeros([vocabulary, width], (Kind::Float, Device::Cpu));
            let views = vec![vec![slot.shallow_clone()]];
            let table = numbers(vocabulary, width, 37);
            let weights = Weights::over(Products::Float32, Arithmetic::Tensors, &[table], views).unwrap();
            let y = numbers(rows, width, 29).set_requires_grad(true);
            let loss = head_loss_by_chunks(&weights, &y, 0, &targets, chunk).unwrap();
            run_backward(&loss).unwrap();
            [loss.detach(), y.grad(), slot]
        };
        let whole = run(rows as usize);
        assert_eq!(
            whole[1].get(4).abs().sum(Kind::Float).double_value(&[]),
            0.0,
            "not counted"
        );
        for chunk in [1, 5, 22] {
            for (got, expected) in run(chunk).iter().zip(&whole) {
                let most = (got - expected).abs().max().double_value(&[]);
                assert!(most < 1e-5, "chunks of {chunk}: {most}");
            }
        }
    }

    #[test]
    fn a_nan_among_counted_logits_makes_the_loss_nan_and_only_there() {
        let logits = numbers(3, 5, 13);
        let _ = logits.get(1).fill_(f64::NAN);
        for (target, is_nan) in [(2, true), (IGNORED, false)] {
            let targets = Tensor::from_slice(&[0, target, 4]);
            let (loss, gradient) = cross_entropy(&logits, &targets, true).unwrap();
            assert_eq!(loss.double_value(&[]).is_nan(), is_nan);
            assert_eq!(gradient.unwrap().isnan().any().int64_value(&[]) == 1, is_nan);
        }
    }
}

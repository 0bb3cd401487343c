//! The functions of a transformer, each one custom autograd function: a forward over our kernels and libtorch's products,
//! and a backward that writes the weights' gradients straight into their float32 slots.
//!
//! Shapes: N = batch·time rows. The residual stream is float32 `[N, width]`; what products read and make is of the run's
//! activation kind. A weight's gradient is never a tensor of the graph: it is added in place, and the graph carries
//! "nothing" along that edge, so that the leaf's ready hook still fires.

use std::rc::Rc;

use lockstep_autograd::{custom, elements, elements_mut};
use lockstep_inventory::Norm;
use lockstep_kernels::attention::{self, Shape as Heads, Window};
use lockstep_kernels::real::bf16;
use lockstep_kernels::{embedding, loss, norm, pointwise};
use lockstep_optim::products::Products;
use tch::{Device, Kind, TchError, Tensor};

use crate::error::TrainerError;
use crate::model::weights::Weights;

/// Queries that attention handles in one go; the keys after them are skipped.
const QUERY_BLOCK: usize = 128;
/// Sequence length up to which attention keeps its probabilities for backward; above it, it makes them again.
const KEPT_LENGTH: usize = 512;
/// Bytes of logits that the head holds at once.
const LOGIT_BYTES: usize = 64 << 20;

/// Runs a generic expression for the element type of a tensor kind.
macro_rules! by_kind {
    ($kind:expr, $t:ident => $body:expr) => {
        match $kind {
            Kind::BFloat16 => {
                type $t = bf16;
                $body
            }
            _ => {
                type $t = f32;
                $body
            }
        }
    };
}

fn empty(sizes: &[i64], kind: Kind) -> Result<Tensor, TchError> {
    Tensor::f_empty(sizes, (kind, Device::Cpu))
}

fn missing(what: &str) -> TchError {
    TchError::Kind(format!("no gradient reached {what}"))
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
    let width = leaf.size()[1];
    let mut x = empty(&[ids.len() as i64, width], Kind::Float)?;
    by_kind!(leaf.kind(), T => {
        embedding::forward::<T>(ids, time, elements(leaf), elements(place), elements_mut(&mut x));
    });
    if let (Some(d_table), Some(d_positions)) = (weights.slot(table), weights.slot(positions)) {
        let ids = Rc::clone(ids);
        custom("embedding", &[leaf, place], &[&x], move |gradients| {
            let dx = gradients[0]
                .as_ref()
                .ok_or_else(|| missing("the embedding"))?
                .f_contiguous()?;
            d_table.add_with(|d_table| {
                d_positions.add_with(|d_positions| {
                    embedding::backward(&ids, time, elements(&dx), d_table, d_positions);
                });
            });
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
    let size = residual.size();
    let (rows, kind) = (size[0] as usize, weights.activations());
    let x = match branch {
        Some(branch) => {
            let mut x = empty(&size, Kind::Float)?;
            by_kind!(branch.kind(), T => {
                norm::add_branch::<T>(elements(residual), elements(branch), elements_mut(&mut x));
            });
            x
        }
        None => residual.detach(),
    };
    let mut y = empty(&size, kind)?;
    let mut stats = vec![(0.0f32, 0.0f32); rows];
    let bias = parameters.bias.map(|b| weights.values(b));
    by_kind!(kind, T => {
        norm::forward::<T>(elements(&x), weights.values(parameters.gain), bias, elements_mut(&mut y), &mut stats);
    });
    let Some(d_gain) = weights.slot(parameters.gain) else {
        return Ok((x, y));
    };
    let d_bias = parameters.bias.and_then(|b| weights.slot(b));
    let gain = weights.leaf(parameters.gain).detach();
    let mut inputs = vec![residual, weights.leaf(parameters.gain)];
    inputs.extend(parameters.bias.map(|b| weights.leaf(b)));
    inputs.extend(branch);
    let (count, branch_kind, saved) = (inputs.len(), branch.map(Tensor::kind), x.shallow_clone());
    let saved = saved.detach();
    // Without a branch, x is the residual: a new tensor over the same memory is the output.
    custom("add_norm", &inputs, &[&x, &y], move |gradients| {
        let dy = gradients[1].as_ref().ok_or_else(|| missing("a norm"))?.f_contiguous()?;
        // The gradient of the stream below is not used by anyone else once it came here: it is updated in place.
        let mut dx = match &gradients[0] {
            Some(dx) => dx.f_contiguous()?,
            None => Tensor::f_zeros(saved.size(), (Kind::Float, Device::Cpu))?,
        };
        d_gain.add_with(|d_gain| {
            let mut run = |d_bias: Option<&mut [f32]>| {
                by_kind!(dy.kind(), T => {
                    let dx = elements_mut(&mut dx);
                    norm::backward::<T>(elements(&saved), &stats, elements(&gain), elements(&dy), dx, d_gain, d_bias);
                });
            };
            match &d_bias {
                Some(slot) => slot.add_with(|d_bias| run(Some(d_bias))),
                None => run(None),
            }
        });
        let mut out: Vec<Option<Tensor>> = (0..count).map(|_| None).collect();
        if let Some(kind) = branch_kind {
            out[count - 1] = Some(if kind == Kind::Float {
                dx.shallow_clone()
            } else {
                dx.f_to_kind(kind)?
            });
        }
        out[0] = Some(dx);
        Ok(out)
    })?;
    Ok((x, y))
}

/// y = x·Wᵀ + b, with W `[out, in]`.
pub fn linear(weights: &Weights, x: &Tensor, weight: usize, bias: Option<usize>) -> Result<Tensor, TrainerError> {
    let products = weights.products;
    let w = weights.leaf(weight);
    let mut y = tch::no_grad(|| products.multiply(x, &w.f_transpose(0, 1)?))?;
    if let Some(bias) = bias {
        by_kind!(y.kind(), T => pointwise::add_bias::<T>(elements_mut(&mut y), weights.values(bias)));
    }
    let Some(slot) = weights.slot(weight) else { return Ok(y) };
    let d_bias = bias.and_then(|b| weights.slot(b));
    let (saved, matrix) = (x.detach(), w.detach());
    let mut inputs = vec![x, w];
    inputs.extend(bias.map(|b| weights.leaf(b)));
    let count = inputs.len();
    custom("linear", &inputs, &[&y], move |gradients| {
        let dy = gradients[0]
            .as_ref()
            .ok_or_else(|| missing("a linear layer"))?
            .f_contiguous()?;
        slot.add_product(products, &dy.f_transpose(0, 1)?, &saved)?;
        if let Some(slot) = &d_bias {
            slot.add_with(|d_bias| by_kind!(dy.kind(), T => pointwise::bias_backward::<T>(elements(&dy), d_bias)));
        }
        let mut out: Vec<Option<Tensor>> = (0..count).map(|_| None).collect();
        out[0] = Some(products.multiply(&dy, &matrix)?);
        Ok(out)
    })?;
    Ok(y)
}

/// y = GELU(x), tanh form.
pub fn gelu(weights: &Weights, x: &Tensor) -> Result<Tensor, TrainerError> {
    let mut y = empty(&x.size(), x.kind())?;
    by_kind!(x.kind(), T => pointwise::gelu::<T>(elements(x), elements_mut(&mut y)));
    if !weights.is_recording() {
        return Ok(y);
    }
    let saved = x.detach();
    custom("gelu", &[x], &[&y], move |gradients| {
        let mut dy = gradients[0].as_ref().ok_or_else(|| missing("GELU"))?.f_contiguous()?;
        by_kind!(dy.kind(), T => pointwise::gelu_backward::<T>(elements(&saved), elements_mut(&mut dy)));
        Ok(vec![Some(dy)])
    })?;
    Ok(y)
}

/// One third of qkv as heads `[batch·heads, time, head_width]`, normed if asked.
fn heads_of(
    qkv: &Tensor,
    heads: Heads,
    part: usize,
    kind: Kind,
    qk_norm: bool,
) -> Result<(Tensor, Option<Vec<f32>>), TchError> {
    let outer = (heads.batch * heads.heads) as i64;
    let mut out = empty(&[outer, heads.time as i64, heads.head_width as i64], kind)?;
    by_kind!(qkv.kind(), A => by_kind!(kind, B => {
        attention::split_heads::<A, B>(heads, elements(qkv), 3, part, elements_mut(&mut out));
    }));
    if !qk_norm {
        return Ok((out, None));
    }
    let mut inverse = vec![0.0f32; heads.elements() / heads.head_width];
    by_kind!(kind, T => attention::rms_norm::<T>(elements_mut(&mut out), heads.head_width, &mut inverse));
    Ok((out, Some(inverse)))
}

/// The blocks of queries of a sequence: (first, rows, keys).
fn query_blocks(time: usize) -> impl Iterator<Item = Window> {
    (0..time).step_by(QUERY_BLOCK).map(move |first| {
        let rows = QUERY_BLOCK.min(time - first);
        Window {
            first,
            rows,
            columns: first + rows,
        }
    })
}

/// Softmax(scale·Q·Kᵀ) of one block of queries, `[batch·heads, rows, columns]`.
fn probabilities(q: &Tensor, k: &Tensor, window: Window, scale: f32) -> Result<Tensor, TchError> {
    let q = q.f_narrow(1, window.first as i64, window.rows as i64)?;
    let k = k.f_narrow(1, 0, window.columns as i64)?;
    let mut scores = q.f_bmm(&k.f_transpose(1, 2)?)?;
    by_kind!(scores.kind(), T => attention::causal_softmax::<T>(elements_mut(&mut scores), window, scale));
    Ok(scores)
}

/// Causal self-attention: qkv `[N, 3·width]` → `[N, width]`.
pub fn attention(weights: &Weights, qkv: &Tensor, heads: Heads, qk_norm: bool) -> Result<Tensor, TrainerError> {
    let products: Products = weights.products;
    let (kind, inner) = (qkv.kind(), products.inner_kind());
    let width = (heads.heads * heads.head_width) as i64;
    let scale = 1.0 / (heads.head_width as f32).sqrt();
    let rows = (heads.batch * heads.time) as i64;
    let forward = || -> Result<_, TchError> {
        let (q, q_inverse) = heads_of(qkv, heads, 0, inner, qk_norm)?;
        let (k, k_inverse) = heads_of(qkv, heads, 1, inner, qk_norm)?;
        let (v, _) = heads_of(qkv, heads, 2, inner, false)?;
        let mut kept = Vec::new();
        let mut parts = Vec::new();
        for window in query_blocks(heads.time) {
            let p = probabilities(&q, &k, window, scale)?;
            parts.push(p.f_bmm(&v.f_narrow(1, 0, window.columns as i64)?)?);
            kept.push((heads.time <= KEPT_LENGTH).then_some(p));
        }
        let o = if parts.len() == 1 {
            parts.remove(0)
        } else {
            Tensor::f_cat(&parts, 1)?
        };
        let mut y = empty(&[rows, width], kind)?;
        by_kind!(inner, A => by_kind!(kind, B => {
            attention::merge_heads::<A, B>(heads, elements(&o), 1, 0, elements_mut(&mut y));
        }));
        Ok((q, q_inverse, k, k_inverse, v, kept, y))
    };
    let (q, q_inverse, k, k_inverse, v, kept, y) = tch::no_grad(forward)?;
    if !weights.is_recording() {
        return Ok(y);
    }
    custom("attention", &[qkv], &[&y], move |gradients| {
        let dy = gradients[0]
            .as_ref()
            .ok_or_else(|| missing("attention"))?
            .f_contiguous()?;
        let mut d_o = empty(&q.size(), inner)?;
        by_kind!(kind, A => by_kind!(inner, B => {
            attention::split_heads::<A, B>(heads, elements(&dy), 1, 0, elements_mut(&mut d_o));
        }));
        let mut dq = empty(&q.size(), inner)?;
        let (mut dk, dv) = (k.f_zeros_like()?, v.f_zeros_like()?);
        for (window, kept) in query_blocks(heads.time).zip(kept) {
            let (first, count, keys) = (window.first as i64, window.rows as i64, window.columns as i64);
            let p = match kept {
                Some(p) => p,
                None => probabilities(&q, &k, window, scale)?,
            };
            let d_o = d_o.f_narrow(1, first, count)?;
            let _ = dv.f_narrow(1, 0, keys)?.f_baddbmm_(&p.f_transpose(1, 2)?, &d_o)?;
            let mut ds = d_o.f_bmm(&v.f_narrow(1, 0, keys)?.f_transpose(1, 2)?)?;
            by_kind!(inner, T => {
                attention::causal_softmax_backward::<T>(elements(&p), elements_mut(&mut ds), window, scale);
            });
            dq.f_narrow(1, first, count)?
                .f_copy_(&ds.f_bmm(&k.f_narrow(1, 0, keys)?)?)?;
            let q = q.f_narrow(1, first, count)?;
            let _ = dk.f_narrow(1, 0, keys)?.f_baddbmm_(&ds.f_transpose(1, 2)?, &q)?;
        }
        for (x, d, inverse) in [(&q, &mut dq, &q_inverse), (&k, &mut dk, &k_inverse)] {
            if let Some(inverse) = inverse {
                by_kind!(inner, T => {
                    attention::rms_norm_backward::<T>(elements(x), heads.head_width, inverse, elements_mut(d));
                });
            }
        }
        let mut d_qkv = empty(&[rows, 3 * width], kind)?;
        for (part, d) in [&dq, &dk, &dv].into_iter().enumerate() {
            by_kind!(inner, A => by_kind!(kind, B => {
                attention::merge_heads::<A, B>(heads, elements(d), 3, part, elements_mut(&mut d_qkv));
            }));
        }
        Ok(vec![Some(d_qkv)])
    })?;
    Ok(y)
}

/// The tied head with cross-entropy: Σ over counted targets of −log softmax(y·Wᵀ), a float64 scalar.
///
/// Logits live only chunk by chunk: the gradients of y and of W are made in the forward pass, from the logits' gradient
/// that the loss kernel leaves in their place, since the gradient of a step's loss is known to be 1.
pub fn head_loss(weights: &Weights, y: &Tensor, weight: usize, targets: &[i64]) -> Result<Tensor, TrainerError> {
    let products = weights.products;
    let w = weights.leaf(weight);
    let slot = weights.slot(weight);
    let size = y.size();
    let vocabulary = w.size()[0] as usize;
    let chunk = (LOGIT_BYTES / (4 * vocabulary)).clamp(1, size[0].max(1) as usize);
    let (total, dy) = tch::no_grad(|| -> Result<_, TchError> {
        let (y, w) = (y.detach(), products.operand(&w.detach())?);
        let transposed = w.f_transpose(0, 1)?;
        let mut dy = match &slot {
            Some(_) => Some(empty(&size, y.kind())?),
            None => None,
        };
        let mut total = 0.0f64;
        for first in (0..targets.len()).step_by(chunk) {
            let rows = chunk.min(targets.len() - first);
            let part = y.f_narrow(0, first as i64, rows as i64)?;
            let mut logits = products.multiply(&part, &transposed)?;
            total += by_kind!(logits.kind(), T => {
                loss::cross_entropy::<T>(elements_mut(&mut logits), &targets[first..][..rows], slot.is_some())
            });
            if let (Some(slot), Some(dy)) = (&slot, &mut dy) {
                slot.add_product(products, &logits.f_transpose(0, 1)?, &part)?;
                dy.f_narrow(0, first as i64, rows as i64)?
                    .f_copy_(&products.multiply(&logits, &w)?)?;
            }
        }
        Ok((total, dy))
    })?;
    let out = Tensor::from(total);
    if let Some(dy) = dy {
        custom("head_loss", &[y, w], &[&out], move |gradients| {
            gradients[0].as_ref().ok_or_else(|| missing("the head"))?;
            Ok(vec![Some(dy), None])
        })?;
    }
    Ok(out)
}

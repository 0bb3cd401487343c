//! The GPT-2 family: learned positions, pre-norm blocks, GELU, tied head; biases and query-key norm as options.
//! Its tensors are listed in `lockstep_inventory::gpt2`.
//!
//! Gates: 0 guards the embeddings, 1 ‥ layers the blocks, layers + 1 the final norm and the (tied) head.

use std::rc::Rc;

use lockstep_inventory::TensorSpec;
use lockstep_inventory::gpt2::{Shape, Tensors};
use lockstep_kernels::attention::Shape as Heads;
use tch::Tensor;

use crate::error::TrainerError;
use crate::model::arithmetic::{add_norm, attention, embed, gelu, head_loss, linear, logits};
use crate::model::weights::Weights;
use crate::model::{Batch, Gate, Model, OpenGate};

/// A GPT-2.
pub struct Gpt2 {
    shape: Shape,
    tensors: Tensors,
}

impl Gpt2 {
    /// A GPT-2 of this shape.
    pub fn new(shape: Shape) -> Gpt2 {
        Gpt2 {
            shape,
            tensors: Tensors::new(shape),
        }
    }

    /// The normed end of the residual stream, `[rows·columns, width]`.
    fn trunk(
        &self,
        weights: &Weights,
        ids: &Rc<[i64]>,
        rows: usize,
        columns: usize,
        gate: &mut dyn Gate,
    ) -> Result<Tensor, TrainerError> {
        let heads = Heads {
            batch: rows,
            time: columns,
            heads: self.shape.heads as usize,
            head_width: (self.shape.width / self.shape.heads) as usize,
        };
        gate.open(0)?;
        let mut stream = embed(weights, self.tensors.table, self.tensors.positions, ids, columns)?; // [N, width]
        let mut branch: Option<Tensor> = None;
        for (layer, block) in self.tensors.blocks.iter().enumerate() {
            gate.open(layer + 1)?;
            let (x, y) = add_norm(weights, &stream, branch.as_ref(), block.norm1)?;
            let qkv = linear(weights, &y, block.qkv.0, block.qkv.1)?; // [N, 3·width]
            let mixed = attention(weights, &qkv, heads, self.shape.qk_norm)?; // [N, width]
            let projected = linear(weights, &mixed, block.out.0, block.out.1)?;
            let (x, y) = add_norm(weights, &x, Some(&projected), block.norm2)?;
            let up = linear(weights, &y, block.up.0, block.up.1)?; // [N, 4·width]
            let active = gelu(weights, &up)?;
            branch = Some(linear(weights, &active, block.down.0, block.down.1)?);
            stream = x;
        }
        gate.open(self.tensors.blocks.len() + 1)?;
        Ok(add_norm(weights, &stream, branch.as_ref(), self.tensors.last)?.1)
    }
}

impl Model for Gpt2 {
    fn inventory(&self) -> &[TensorSpec] {
        &self.tensors.inventory
    }

    fn layers(&self) -> usize {
        self.tensors.blocks.len() + 2
    }

    fn loss(&self, weights: &Weights, batch: Batch<'_>, gate: &mut dyn Gate) -> Result<Tensor, TrainerError> {
        let ids: Rc<[i64]> = batch.inputs.into();
        let y = self.trunk(weights, &ids, batch.rows, batch.columns, gate)?;
        head_loss(weights, &y, self.tensors.table, batch.targets)
    }

    fn next_token_logits(&self, weights: &Weights, tokens: &[i64]) -> Result<Vec<f32>, TrainerError> {
        weights.without_recording(|| {
            let ids: Rc<[i64]> = tokens.into();
            let y = self.trunk(weights, &ids, 1, tokens.len(), &mut OpenGate)?;
            let last = y.f_narrow(0, tokens.len() as i64 - 1, 1)?;
            logits(weights, &last, self.tensors.table)
        })
    }
}

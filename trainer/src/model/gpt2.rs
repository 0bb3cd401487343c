//! The GPT-2 family: learned positions, pre-norm blocks, GELU, tied head; biases and query-key norm as options.
//!
//! Initialisation as published (Radford et al. 2019 and its code): normal(0.02) for matrices and token embedding,
//! normal(0.01) for positions, residual projections divided by √(2·layers), gains 1, biases 0.
//! Gates: 0 guards the embeddings, 1 ‥ layers the blocks, layers + 1 the final norm and the (tied) head.

use std::rc::Rc;

use lockstep_config::RunConfig;
use lockstep_kernels::attention::Shape as Heads;
use tch::Tensor;

use crate::error::TrainerError;
use crate::inventory::{Initial, Role, TensorSpec};
use crate::model::functions::{Norm, add_norm, attention, embed, gelu, head_loss, linear, logits, to_float32};
use crate::model::weights::Weights;
use crate::model::{Batch, Gate, Model, OpenGate};

/// The shape of a GPT-2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub layers: u32,
    /// Heads of each.
    pub heads: u32,
    /// Width of the residual stream; heads divide it.
    pub width: u32,
    /// Tokens of the vocabulary.
    pub vocabulary: u32,
    /// Longest sequence.
    pub context: u32,
    /// Whether linear layers and norms have biases.
    pub bias: bool,
    /// Whether queries and keys are divided by their root mean square.
    pub qk_norm: bool,
}

impl Shape {
    /// The shape that a config asks for.
    pub fn from_config(config: &RunConfig, vocabulary: u32) -> Shape {
        let model = &config.model;
        Shape {
            layers: model.layers,
            heads: model.heads,
            width: model.width,
            vocabulary: model.vocab.unwrap_or(vocabulary),
            context: config.context(),
            bias: model.bias,
            qk_norm: model.qk_norm,
        }
    }
}

/// Indices of a block's tensors.
struct Block {
    norm1: Norm,
    qkv: (usize, Option<usize>),
    out: (usize, Option<usize>),
    norm2: Norm,
    up: (usize, Option<usize>),
    down: (usize, Option<usize>),
}

/// A GPT-2.
pub struct Gpt2 {
    shape: Shape,
    inventory: Vec<TensorSpec>,
    table: usize,
    positions: usize,
    blocks: Vec<Block>,
    last: Norm,
}

/// Collects the inventory in forward order.
struct Builder {
    inventory: Vec<TensorSpec>,
    layer: usize,
    bias: bool,
}

impl Builder {
    fn tensor(&mut self, name: String, shape: &[i64], role: Role, initial: Initial) -> usize {
        self.inventory.push(TensorSpec {
            name,
            shape: shape.to_vec(),
            layer: self.layer,
            role,
            initial,
        });
        self.inventory.len() - 1
    }

    fn bias(&mut self, name: &str, width: i64) -> Option<usize> {
        self.bias
            .then(|| self.tensor(format!("{name}.bias"), &[width], Role::Bias, Initial::Zeros))
    }

    fn norm(&mut self, name: &str, width: i64) -> Norm {
        let gain = self.tensor(format!("{name}.weight"), &[width], Role::Norm, Initial::Ones);
        Norm {
            gain,
            bias: self.bias(name, width),
        }
    }

    fn linear(&mut self, name: &str, rows: i64, columns: i64, deviation: f64) -> (usize, Option<usize>) {
        let initial = Initial::Normal(deviation);
        let weight = self.tensor(format!("{name}.weight"), &[rows, columns], Role::Hidden, initial);
        (weight, self.bias(name, rows))
    }
}

impl Gpt2 {
    /// A GPT-2 of this shape.
    pub fn new(shape: Shape) -> Gpt2 {
        let width = i64::from(shape.width);
        let mut build = Builder {
            inventory: Vec::new(),
            layer: 0,
            bias: shape.bias,
        };
        let table = [i64::from(shape.vocabulary), width];
        let table = build.tensor("wte.weight".into(), &table, Role::Embedding, Initial::Normal(0.02));
        let places = [i64::from(shape.context), width];
        let positions = build.tensor("wpe.weight".into(), &places, Role::Embedding, Initial::Normal(0.01));
        let projection = 0.02 / (2.0 * f64::from(shape.layers)).sqrt();
        let mut blocks = Vec::new();
        for layer in 0..shape.layers as usize {
            build.layer = layer + 1;
            let name = |part: &str| format!("blocks.{layer}.{part}");
            blocks.push(Block {
                norm1: build.norm(&name("norm1"), width),
                qkv: build.linear(&name("qkv"), 3 * width, width, 0.02),
                out: build.linear(&name("out"), width, width, projection),
                norm2: build.norm(&name("norm2"), width),
                up: build.linear(&name("up"), 4 * width, width, 0.02),
                down: build.linear(&name("down"), width, 4 * width, projection),
            });
        }
        build.layer = shape.layers as usize + 1;
        let last = build.norm("norm", width);
        Gpt2 {
            shape,
            inventory: build.inventory,
            table,
            positions,
            blocks,
            last,
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
        let mut stream = embed(weights, self.table, self.positions, ids, columns)?; // [N, width]
        let mut branch: Option<Tensor> = None;
        for (layer, block) in self.blocks.iter().enumerate() {
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
        gate.open(self.blocks.len() + 1)?;
        Ok(add_norm(weights, &stream, branch.as_ref(), self.last)?.1)
    }
}

impl Model for Gpt2 {
    fn inventory(&self) -> &[TensorSpec] {
        &self.inventory
    }

    fn layers(&self) -> usize {
        self.blocks.len() + 2
    }

    fn loss(&self, weights: &Weights, batch: Batch<'_>, gate: &mut dyn Gate) -> Result<Tensor, TrainerError> {
        let ids: Rc<[i64]> = batch.inputs.into();
        let y = self.trunk(weights, &ids, batch.rows, batch.columns, gate)?;
        head_loss(weights, &y, self.table, batch.targets)
    }

    fn next_token_logits(&self, weights: &Weights, tokens: &[i64]) -> Result<Vec<f32>, TrainerError> {
        weights.without_recording(|| {
            let ids: Rc<[i64]> = tokens.into();
            let y = self.trunk(weights, &ids, 1, tokens.len(), &mut OpenGate)?;
            let last = y.f_narrow(0, tokens.len() as i64 - 1, 1)?;
            Ok(to_float32(&logits(weights, &last, self.table)?.f_contiguous()?))
        })
    }
}

//! The tensors of the GPT-2 family, in forward order.
//!
//! Initialisation as published (Radford et al. 2019 and its code): normal(0.02) for matrices and token embedding,
//! normal(0.01) for positions, residual projections divided by √(2·layers), gains 1, biases 0.
//! Gates: 0 guards the embeddings, 1 ‥ layers the blocks, layers + 1 the final norm and the (tied) head.

use lockstep_config::RunConfig;

use crate::tensors::{Initial, Norm, Role, TensorSpec};

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

/// Indices of a linear layer's weight and bias.
pub type Linear = (usize, Option<usize>);

/// Indices of a block's tensors.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Before the attention.
    pub norm1: Norm,
    /// Queries, keys and values, `[3·width, width]`.
    pub qkv: Linear,
    /// The attention's output.
    pub out: Linear,
    /// Before the feed-forward part.
    pub norm2: Norm,
    /// `[4·width, width]`.
    pub up: Linear,
    /// `[width, 4·width]`.
    pub down: Linear,
}

/// The tensors of a GPT-2.
#[derive(Clone, Debug)]
pub struct Tensors {
    /// All of them, in forward order.
    pub inventory: Vec<TensorSpec>,
    /// Index of the token embedding, which is the head too.
    pub table: usize,
    /// Index of the position embedding.
    pub positions: usize,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// The last norm.
    pub last: Norm,
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

    fn linear(&mut self, name: &str, rows: i64, columns: i64, deviation: f64) -> Linear {
        let initial = Initial::Normal(deviation);
        let weight = self.tensor(format!("{name}.weight"), &[rows, columns], Role::Hidden, initial);
        (weight, self.bias(name, rows))
    }
}

impl Tensors {
    /// The tensors of a GPT-2 of this shape.
    pub fn new(shape: Shape) -> Tensors {
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
        Tensors {
            inventory: build.inventory,
            table,
            positions,
            blocks,
            last,
        }
    }
}

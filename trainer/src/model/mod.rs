//! Models: an inventory of named tensors, and a forward pass that records its own backward.
//!
//! - this file: the [`Model`] trait, tensor specifications, the [`Gate`]
//! - [`weights`]: leaves (working copies) and gradient slots that a forward pass uses
//! - [`functions`]: embedding, norm, linear, attention, GELU and head as custom autograd functions over our kernels
//! - [`gpt2`]: the GPT-2 family
//! - [`initial`]: initial values from H(seed, tensor name)
//!
//! Data flows: micro-batch → [`Model::loss`] (gate by gate) → a scalar: Σ loss over counted tokens → backward → gradient
//! sums in the slots. Nothing is divided here; the owner divides once by the step's global token count.

pub mod functions;
pub mod gpt2;
pub mod initial;
pub mod weights;

use lockstep_config::RunConfig;
use tch::Tensor;

use crate::error::TrainerError;
use weights::Weights;

/// What a tensor is to the optimiser and to the precision rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A hidden matrix: Muon treats it.
    Hidden,
    /// A token or position embedding (and the tied head).
    Embedding,
    /// A norm's gain.
    Norm,
    /// A bias.
    Bias,
}

impl Role {
    /// Whether its working copy is bf16 under bf16 precision; gains and biases stay float32.
    pub fn is_narrow(self) -> bool {
        matches!(self, Role::Hidden | Role::Embedding)
    }

    /// Whether weight decay applies: to matrices and embeddings, as usual.
    pub fn is_decayed(self) -> bool {
        self.is_narrow()
    }

    /// The word in `inspect`.
    pub fn word(self) -> &'static str {
        match self {
            Role::Hidden => "hidden",
            Role::Embedding => "embedding",
            Role::Norm => "norm",
            Role::Bias => "bias",
        }
    }
}

/// How a tensor starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// Zeros.
    Zeros,
    /// Ones.
    Ones,
    /// Normal with this standard deviation.
    Normal(f64),
}

/// A named parameter. Tied weights are one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Its name, also in the final weights.
    pub name: String,
    /// Its shape; matrices are `[out, in]`.
    pub shape: Vec<i64>,
    /// The gate that guards it.
    pub layer: usize,
    /// What it is.
    pub role: Role,
    /// How it starts.
    pub initial: Initial,
}

impl TensorSpec {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }
}

/// What a model calls before it touches a layer's parameters: the next forward waits there for the layer's gather.
pub trait Gate {
    /// Returns when the working copies of `layer` are those of the step.
    fn open(&mut self, layer: usize) -> Result<(), TrainerError>;
}

/// A gate that is always open: for generation and tests.
pub struct OpenGate;

impl Gate for OpenGate {
    fn open(&mut self, _layer: usize) -> Result<(), TrainerError> {
        Ok(())
    }
}

/// Token ids of a micro-batch, row-major `[rows, columns]`, with the next tokens as targets.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Sequences.
    pub rows: usize,
    /// Tokens a sequence.
    pub columns: usize,
    /// Inputs.
    pub inputs: &'a [i64],
    /// Targets; [`lockstep_data::IGNORE`] where nothing is predicted.
    pub targets: &'a [i64],
}

/// A model: parameters by name, and a loss.
pub trait Model {
    /// The parameters, in forward order.
    fn inventory(&self) -> &[TensorSpec];

    /// The number of gates; layers are opened in order from 0.
    fn layers(&self) -> usize;

    /// Σ over counted targets of −log p(target), a float64 scalar; with a graph when grad mode is on. Calls `gate` before
    /// it touches each layer's parameters.
    fn loss(&self, weights: &Weights, batch: Batch<'_>, gate: &mut dyn Gate) -> Result<Tensor, TrainerError>;

    /// Float32 logits of the last position of one sequence, `[vocabulary]`. No graph.
    fn next_token_logits(&self, weights: &Weights, tokens: &[i64]) -> Result<Vec<f32>, TrainerError>;

    /// Floating-point operations of one token's forward and backward, for the throughput shown.
    fn flops_per_token(&self, sequence_length: usize) -> f64;
}

/// The model that a config names, for a vocabulary.
pub fn from_config(config: &RunConfig, vocabulary: u32) -> Box<dyn Model> {
    match config.model.kind {
        lockstep_config::ModelKind::Gpt2 => Box::new(gpt2::Gpt2::new(gpt2::Shape::from_config(config, vocabulary))),
    }
}

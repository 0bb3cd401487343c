//! Models: an inventory of named tensors, and a forward pass that records its own backward.
//!
//! - this file: the [`Model`] trait and the [`Gate`]
//! - [`weights`]: leaves (working copies) and gradient slots that a forward pass uses
//! - [`arithmetic`]: the functions that a model is made of, by one of two sets:
//!   [`functions`], custom autograd functions over our kernels, for the host; [`tensors`], libtorch's own, for any device
//! - [`gpt2`]: the GPT-2 family
//! - [`choice`]: the model that a config names
//! - [`initial`]: initial values from H(seed, tensor name)
//! - [`lane_losses`]: the losses of lanes, added where they are made
//!
//! Data flows: micro-batch → [`Model::loss`] (gate by gate) → a scalar: Σ loss over counted tokens → backward → gradient
//! sums in the slots. Nothing is divided here; the owner divides once by the step's global token count.

pub mod arithmetic;
pub mod choice;
pub mod functions;
pub mod gpt2;
pub mod initial;
pub mod lane_losses;
pub mod tensors;
pub mod weights;

use tch::Tensor;

use crate::error::TrainerError;
use lockstep_inventory::TensorSpec;
use weights::Weights;

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
}

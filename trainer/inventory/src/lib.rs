//! What a model consists of and what the optimiser does with each part, without libtorch: the launcher checks with it
//! before anything starts, the trainer builds with it.
//!
//! - [`tensors`]: the named tensors of a model, what they are, how they start
//! - [`gpt2`]: the tensors of the GPT-2 family
//! - [`state`]: what of each tensor outlives a step
//! - [`treatment`]: a config's rules laid over an inventory: hidden matrix (whole or in parts) or other tensor, learning
//!   rate scale, weight decay, each with its reason
//!
//! Data flows: config → [`gpt2::Shape`] → inventory → treatments → (in the trainer) layout, owners, optimiser state.

pub mod gpt2;
pub mod state;
pub mod tensors;
pub mod treatment;

use lockstep_config::{ModelKind, RunConfig};

pub use tensors::{Initial, Norm, Role, TensorSpec};
pub use treatment::{Treatment, TreatmentError, Use, treatments};

/// The inventory of the model that a config names, for a vocabulary.
pub fn inventory_of(config: &RunConfig, vocabulary: u32) -> Vec<TensorSpec> {
    match config.model.kind {
        ModelKind::Gpt2 => gpt2::Tensors::new(gpt2::Shape::from_config(config, vocabulary)).inventory,
    }
}

/// The treatments of the tensors of the model that a config names.
///
/// # Errors
/// A rule that matches nothing or cannot be followed.
pub fn treatments_of(config: &RunConfig, vocabulary: u32) -> Result<Vec<Treatment>, TreatmentError> {
    let head_width = i64::from(config.model.width / config.model.heads);
    treatments(&config.optimizer, &inventory_of(config, vocabulary), Some(head_width))
}

//! Which model a config names.

use lockstep_config::{ModelKind, RunConfig};
use lockstep_inventory::gpt2::Shape;

use crate::model::Model;
use crate::model::gpt2::Gpt2;

/// The model that a config names, for a vocabulary.
pub fn from_config(config: &RunConfig, vocabulary: u32) -> Box<dyn Model> {
    match config.model.kind {
        ModelKind::Gpt2 => Box::new(Gpt2::new(Shape::from_config(config, vocabulary))),
    }
}

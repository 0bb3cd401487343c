//! What this rank owns, frozen after a step, and loaded again, in the same world or another one.

use crate::error::TrainerError;
use crate::snapshot::part::{Builder, Whole};
use crate::step::Engine;

impl Engine {
    /// Everything that this rank owns, as its part of the snapshot of `step`, which was made last. Copies it; on a device
    /// that waits for the device.
    pub fn freeze(&self, step: u64) -> Result<Vec<u8>, TrainerError> {
        let mut builder = Builder::new(step, self.steps, &self.loss_model);
        let (inventory, places) = (self.model.inventory(), &self.layout.places);
        self.shard.show(&mut |piece, array, values| {
            let start = start_of(
                piece.elements.start - places[piece.tensor].gradient.start,
                values.len(),
                piece,
            );
            builder.add(&inventory[piece.tensor].name, array, start, values);
        })?;
        builder.finish()
    }

    /// Takes the state of a snapshot: what this rank owns from its parts, the working copies of all from their owners. A
    /// collective: every rank calls it, before its first step.
    pub fn load(&mut self, snapshot: &Whole) -> Result<(), TrainerError> {
        (self.steps, self.loss_model) = snapshot.state();
        let (inventory, places) = (self.model.inventory(), &self.layout.places);
        let mut failed = None;
        self.shard.fill(self.steps, &mut |piece, array, values| {
            let start = start_of(
                piece.elements.start - places[piece.tensor].gradient.start,
                values.len(),
                piece,
            );
            if let Err(error) = snapshot.fill(&inventory[piece.tensor].name, array, start, values) {
                failed.get_or_insert(error);
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        self.gates.close_all(&mut self.communication)
    }
}

/// Where an array of a piece begins: with the piece, if it has a value for each of its elements; else it is of the whole
/// tensor.
fn start_of(first_element: usize, values: usize, piece: &crate::sharding::owners::Piece) -> usize {
    match values == piece.elements.len() {
        true => first_element,
        false => 0,
    }
}

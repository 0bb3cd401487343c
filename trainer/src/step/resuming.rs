//! What this rank owns, frozen after a step, and loaded again, in the same world or another one.

use lockstep_checkpoint::Part;

use crate::error::TrainerError;
use crate::snapshot::checkpoint::{self, Frozen};
use crate::snapshot::part::Builder;
use crate::snapshot::{RunState, Saved};
use crate::step::Engine;

impl Engine {
    /// What every step needs besides the tensors.
    fn state(&self) -> RunState {
        RunState {
            optimizer_steps: self.steps,
            loss_model: self.loss_model,
            losses: self.losses_so_far,
        }
    }

    /// Everything that this rank owns, as its part of the snapshot of `step`, which was made last. Copies it; on a device
    /// that waits for the device.
    ///
    /// # Errors
    /// [`TrainerError::Drift`]: something of it is not what was written.
    pub fn freeze(&self, step: u64) -> Result<Vec<u8>, TrainerError> {
        let mut builder = Builder::new(step, &self.state(), self.shard.state_bytes());
        let (inventory, places) = (self.model.inventory(), &self.layout.places);
        self.shard.show(&mut |piece, array, values| {
            let start = start_of(
                piece.elements.start - places[piece.tensor].gradient.start,
                values.len(),
                piece,
            );
            builder.add(&inventory[piece.tensor].name, array, start, values);
        })?;
        // After the copy: what had changed before it is found.
        self.check_owned(step)?;
        builder.finish()
    }

    /// The same for a checkpoint. Copies it; on a device that waits for the device.
    pub fn freeze_for_store(&self, step: u64) -> Result<Frozen, TrainerError> {
        let (places, mut part, mut failed) = (&self.layout.places, Part::new(), None);
        self.shard.show(&mut |piece, array, values| {
            let first = piece.elements.start - places[piece.tensor].gradient.start;
            let start = start_of(first, values.len(), piece);
            let elements = start..start + values.len();
            let tensor = &self.checkpoint_tensors[piece.tensor];
            if let Err(error) = part.add(tensor, array, elements, values.to_vec()) {
                failed.get_or_insert(error);
            }
        })?;
        self.check_owned(step)?;
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(Frozen {
                step,
                part,
                words: checkpoint::words(&self.state()),
            }),
        }
    }

    /// Takes the state of a snapshot or a checkpoint: what this rank owns from its parts, the working copies of all from their owners. A
    /// collective: every rank calls it, before its first step.
    pub fn load(&mut self, saved: &dyn Saved) -> Result<(), TrainerError> {
        let state = saved.state()?;
        (self.steps, self.loss_model, self.losses_so_far) = (state.optimizer_steps, state.loss_model, state.losses);
        self.known_hash = None;
        self.update_slots.forget_hashes();
        let (inventory, places) = (self.model.inventory(), &self.layout.places);
        let mut failed = None;
        self.shard.fill(self.steps, &mut |piece, array, values| {
            let start = start_of(
                piece.elements.start - places[piece.tensor].gradient.start,
                values.len(),
                piece,
            );
            if failed.is_some() {
                return;
            }
            if let Err(error) = saved.fill(&inventory[piece.tensor].name, array, start, values) {
                failed.get_or_insert(error);
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        if self.drift_every > 0 {
            self.shard.note_written()?;
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

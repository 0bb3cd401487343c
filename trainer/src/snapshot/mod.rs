//! Snapshots and checkpoints. A snapshot: what all ranks own after a step, kept in the memory of owners and buddies, so that no failure of one rank
//! loses more than the steps since.
//!
//! - [`part`]: one rank's part as bytes, which any rank of any world can read
//! - [`checkpoint`]: the same on a disk or in an object store
//! - [`keeping`]: the thread that hashes and keeps a rank's own part and fetches that of its ward
//!
//! Data flows: engine frozen after a step → part → keeper → buddy → (a rank is lost) → the ranks of the next generation
//! fetch the parts that hold what they own now → engine loaded.

use lockstep_optim::decision::ModelState;

use crate::error::TrainerError;
use crate::step::skipping::LossRecord;

pub mod checkpoint;
pub mod keeping;
pub mod part;

/// What every step needs besides the tensors; equal on every rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RunState {
    /// Steps that the optimiser has made.
    pub optimizer_steps: u64,
    /// The model of the loss.
    pub loss_model: ModelState,
    /// What is known of the losses.
    pub losses: LossRecord,
}

/// A state of the run that any world can load.
pub trait Saved {
    /// What it holds besides the tensors.
    ///
    /// # Errors
    /// It was written by another build.
    fn state(&self) -> Result<RunState, TrainerError>;

    /// Fills `values` with neighbouring elements of an array, from element `start` of the tensor's (or the array's) first on.
    ///
    /// # Errors
    /// It does not hold them, or they are damaged, or whoever has them does not answer.
    fn fill(&self, tensor: &str, array: &str, start: usize, values: &mut [f32]) -> Result<(), TrainerError>;
}

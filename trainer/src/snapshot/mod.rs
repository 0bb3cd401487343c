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

pub mod checkpoint;
pub mod keeping;
pub mod part;

/// A state of the run that any world can load.
pub trait Saved {
    /// Steps that the optimiser had made, and the model of the loss.
    ///
    /// # Errors
    /// It was written by another build.
    fn state(&self) -> Result<(u64, ModelState), TrainerError>;

    /// Fills `values` with neighbouring elements of an array, from element `start` of the tensor's (or the array's) first on.
    ///
    /// # Errors
    /// It does not hold them, or they are damaged, or whoever has them does not answer.
    fn fill(&self, tensor: &str, array: &str, start: usize, values: &mut [f32]) -> Result<(), TrainerError>;
}

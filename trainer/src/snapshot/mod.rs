//! Snapshots: what all ranks own after a step, kept in the memory of owners and buddies, so that no failure of one rank
//! loses more than the steps since.
//!
//! - [`part`]: one rank's part as bytes, which any rank of any world can read
//! - [`keeping`]: the thread that hashes and keeps a rank's own part and fetches that of its ward
//!
//! Data flows: engine frozen after a step → part → keeper → buddy → (a rank is lost) → the ranks of the next generation
//! fetch the parts that hold what they own now → engine loaded.

pub mod keeping;
pub mod part;

//! Where every number of the model lies, and who owns it: pure functions of shapes and world.
//!
//! - [`layout`]: tensors in backward order in flat buffers, blocks, buckets
//! - [`owners`]: which rank owns which hidden matrix and which blocks
//! - [`program`]: in which order a rank runs its lanes and adds their sums
//!
//! Data flows: inventory → [`layout::Layout`] → [`owners::OwnerMap`] of a world; lanes → [`program::LaneProgram`] of a step.

pub mod layout;
pub mod owners;
pub mod program;

//! The owners' part over libtorch tensors of any device: what [`crate::piece`] does over slices.
//!
//! - [`piece`]: a tensor at its owner, as [`crate::piece`]; `hidden` and `other` are its two sorts
//! - `application`: the step along a direction
//! - [`results`]: what they leave for the slots, on the device
//! - [`sums`]: sums over blocks in a fixed order, and block hashes
//! - [`table`]: what one exchange needs of them, read once
//!
//! Data flows as over slices: gradient sums and the scale that makes them the mean → [`piece::TensorPiece::prepare`] →
//! results into a [`table::Table`] → read, exchanged, decided → [`piece::TensorPiece::apply`]. Nothing here waits for the
//! device but the reading of a table. Every line runs on CPU tensors too, and is tested there; only the device differs.
//!
//! Elements of a result do not depend on how tensors are split between owners: sums are over whole blocks, and all else
//! is element by element. (On the CPU with one thread: libtorch cuts a tensor for several threads where it likes, and
//! the ends of the pieces are rounded in another way.)

mod application;
mod hidden;
mod other;
pub mod piece;
pub mod results;
pub mod sums;
pub mod table;

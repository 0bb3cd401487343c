//! The owners' part over libtorch tensors of any device: what [`crate::piece`] does over slices.
//!
//! - [`sums`]: sums over blocks in a fixed order, and block hashes
//! - [`table`]: what one exchange needs of them, read once
//!
//! Every line here runs on CPU tensors too, and is tested there; only the device differs.

pub mod sums;
pub mod table;

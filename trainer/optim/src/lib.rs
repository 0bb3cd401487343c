//! The optimisers of the owners: what a rank does with the tensors it owns. No I/O, no collectives.
//!
//! - [`products`]: matrix products in bf16 or float32, by the library path that the run fixed
//! - [`polar`]: the polar factor by Polar Express
//! - [`hidden`]: a hidden matrix at its owner under Muon: momentum → polar factor (kept) → application
//! - [`other`]: a run of blocks of another tensor at its owner under AdamW
//!
//! Data flows: the gradient *sum* of a step comes in with the scale that makes it the mean; states change; the float32
//! master and the working copy are written; block hashes and Σ update² go out, to be put into slots.

mod error;
pub mod hidden;
pub mod other;
pub mod polar;
pub mod products;

pub use error::OptimError;

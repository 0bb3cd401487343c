//! The optimisers of the owners: what a rank does with the tensors it owns. No I/O, no collectives.
//!
//! - [`products`]: matrix products in bf16 or float32, by the library path that the run fixed
//! - [`polar`]: the polar factor by several iterations and by the SVD
//! - [`settings`]: a config's optimiser as a run uses it
//! - [`hidden`]: a hidden matrix at its owner: momentum → polar factor (kept) → application
//! - [`other`]: a run of blocks of another tensor at its owner: moments → application
//! - [`piece`]: either of the two, as owners and [`replay`] handle them
//! - [`decision`]: from sums over everything to the step of each tensor: product norms, model-based momentum. Pure
//! - [`results`]: what they leave for the slots
//! - [`tensors`]: the same pieces over tensors of any device
//! - [`replay`]: recorded gradients through the same code on one process
//!
//! Data flows: the gradient *sum* of a step comes in with the scale that makes it the mean → [`piece::Piece::prepare`]
//! (states change; inner products and dual norms come out, to be put into slots) → [`decision::decide`] → `apply` (the
//! float32 master and the working copy are written; block hashes and Σ update² come out).
//!
//! Source of the family: "An Exploration of Non-Euclidean Gradient Descent: Muon and its Many Variants"
//! (arXiv 2510.09827); of the model-based step: MoMo (arXiv 2305.07583).

pub mod decision;
mod error;
pub mod hidden;
pub mod other;
pub mod piece;
pub mod polar;
pub mod products;
pub mod replay;
pub mod results;
pub mod settings;
pub mod state;
pub mod tensors;

pub use error::OptimError;

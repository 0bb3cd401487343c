//! Host kernels over plain slices, each with one fixed order of operations.
//!
//! What lives here: the passes that libtorch does not have, does with other bits for another alignment, or does in
//! several passes over memory. Slices of activations and parameters come in, results are written in place, scalars come
//! back. Every kernel is compiled for several instruction sets and picks one at run time; since sums run over
//! [`LANES`] explicit partial sums and every contraction is an explicit `mul_add`, the bits do not depend on which.
//!
//! - [`real`]: the element types (float32, bf16), conversions, exp
//! - [`sums`]: float64 sums of a block and its hash
//! - [`norm`]: layer norm fused with the residual addition
//! - [`attention`]: heads, causal softmax, query-key norm
//! - [`pointwise`]: GELU, bias, residual
//! - [`loss`]: cross-entropy with its gradient in place
//! - [`embedding`]: look-up, and scatter-add in token order
//! - [`update`]: moments of the gradient, directions made of them, the step along a direction

pub mod attention;
pub mod embedding;
pub mod loss;
pub mod norm;
pub mod pointwise;
pub mod real;
pub mod sums;
pub mod update;

/// How many partial sums every reduction keeps: element i goes to partial i mod LANES, and the partials are added as a
/// balanced tree.
pub const LANES: usize = 16;

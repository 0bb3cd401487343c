//! What the passes of a step leave for the slots, as tensors on the device: see [`crate::results`] for what they mean.

use tch::Tensor;

/// What preparing a step leaves.
#[derive(Debug, Default)]
pub struct Prepared {
    /// ⟨M, U⟩ of each part of a hidden tensor, float64.
    pub duals: Option<Tensor>,
    /// Σ m·d of each block of an other tensor, float64, where steps depend on it.
    pub block_duals: Option<Tensor>,
    /// ⟨g, w⟩ of each block, float64, with Momo.
    pub gradient_dots: Option<Tensor>,
    /// ⟨m, w⟩ of each block, float64, with Momo.
    pub momentum_dots: Option<Tensor>,
    /// The orthogonality error of the part that was asked for, a float64 scalar.
    pub orthogonality: Option<Tensor>,
}

/// What an application leaves of each block.
#[derive(Debug)]
pub struct Applied {
    /// The new master's hash: int64 with its bits.
    pub hashes: Tensor,
    /// Σ (new − old)², float64.
    pub square_sums: Tensor,
}

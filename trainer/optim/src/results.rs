//! What the passes of a step leave for the slots: sums of what was prepared, and what was applied.

/// Sums over one block, in float64 and a fixed order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BlockSums {
    /// Σ m·d over an other tensor's block, d its direction; zero where the step does not depend on it.
    pub dual: f64,
    /// ⟨g, w⟩ with the working copy w at which g was taken; zero without Momo.
    pub gradient_dot: f64,
    /// ⟨m, w⟩ with the master w; zero without Momo.
    pub momentum_dot: f64,
}

/// What preparing a step leaves for the slots.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// ⟨M, U⟩ of each part of a hidden tensor, U the factor that will be applied: its nuclear norm by that factor.
    pub duals: Vec<f64>,
    /// Sums of each block.
    pub blocks: Vec<BlockSums>,
    /// The orthogonality error of the part that was asked for.
    pub orthogonality: Option<f64>,
}

/// What an application leaves for the slots of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Applied {
    /// Σ wordᵢ·(2i+1) mod 2⁶⁴ over the new master's bits.
    pub hash: u64,
    /// Σ (new − old)² in float64.
    pub square_sum: f64,
}

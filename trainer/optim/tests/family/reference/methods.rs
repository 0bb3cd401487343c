//! NorMuon, AdamW and SGD, written out: the methods beside the family.

use tch::{Kind, Tensor};

use super::average;
use super::norms::polar;

/// NorMuon's state of a matrix (arXiv 2510.05491 and its public code).
pub struct NorMuon {
    m: Tensor,
    /// V, `[rows, 1]`.
    rows: Tensor,
}

impl NorMuon {
    pub fn new(like: &Tensor) -> NorMuon {
        NorMuon {
            m: like.zeros_like(),
            rows: like.sum_dim_intlist([1i64].as_slice(), true, Kind::Double).zeros_like(),
        }
    }

    /// The direction of a step: the look-ahead's polar factor, its rows normalised, then its norm put back.
    pub fn direction(&mut self, g: &Tensor, momentum: f64, second: f64) -> Tensor {
        self.m = average(Some(&self.m), momentum, g);
        let o = polar(&(g * (1.0 - momentum) + &self.m * momentum));
        let norm = o.square().sum(Kind::Double).sqrt();
        // V ← β₂·V + (1 − β₂)·(mean of O² over columns), from 0, without correction.
        let mean = o.square().mean_dim([1i64].as_slice(), true, Kind::Double);
        self.rows = average(Some(&self.rows), second, &mean);
        let o = o / (self.rows.sqrt() + 1e-10);
        let after = o.square().sum(Kind::Double).sqrt();
        o * (norm / after)
    }
}

/// AdamW's state of a tensor (Loshchilov, Hutter, arXiv 1711.05101).
pub struct AdamW {
    m: Tensor,
    v: Tensor,
    steps: i32,
}

impl AdamW {
    pub fn new(like: &Tensor) -> AdamW {
        AdamW {
            m: like.zeros_like(),
            v: like.zeros_like(),
            steps: 0,
        }
    }

    /// m̂ ÷ (√v̂ + ε), with m̂ = m ÷ (1 − β₁ᵗ), v̂ = v ÷ (1 − β₂ᵗ).
    pub fn direction(&mut self, g: &Tensor, betas: [f64; 2], epsilon: f64) -> Tensor {
        self.steps += 1;
        self.m = average(Some(&self.m), betas[0], g);
        self.v = average(Some(&self.v), betas[1], &g.square());
        let m = &self.m / (1.0 - betas[0].powi(self.steps));
        let v = &self.v / (1.0 - betas[1].powi(self.steps));
        m / (v.sqrt() + epsilon)
    }
}

/// SGD's momentum of a tensor (arXiv 2508.03105 calls the two forms SHB and NSHB).
pub struct Sgd {
    m: Tensor,
    pub normalized: bool,
    pub nesterov: bool,
}

impl Sgd {
    pub fn new(like: &Tensor, normalized: bool, nesterov: bool) -> Sgd {
        Sgd {
            m: like.zeros_like(),
            normalized,
            nesterov,
        }
    }

    /// m ← β·m + g, or β·m + (1 − β)·g; looking ahead, the same formula once more.
    pub fn direction(&mut self, g: &Tensor, beta: f64) -> Tensor {
        let g = match self.normalized {
            true => g * (1.0 - beta),
            false => g.copy(),
        };
        self.m = &self.m * beta + &g;
        match self.nesterov {
            true => &self.m * beta + g,
            false => self.m.copy(),
        }
    }
}

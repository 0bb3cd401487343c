//! A run of neighbouring blocks of one other tensor at its owner, under AdamW.

use std::ops::Range;

use lockstep_kernels::real::Real;
use lockstep_kernels::sums::block_hash;
use lockstep_kernels::update::{AdamW as Numbers, Applied, adamw};

/// The keys of AdamW.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// β₁ and β₂.
    pub betas: [f64; 2],
    /// Added to √v̂.
    pub epsilon: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
}

/// Blocks of one tensor that lie one after the other, with their state: float32 master, first and second moment.
pub struct OtherRun {
    master: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    block: usize,
    steps: u32,
}

impl OtherRun {
    /// A run whose initial values are `master`, in blocks of `block` elements (the last one may be shorter).
    pub fn new(master: &[f32], block: usize) -> OtherRun {
        OtherRun {
            master: master.to_vec(),
            first: vec![0.0; master.len()],
            second: vec![0.0; master.len()],
            block,
            steps: 0,
        }
    }

    /// The float32 master.
    pub fn master(&self) -> &[f32] {
        &self.master
    }

    /// The hash of each block.
    pub fn hashes(&self) -> Vec<u64> {
        self.master.chunks(self.block).map(block_hash).collect()
    }

    /// One step from the gradient sum and the scale that makes it the mean; decays if `decayed`. Writes the working copy,
    /// returns what each block leaves.
    pub fn step<W: Real>(
        &mut self,
        gradient: &[f32],
        scale: f32,
        learning_rate: f64,
        adam: &AdamW,
        decayed: bool,
        working: &mut [W],
    ) -> Vec<Applied> {
        self.steps += 1;
        let t = self.steps as i32;
        let decay = if decayed {
            learning_rate * adam.weight_decay
        } else {
            0.0
        };
        let numbers = Numbers {
            scale,
            step: (learning_rate / (1.0 - adam.betas[0].powi(t))) as f32,
            root: (1.0 - adam.betas[1].powi(t)).sqrt() as f32,
            betas: adam.betas.map(|b| b as f32),
            epsilon: adam.epsilon as f32,
            decay: decay as f32,
        };
        let count = self.master.len();
        let mut results = Vec::with_capacity(count.div_ceil(self.block));
        let mut start = 0;
        while start < count {
            let range: Range<usize> = start..(start + self.block).min(count);
            results.push(adamw(
                &gradient[range.clone()],
                numbers,
                &mut self.master[range.clone()],
                &mut self.first[range.clone()],
                &mut self.second[range.clone()],
                &mut working[range.clone()],
            ));
            start = range.end;
        }
        results
    }
}

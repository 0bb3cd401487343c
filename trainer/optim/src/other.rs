//! A run of neighbouring blocks of one other tensor at its owner: moments, sums over each block, application.
//!
//! The direction of a step is made of the moments when it is used (see `lockstep_kernels::update`), so it costs no memory,
//! and its dual norm is that of what is applied.

use std::ops::Range;

use lockstep_config::{Method, OtherNorm, Steepest};
use lockstep_inventory::state::has_second_moment;
use lockstep_kernels::real::Real;
use lockstep_kernels::sums::{block_hash, dot};
use lockstep_kernels::update::{
    Adam, Form, LookAhead, Sign, Stored, Stride, apply, direction_dot, heavy_ball, moments, momentum, rest,
};

use crate::decision::TensorStep;
use crate::results::{Applied, BlockSums};
use crate::settings::Optimizer;
use crate::state::{Fill, MASTER, MOMENTUM, SECOND, Take};

/// Blocks of one tensor that lie one after the other, with their state: float32 master, first moment, and the second one
/// where the method has one.
pub struct OtherRun {
    master: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    block: usize,
    /// Steps prepared so far.
    steps: i32,
}

/// Runs an expression with the direction of a block.
macro_rules! with_direction {
    ($run:expr, $range:expr, $gradient:expr, $scale:expr, $optimizer:expr, $direction:ident => $body:expr) => {{
        let (keys, m) = ($optimizer.keys(), &$run.first[$range]);
        let adam = |inverse_root: f32| Adam {
            m,
            v: &$run.second[$range],
            inverse_root,
            epsilon: keys.epsilon as f32,
        };
        match keys.method {
            Method::Steepest(Steepest {
                other: OtherNorm::Sign, ..
            }) => {
                let $direction = Sign(m);
                $body
            }
            Method::Steepest(_) => {
                let $direction = adam(1.0);
                $body
            }
            Method::Muon | Method::NorMuon | Method::AdamW | Method::MomoAdam => {
                let $direction = adam((1.0 / (1.0 - keys.betas[1].powi($run.steps)).sqrt()) as f32);
                $body
            }
            Method::Sgd if keys.nesterov => {
                let $direction = LookAhead {
                    gradient: $gradient,
                    scale: $scale,
                    m,
                    form: match keys.normalized {
                        true => Form::Average(rest(keys.momentum)),
                        false => Form::Sum(keys.momentum as f32),
                    },
                };
                $body
            }
            Method::Sgd | Method::Momo => {
                let $direction = Stored(m);
                $body
            }
        }
    }};
}

impl OtherRun {
    /// A run whose initial values are `master`, in blocks of `block` elements (the last one may be shorter).
    pub fn new(master: &[f32], block: usize, optimizer: &Optimizer) -> OtherRun {
        let second = match has_second_moment(optimizer.keys().method) {
            true => vec![0.0; master.len()],
            false => Vec::new(),
        };
        OtherRun {
            master: master.to_vec(),
            first: vec![0.0; master.len()],
            second,
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

    /// Shows every array that outlives a step.
    pub(crate) fn show(&self, take: &mut Take<'_>) {
        take(MASTER, &self.master);
        take(MOMENTUM, &self.first);
        if !self.second.is_empty() {
            take(SECOND, &self.second);
        }
    }

    /// Fills every array that outlives a step, as after `steps` steps.
    pub(crate) fn fill(&mut self, steps: u64, values: &mut Fill<'_>) {
        values(MASTER, &mut self.master);
        values(MOMENTUM, &mut self.first);
        if !self.second.is_empty() {
            values(SECOND, &mut self.second);
        }
        self.steps = steps.min(i32::MAX as u64) as i32;
    }

    /// Bytes of master and state.
    pub fn state_bytes(&self) -> usize {
        4 * (self.master.len() + self.first.len() + self.second.len())
    }

    /// The element ranges of the blocks.
    fn ranges(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (block, count) = (self.block, self.master.len());
        (0..count)
            .step_by(block)
            .map(move |start| start..(start + block).min(count))
    }

    /// Moments from the gradient sum and the scale that makes it the mean; returns each block's sums. `working` are the
    /// parameters at which the gradient was taken.
    pub fn prepare<W: Real>(
        &mut self,
        gradient: &[f32],
        scale: f32,
        working: &[W],
        optimizer: &Optimizer,
    ) -> Vec<BlockSums> {
        self.steps += 1;
        self.ranges()
            .map(|range| {
                self.update_moments(range.clone(), &gradient[range.clone()], scale, optimizer);
                self.sums(
                    range.clone(),
                    &gradient[range.clone()],
                    scale,
                    &working[range],
                    optimizer,
                )
            })
            .collect()
    }

    /// Steps along the prepared direction and writes the working copy; returns what each block leaves.
    pub fn apply<W: Real>(
        &mut self,
        gradient: &[f32],
        scale: f32,
        step: &TensorStep,
        optimizer: &Optimizer,
        working: &mut [W],
    ) -> Vec<Applied> {
        self.ranges()
            .map(|range| {
                let working = &mut working[range.clone()];
                self.apply_block(range.clone(), &gradient[range], scale, step, optimizer, working)
            })
            .collect()
    }

    /// [`OtherRun::prepare`] and [`OtherRun::apply`] block by block, while a block is in the cache: for steps that depend on
    /// nothing else.
    pub fn step<W: Real>(
        &mut self,
        gradient: &[f32],
        scale: f32,
        step: &TensorStep,
        optimizer: &Optimizer,
        working: &mut [W],
    ) -> Vec<Applied> {
        self.steps += 1;
        self.ranges()
            .map(|range| {
                let (gradient, working) = (&gradient[range.clone()], &mut working[range.clone()]);
                self.update_moments(range.clone(), gradient, scale, optimizer);
                self.apply_block(range, gradient, scale, step, optimizer, working)
            })
            .collect()
    }

    fn update_moments(&mut self, range: Range<usize>, gradient: &[f32], scale: f32, optimizer: &Optimizer) {
        let keys = optimizer.keys();
        let first_step = self.steps == 1 && optimizer.starts_at_first_gradient();
        // Averages that start at their first value take the first step with nothing of what was before.
        let rest = |beta: f64| rest(if first_step { 0.0 } else { beta });
        let m = &mut self.first[range.clone()];
        if has_second_moment(keys.method) {
            moments(gradient, scale, keys.betas.map(rest), m, &mut self.second[range]);
            return;
        }
        match keys.method {
            Method::Sgd if !keys.normalized => heavy_ball(gradient, scale, keys.momentum as f32, m),
            Method::Steepest(_) => momentum(gradient, scale, rest(keys.betas[0]), m),
            _ => momentum(gradient, scale, rest(keys.momentum), m),
        }
    }

    fn sums<W: Real>(
        &self,
        range: Range<usize>,
        gradient: &[f32],
        scale: f32,
        working: &[W],
        optimizer: &Optimizer,
    ) -> BlockSums {
        let mut sums = BlockSums::default();
        let m = &self.first[range.clone()];
        if optimizer.is_global() {
            sums.dual = with_direction!(self, range.clone(), gradient, scale, optimizer, d => direction_dot(m, d));
        }
        if optimizer.momo().is_some() {
            sums.gradient_dot = f64::from(scale) * dot(gradient, working);
            sums.momentum_dot = dot(m, &self.master[range]);
        }
        sums
    }

    fn apply_block<W: Real>(
        &mut self,
        range: Range<usize>,
        gradient: &[f32],
        scale: f32,
        step: &TensorStep,
        optimizer: &Optimizer,
        working: &mut [W],
    ) -> Applied {
        let keys = optimizer.keys();
        // Adam's first moment starts at zero; its correction is part of the step's length.
        let correction = match keys.method {
            Method::Muon | Method::NorMuon | Method::AdamW => 1.0 - keys.betas[0].powi(self.steps),
            _ => 1.0,
        };
        let stride = Stride {
            step: (step.steps[0] / correction) as f32,
            keep: step.keep as f32,
            cautious: keys.cautious,
        };
        let master = &mut self.master[range.clone()];
        let square_sum =
            with_direction!(self, range.clone(), gradient, scale, optimizer, d => apply(master, d, stride, working));
        Applied {
            hash: block_hash(&self.master[range]),
            square_sum,
        }
    }
}

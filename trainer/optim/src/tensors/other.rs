//! A run of neighbouring blocks of one other tensor at its owner, as [`crate::other`]: moments → application.

use lockstep_config::{Method, OtherNorm, Steepest};
use lockstep_inventory::state::has_second_moment;
use lockstep_kernels::update::{Stride, rest};
use tch::Tensor;

use crate::OptimError;
use crate::decision::TensorStep;
use crate::settings::Optimizer;
use crate::state::{Fill, MASTER, MOMENTUM, SECOND, Take, fill, show};
use crate::tensors::application::stepped;
use crate::tensors::piece::GradientSum;
use crate::tensors::results::{Applied, Prepared};
use crate::tensors::sums::BlockArithmetic;

/// Blocks that one pass takes at a time: what is made on the way (directions, differences) stays small.
const BLOCKS: usize = 64;

/// Blocks of one tensor that lie one after the other, with their state, flat and float32.
pub struct OtherTensor {
    master: Tensor,
    first: Tensor,
    second: Option<Tensor>,
    block: usize,
    /// Steps prepared so far.
    steps: i32,
}

/// Neighbouring blocks of a run: element ranges as libtorch takes them.
#[derive(Clone, Copy)]
struct Stretch {
    start: i64,
    length: i64,
}

impl Stretch {
    fn of(self, all: &Tensor) -> Result<Tensor, OptimError> {
        Ok(all.f_narrow(0, self.start, self.length)?)
    }

    fn mean(self, gradient: GradientSum<'_>) -> Result<Tensor, OptimError> {
        Ok(self.of(gradient.sum)?.f_mul_scalar(f64::from(gradient.scale))?)
    }
}

impl OtherTensor {
    /// A run whose initial values are `master`, in blocks of `block` elements (the last one may be shorter).
    pub(super) fn new(master: &Tensor, block: usize, optimizer: &Optimizer) -> Result<OtherTensor, OptimError> {
        let master = master.f_detach()?.f_flatten(0, -1)?.copy();
        let zeros = || Tensor::f_zeros_like(&master);
        Ok(OtherTensor {
            first: zeros()?,
            second: match has_second_moment(optimizer.keys().method) {
                true => Some(zeros()?),
                false => None,
            },
            master,
            block,
            steps: 0,
        })
    }

    pub(super) fn master(&self) -> &Tensor {
        &self.master
    }

    pub(super) fn show(&self, take: &mut Take<'_>) -> Result<(), OptimError> {
        show(MASTER, &self.master, take)?;
        show(MOMENTUM, &self.first, take)?;
        match &self.second {
            Some(second) => show(SECOND, second, take),
            None => Ok(()),
        }
    }

    pub(super) fn fill(&mut self, steps: u64, values: &mut Fill<'_>) -> Result<(), OptimError> {
        fill(MASTER, &mut self.master, values)?;
        fill(MOMENTUM, &mut self.first, values)?;
        if let Some(second) = &mut self.second {
            fill(SECOND, second, values)?;
        }
        self.steps = steps.min(i32::MAX as u64) as i32;
        Ok(())
    }

    pub(super) fn block(&self) -> usize {
        self.block
    }

    pub(super) fn state_bytes(&self) -> usize {
        4 * self.master.numel() * (2 + usize::from(self.second.is_some()))
    }

    fn stretches(&self) -> impl Iterator<Item = Stretch> + use<> {
        let (step, count) = (BLOCKS * self.block, self.master.numel());
        (0..count).step_by(step).map(move |start| Stretch {
            start: start as i64,
            length: step.min(count - start) as i64,
        })
    }

    pub(super) fn prepare(
        &mut self,
        gradient: GradientSum<'_>,
        working: &Tensor,
        optimizer: &Optimizer,
        arithmetic: &dyn BlockArithmetic,
    ) -> Result<Prepared, OptimError> {
        self.steps += 1;
        let (mut duals, mut gradient_dots, mut momentum_dots) = (Vec::new(), Vec::new(), Vec::new());
        for stretch in self.stretches() {
            let mean = stretch.mean(gradient)?;
            self.update_moments(stretch, &mean, optimizer)?;
            let m = stretch.of(&self.first)?;
            if optimizer.is_global() {
                let direction = self.direction(stretch, &mean, optimizer)?;
                duals.push(arithmetic.dots(&m, &direction, self.block)?);
            }
            if optimizer.momo().is_some() {
                let dots = arithmetic.dots(&stretch.of(gradient.sum)?, &stretch.of(working)?, self.block)?;
                gradient_dots.push(dots.f_mul_scalar(f64::from(gradient.scale))?);
                momentum_dots.push(arithmetic.dots(&m, &stretch.of(&self.master)?, self.block)?);
            }
        }
        Ok(Prepared {
            block_duals: joined(&duals)?,
            gradient_dots: joined(&gradient_dots)?,
            momentum_dots: joined(&momentum_dots)?,
            ..Prepared::default()
        })
    }

    pub(super) fn apply(
        &mut self,
        gradient: GradientSum<'_>,
        step: &TensorStep,
        optimizer: &Optimizer,
        arithmetic: &dyn BlockArithmetic,
        working: &mut Tensor,
    ) -> Result<Applied, OptimError> {
        let (mut hashes, mut square_sums) = (Vec::new(), Vec::new());
        for stretch in self.stretches() {
            let mean = stretch.mean(gradient)?;
            let applied = self.apply_to(stretch, &mean, step, optimizer, arithmetic, working)?;
            hashes.push(applied.hashes);
            square_sums.push(applied.square_sums);
        }
        Ok(Applied {
            hashes: Tensor::f_cat(&hashes, 0)?,
            square_sums: Tensor::f_cat(&square_sums, 0)?,
        })
    }

    /// Moments and application of each stretch in one go, for steps that depend on nothing else.
    pub(super) fn step(
        &mut self,
        gradient: GradientSum<'_>,
        step: &TensorStep,
        optimizer: &Optimizer,
        arithmetic: &dyn BlockArithmetic,
        working: &mut Tensor,
    ) -> Result<Applied, OptimError> {
        self.steps += 1;
        for stretch in self.stretches() {
            let mean = stretch.mean(gradient)?;
            self.update_moments(stretch, &mean, optimizer)?;
        }
        self.apply(gradient, step, optimizer, arithmetic, working)
    }

    fn update_moments(&mut self, stretch: Stretch, mean: &Tensor, optimizer: &Optimizer) -> Result<(), OptimError> {
        let keys = optimizer.keys();
        let first_step = self.steps == 1 && optimizer.starts_at_first_gradient();
        // Averages that start at their first value take the first step with nothing of what was before.
        let rest = |beta: f64| f64::from(rest(if first_step { 0.0 } else { beta }));
        let mut m = stretch.of(&self.first)?;
        if let Some(second) = &self.second {
            let _ = m.f_lerp_(mean, rest(keys.betas[0]))?;
            let _ = stretch.of(second)?.f_lerp_(&mean.f_square()?, rest(keys.betas[1]))?;
            return Ok(());
        }
        let _ = match keys.method {
            Method::Sgd if !keys.normalized => m.f_mul_scalar_(f64::from(keys.momentum as f32))?.f_add_(mean)?,
            Method::Steepest(_) => m.f_lerp_(mean, rest(keys.betas[0]))?,
            _ => m.f_lerp_(mean, rest(keys.momentum))?,
        };
        Ok(())
    }

    /// The direction of a stretch's step; `mean` is its mean gradient.
    fn direction(&self, stretch: Stretch, mean: &Tensor, optimizer: &Optimizer) -> Result<Tensor, OptimError> {
        let keys = optimizer.keys();
        let m = stretch.of(&self.first)?;
        let adam = |second: &Tensor, inverse_root: f32| -> Result<Tensor, OptimError> {
            let mut root = stretch.of(second)?.f_sqrt()?;
            let _ = root.f_mul_scalar_(f64::from(inverse_root))?;
            let _ = root.f_add_scalar_(f64::from(keys.epsilon as f32))?;
            Ok(m.f_div(&root)?)
        };
        Ok(match (keys.method, &self.second) {
            (
                Method::Steepest(Steepest {
                    other: OtherNorm::Sign, ..
                }),
                _,
            ) => m.f_sign()?,
            (Method::Steepest(_), Some(second)) => adam(second, 1.0)?,
            (_, Some(second)) => adam(second, (1.0 / (1.0 - keys.betas[1].powi(self.steps)).sqrt()) as f32)?,
            (Method::Sgd, None) if keys.nesterov => match keys.normalized {
                true => m.f_lerp(mean, f64::from(rest(keys.momentum)))?,
                false => m.f_mul_scalar(f64::from(keys.momentum as f32))?.f_add(mean)?,
            },
            (_, None) => m,
        })
    }

    fn apply_to(
        &mut self,
        stretch: Stretch,
        mean: &Tensor,
        step: &TensorStep,
        optimizer: &Optimizer,
        arithmetic: &dyn BlockArithmetic,
        working: &mut Tensor,
    ) -> Result<Applied, OptimError> {
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
        let mut master = stretch.of(&self.master)?;
        let new = stepped(&master, &self.direction(stretch, mean, optimizer)?, stride)?;
        let square_sums = arithmetic.square_distances(&new, &master, self.block)?;
        master.f_copy_(&new)?;
        stretch.of(working)?.f_copy_(&new)?;
        Ok(Applied {
            hashes: arithmetic.hashes(&new, self.block)?,
            square_sums,
        })
    }
}

/// The values of all stretches; none where nothing was measured.
fn joined(values: &[Tensor]) -> Result<Option<Tensor>, OptimError> {
    match values.is_empty() {
        true => Ok(None),
        false => Ok(Some(Tensor::f_cat(values, 0)?)),
    }
}

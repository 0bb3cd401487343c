//! A hidden tensor at its owner, as [`crate::hidden`]: momentum → polar factors (kept) → application.

use lockstep_config::Method;
use lockstep_kernels::update::{Stride, rest};
use tch::{Kind, Tensor};

use crate::OptimError;
use crate::decision::TensorStep;
use crate::hidden::ROW_EPSILON;
use crate::polar::orthogonality_error_on_device;
use crate::settings::Optimizer;
use crate::state::{Fill, MASTER, MOMENTUM, ROW_SQUARES, fill};
use crate::tensors::application::stepped;
use crate::tensors::piece::GradientSum;
use crate::tensors::results::{Applied, Prepared};
use crate::tensors::sums::BlockArithmetic;

/// A hidden tensor of `parts` matrices `[rows, columns]` with its state, and the factors of the step that is being made.
pub struct HiddenTensor {
    name: String,
    /// `[parts, rows, columns]`, float32, as is the momentum.
    master: Tensor,
    momentum: Tensor,
    /// NorMuon: the running mean square of each row of the factors, `[parts, rows]`.
    row_squares: Option<Tensor>,
    factors: Option<Tensor>,
    started: bool,
}

impl HiddenTensor {
    /// A tensor with initial values `master`, of `shape` `[parts, rows, columns]`, and zero momentum.
    pub(super) fn new(
        name: &str,
        shape: [usize; 3],
        master: &Tensor,
        optimizer: &Optimizer,
    ) -> Result<HiddenTensor, OptimError> {
        let sizes = shape.map(|n| n as i64);
        let master = master.f_reshape(sizes)?.f_detach()?.copy();
        let options = (Kind::Float, master.device());
        let row_squares = match optimizer.keys().method {
            Method::NorMuon => Some(Tensor::f_zeros([sizes[0], sizes[1]], options)?),
            _ => None,
        };
        Ok(HiddenTensor {
            name: name.to_owned(),
            momentum: Tensor::f_zeros(sizes, options)?,
            row_squares,
            master,
            factors: None,
            started: false,
        })
    }

    pub(super) fn master(&self) -> &Tensor {
        &self.master
    }

    pub(super) fn arrays(&self) -> Vec<(&'static str, &Tensor)> {
        let mut arrays = vec![(MASTER, &self.master), (MOMENTUM, &self.momentum)];
        arrays.extend(self.row_squares.as_ref().map(|squares| (ROW_SQUARES, squares)));
        arrays
    }

    pub(super) fn fill(&mut self, steps: u64, values: &mut Fill<'_>) -> Result<(), OptimError> {
        fill(MASTER, &mut self.master, values)?;
        fill(MOMENTUM, &mut self.momentum, values)?;
        if let Some(squares) = &mut self.row_squares {
            fill(ROW_SQUARES, squares, values)?;
        }
        self.started = steps > 0;
        self.factors = None;
        Ok(())
    }

    pub(super) fn elements(&self) -> usize {
        self.master.numel()
    }

    pub(super) fn state_bytes(&self) -> usize {
        4 * (2 * self.elements() + self.row_squares.as_ref().map_or(0, Tensor::numel))
    }

    pub(super) fn prepare(
        &mut self,
        gradient: GradientSum<'_>,
        working: &Tensor,
        optimizer: &Optimizer,
        arithmetic: &dyn BlockArithmetic,
        probe: Option<usize>,
    ) -> Result<Prepared, OptimError> {
        let keys = optimizer.keys();
        let beta = match optimizer.starts_at_first_gradient() && !self.started {
            true => 0.0,
            false => keys.momentum,
        };
        let new = f64::from(rest(beta));
        self.started = true;
        let scale = f64::from(gradient.scale);
        let mean = gradient.sum.f_view_as(&self.momentum)?.f_mul_scalar(scale)?;
        let _ = self.momentum.f_lerp_(&mean, new)?;
        let source = match keys.nesterov {
            true => self.momentum.f_lerp(&mean, new)?,
            false => self.momentum.shallow_clone(),
        };
        drop(mean);
        let mut factors = optimizer.polar().factors_on_device(&source, arithmetic)?;
        let orthogonality = match probe {
            None => None,
            Some(part) => Some(orthogonality_error_on_device(
                &factors.f_select(0, part as i64)?,
                arithmetic,
            )?),
        };
        if let Some(squares) = &mut self.row_squares {
            factors = normalise_rows(factors, squares, f64::from(rest(keys.betas[1])), arithmetic)?;
        }
        let (parts, all) = (self.master.size3()?.0 as usize, self.elements());
        let mut prepared = Prepared {
            duals: Some(arithmetic.dots(&source, &factors, all / parts)?),
            orthogonality,
            ..Prepared::default()
        };
        self.factors = Some(factors);
        if optimizer.momo().is_some() {
            let dots = arithmetic.dots(gradient.sum, working, all)?;
            prepared.gradient_dots = Some(dots.f_mul_scalar(scale)?);
            prepared.momentum_dots = Some(arithmetic.dots(&self.momentum, &self.master, all)?);
        }
        Ok(prepared)
    }

    pub(super) fn apply(
        &mut self,
        step: &TensorStep,
        optimizer: &Optimizer,
        arithmetic: &dyn BlockArithmetic,
        working: &mut Tensor,
    ) -> Result<Applied, OptimError> {
        let factors = self.factors.take().ok_or_else(|| OptimError::NoPolarFactor {
            name: self.name.clone(),
        })?;
        let old = self.master.copy();
        for (part, length) in step.steps.iter().enumerate() {
            let stride = Stride {
                step: *length as f32,
                keep: step.keep as f32,
                cautious: optimizer.keys().cautious,
            };
            let of = |all: &Tensor| all.f_select(0, part as i64);
            of(&self.master)?.f_copy_(&stepped(&of(&old)?, &of(&factors)?, stride)?)?;
        }
        working.f_view_as(&self.master)?.f_copy_(&self.master)?;
        Ok(Applied {
            hashes: arithmetic.hashes(&self.master, self.elements())?,
            square_sums: arithmetic.square_distances(&self.master, &old, self.elements())?,
        })
    }
}

/// NorMuon's rows, as on the host: V ← β₂·V + (1−β₂)·mean(O² over columns), O ← O/(√V + ε), and O back to its Frobenius
/// norm. `factors` is `[parts, rows, columns]`, `squares` V of `[parts, rows]`; returns float32 factors.
fn normalise_rows(
    factors: Tensor,
    squares: &mut Tensor,
    rest: f64,
    arithmetic: &dyn BlockArithmetic,
) -> Result<Tensor, OptimError> {
    let (parts, rows, columns) = factors.size3()?;
    let size = (rows * columns) as usize;
    let mut factors = factors.f_to_kind(Kind::Float)?.f_contiguous()?;
    let before = arithmetic.dots(&factors, &factors, size)?; // [parts]
    let means = arithmetic
        .dots(&factors, &factors, columns as usize)?
        .f_div_scalar(columns)?
        .f_to_kind(Kind::Float)?
        .f_view([parts, rows])?;
    let _ = squares.f_lerp_(&means, rest)?;
    let inverse = squares.f_sqrt()?.f_add_scalar(f64::from(ROW_EPSILON))?.f_reciprocal()?;
    let _ = factors.f_mul_(&inverse.f_unsqueeze(2)?)?;
    let after = arithmetic.dots(&factors, &factors, size)?;
    let back = before
        .f_div(&after)?
        .f_sqrt()?
        .f_masked_fill(&after.f_eq(0.0)?, 0.0)?
        .f_to_kind(Kind::Float)?;
    let _ = factors.f_mul_(&back.f_view([-1, 1, 1])?)?;
    Ok(factors)
}

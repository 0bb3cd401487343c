//! The polar factor U·Vᵀ of a matrix U·Σ·Vᵀ, by iteration on matrix products or by the SVD.
//!
//! - this file: [`Polar`], the iterations on X and on its Gram matrix
//! - `tables`: their coefficients; `stack`: their products; `svd`: the exact way
//!
//! Way of data: momenta `[parts, rows, columns]`, float32 → each divided by its Frobenius norm (and the method's margin),
//! rounded to the products' kind, transposed if tall → iterations → factors of the same shape.
//!
//! Sources: Polar Express (arXiv 2505.16932), Newton–Schulz as in Muon (Keller Jordan; You Jiacheng), CANS (arXiv
//! 2506.10935), Gram Newton–Schulz (Zhang, Amsel, Chen, Dao 2026).

mod stack;
mod svd;
mod tables;

use tch::{Kind, Tensor};

use crate::OptimError;
use crate::polar::stack::{Stack, norms};
use crate::polar::tables::{coefficients, divisors};
use crate::products::Products;
use crate::tensors::sums::BlockArithmetic;

/// A way to the polar factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Optimal quintics, with a margin for rounding.
    PolarExpress,
    /// A fixed table.
    NewtonSchulz(Table),
    /// Polar Express on the Gram matrix of matrices that are not square.
    Gram {
        /// Steps after which the Gram matrix is computed anew from X. Rounding errors grow between restarts.
        restart: u32,
    },
    /// The singular value decomposition, in float64.
    Svd,
}

/// Coefficients of Newton–Schulz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Keller Jordan's one quintic.
    Jordan,
    /// You Jiacheng's five quintics.
    You,
    /// CANS: cubics.
    Cans,
}

/// Settings of the iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polar {
    /// The way.
    pub method: Method,
    /// Iterations.
    pub steps: u32,
    /// How its products are made.
    pub products: Products,
}

impl Polar {
    /// The (approximate) polar factors of `m` `[parts, rows, columns]`, float32 and contiguous: as large, contiguous, in the
    /// products' kind (float32 for the SVD). A zero matrix gives zeros.
    pub fn factors(&self, m: &Tensor) -> Result<Tensor, OptimError> {
        self.factors_by(m, |m| Ok(Tensor::from_slice(&norms(m)?)))
    }

    /// [`Polar::factors`] of matrices on any device, with norms by `arithmetic`; nothing waits for them.
    pub fn factors_on_device(&self, m: &Tensor, arithmetic: &dyn BlockArithmetic) -> Result<Tensor, OptimError> {
        self.factors_by(m, |m| norms_on_device(m, arithmetic))
    }

    /// The factors, with Frobenius norms by `norms`: float64 `[parts]` on the matrices' device.
    fn factors_by(
        &self,
        m: &Tensor,
        norms: impl Fn(&Tensor) -> Result<Tensor, OptimError>,
    ) -> Result<Tensor, OptimError> {
        if self.method == Method::Svd {
            return svd::factors(m);
        }
        let (_, rows, columns) = m.size3()?;
        let stack = Stack(self.products);
        let scaled = self.scaled(m, norms)?;
        let tall = rows > columns;
        let mut x = stack.hold(match tall {
            true => scaled.f_transpose(1, 2)?.f_contiguous()?,
            false => scaled,
        })?;
        x = match self.method {
            Method::Gram { restart } if rows != columns => self.on_gram(x, restart)?,
            _ => self.on_x(x)?,
        };
        stack.release(&match tall {
            true => x.f_transpose(1, 2)?,
            false => x,
        })
    }

    /// Each part divided by its norm (and the method's margin). The quintics of Newton–Schulz in bf16 round the matrix and its norm before they
    /// divide, as published: so their factors are those of others who use them. (CANS would not bear it: its first cubic changes
    /// sign just above one.)
    fn scaled(&self, m: &Tensor, norms: impl Fn(&Tensor) -> Result<Tensor, OptimError>) -> Result<Tensor, OptimError> {
        let quintic = matches!(self.method, Method::NewtonSchulz(Table::Jordan | Table::You));
        let as_published = quintic && self.products != Products::Float32;
        let rounded = match as_published {
            // Through bf16 itself: the momentum must not be rounded in place.
            true => Some(m.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float)?),
            false => None,
        };
        let m = rounded.as_ref().unwrap_or(m);
        let norms = norms(m)?;
        let norms = match as_published {
            true => norms
                .f_to_kind(Kind::Float)?
                .f_to_kind(Kind::BFloat16)?
                .f_to_kind(Kind::Double)?,
            false => norms,
        };
        let divisors = divisors(self.method, &norms)?.f_to_kind(Kind::Float)?;
        Ok(m.f_div(&divisors.f_reshape([-1, 1, 1])?)?)
    }

    /// X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ, X of at most as many rows as columns; each product and sum is rounded once.
    fn on_x(&self, mut x: Tensor) -> Result<Tensor, OptimError> {
        let stack = Stack(self.products);
        for index in 0..self.steps {
            let (a, b, c) = coefficients(self.method, index);
            let gram = stack.gram(&x)?; // [parts, n, n]
            x = match c == 0.0 {
                true => stack.fused(&x, a, &gram, &x, b)?,
                false => stack.fused(&x, a, &stack.polynomial(&gram, b, c)?, &x, 1.0)?,
            };
        }
        Ok(x)
    }

    /// The same iteration on R = X·Xᵀ: Q collects the polynomials Z = a·I + b·R + c·R², R ← Z·R·Z, and X ← Q·X at a restart
    /// and at the end, so that the long side takes part in few products.
    fn on_gram(&self, mut x: Tensor, restart: u32) -> Result<Tensor, OptimError> {
        let stack = Stack(self.products);
        let identity = Tensor::f_eye(x.size()[1], (stack.held(), x.device()))?.f_unsqueeze(0)?;
        let mut gram = stack.gram(&x)?;
        let mut collected: Option<Tensor> = None;
        for index in 0..self.steps {
            let (a, b, c) = coefficients(self.method, index);
            let mixed = match c == 0.0 {
                true => gram.f_mul_scalar(b)?,
                false => gram.f_baddbmm(&gram, &gram, b, c)?,
            };
            let z = stack.round(mixed.f_add(&identity.f_mul_scalar(a)?)?)?; // [parts, n, n]
            collected = Some(match &collected {
                None => z.shallow_clone(),
                Some(q) => stack.product(&z, q, 1.0)?,
            });
            let last = index + 1 == self.steps;
            if last || (index + 1) % restart == 0 {
                if let Some(q) = collected.take() {
                    x = stack.product(&q, &x, 1.0)?;
                }
                if !last {
                    gram = stack.gram(&x)?;
                }
            } else {
                let right = stack.product(&gram, &z, 1.0)?;
                gram = stack.product(&z, &right, 1.0)?;
            }
        }
        Ok(x)
    }
}

/// How far a factor is from orthogonal: ‖U·Uᵀ − I‖_F / √n of a matrix `[rows, columns]` of any kind, n its short side. In
/// float32 products.
pub fn orthogonality_error(factor: &Tensor) -> Result<f64, OptimError> {
    let (rest, side) = not_orthogonal(factor)?;
    Ok(norms(&rest)?[0] / side.sqrt())
}

/// [`orthogonality_error`] of a factor on any device, as a float64 scalar there.
pub fn orthogonality_error_on_device(factor: &Tensor, arithmetic: &dyn BlockArithmetic) -> Result<Tensor, OptimError> {
    let (rest, side) = not_orthogonal(factor)?;
    Ok(norms_on_device(&rest, arithmetic)?
        .f_select(0, 0)?
        .f_div_scalar(side.sqrt())?)
}

/// U·Uᵀ − I as a stack of one matrix, and its side n.
fn not_orthogonal(factor: &Tensor) -> Result<(Tensor, f64), OptimError> {
    let (rows, columns) = factor.size2()?;
    let x = factor.f_to_kind(Kind::Float)?;
    let x = if rows > columns { x.f_transpose(0, 1)? } else { x };
    let n = rows.min(columns);
    let rest = x
        .f_mm(&x.f_transpose(0, 1)?)?
        .f_sub(&Tensor::f_eye(n, (Kind::Float, x.device()))?)?;
    Ok((rest.f_contiguous()?.f_unsqueeze(0)?, n as f64))
}

/// The Frobenius norm of each matrix of a contiguous stack, float64 `[parts]` on its device.
fn norms_on_device(m: &Tensor, arithmetic: &dyn BlockArithmetic) -> Result<Tensor, OptimError> {
    let (_, rows, columns) = m.size3()?;
    Ok(arithmetic.dots(m, m, (rows * columns) as usize)?.f_sqrt()?)
}

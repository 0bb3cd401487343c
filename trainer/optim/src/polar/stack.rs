//! Products of stacks of matrices as the iterations need them: rounded to the run's kind, kept in the form in which the
//! next product reads them.
//!
//! A stack is `[parts, rows, columns]`; one batched product serves all parts, and its size is fixed by the split of the
//! tensor, never by the owner map. Under widened bf16 the values are bf16's and the storage float32, so nothing is
//! converted between products; rounding is what storing in bf16 would do.

use lockstep_autograd::{elements, elements_mut};
use lockstep_kernels::real::round_to_bf16;
use tch::{Kind, Tensor};

use crate::OptimError;
use crate::products::Products;

/// Rows from which on a symmetric product is made of blocks: below, three small products cost more than one.
const SYMMETRIC_ROWS: i64 = 256;

/// How products of stacks are made and rounded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack(pub(super) Products);

impl Stack {
    /// The kind in which values are held between products.
    pub(super) fn held(self) -> Kind {
        match self.0 {
            Products::NativeBf16 => Kind::BFloat16,
            Products::Float32 | Products::WidenedBf16 => Kind::Float,
        }
    }

    /// Rounds float32 values to what the run's kind can hold; native products have done it.
    pub(super) fn round(self, mut values: Tensor) -> Result<Tensor, OptimError> {
        if self.0 == Products::WidenedBf16 {
            values = values.f_contiguous()?;
            round_to_bf16(elements_mut::<f32>(&mut values));
        }
        Ok(values)
    }

    /// Float32 values into the held form, rounded. They are used up: rounding may be in place.
    pub(super) fn hold(self, values: Tensor) -> Result<Tensor, OptimError> {
        self.round(values.f_to_kind(self.held())?)
    }

    /// The held form as the products' own kind.
    pub(super) fn release(self, values: &Tensor) -> Result<Tensor, OptimError> {
        Ok(values.f_to_kind(self.0.kind())?.f_contiguous()?)
    }

    /// β·c + α·a·b, rounded once.
    pub(super) fn fused(self, c: &Tensor, beta: f64, a: &Tensor, b: &Tensor, alpha: f64) -> Result<Tensor, OptimError> {
        self.round(c.f_baddbmm(a, b, beta, alpha)?)
    }

    /// α·a·b, rounded once.
    pub(super) fn product(self, a: &Tensor, b: &Tensor, alpha: f64) -> Result<Tensor, OptimError> {
        let product = a.f_bmm(b)?;
        self.round(if alpha == 1.0 {
            product
        } else {
            product.f_mul_scalar(alpha)?
        })
    }

    /// x·xᵀ, which is symmetric.
    pub(super) fn gram(self, x: &Tensor) -> Result<Tensor, OptimError> {
        self.symmetric(x, &x.f_transpose(1, 2)?, None)
    }

    /// β·s + α·s·s of a symmetric s, which is symmetric.
    pub(super) fn polynomial(self, s: &Tensor, beta: f64, alpha: f64) -> Result<Tensor, OptimError> {
        self.symmetric(s, s, Some((s, beta, alpha)))
    }

    /// a·b (or β·c + α·a·b), known to be symmetric: of large ones three blocks of four are computed, the fourth is the
    /// second one's transpose. The choice depends on the shape alone.
    fn symmetric(self, a: &Tensor, b: &Tensor, add: Option<(&Tensor, f64, f64)>) -> Result<Tensor, OptimError> {
        let rows = a.size()[1];
        let block = |i: i64, j: i64, half: i64, rest: i64| -> Result<Tensor, OptimError> {
            let (from, count) = if i == 0 { (0, half) } else { (half, rest) };
            let (to, width) = if j == 0 { (0, half) } else { (half, rest) };
            let (a, b) = (a.f_narrow(1, from, count)?, b.f_narrow(2, to, width)?);
            Ok(match add {
                None => a.f_bmm(&b)?,
                Some((c, beta, alpha)) => {
                    let c = c.f_narrow(1, from, count)?.f_narrow(2, to, width)?;
                    c.f_baddbmm(&a, &b, beta, alpha)?
                }
            })
        };
        if rows < SYMMETRIC_ROWS {
            return self.round(match add {
                None => a.f_bmm(b)?,
                Some((c, beta, alpha)) => c.f_baddbmm(a, b, beta, alpha)?,
            });
        }
        let half = rows / 2;
        let rest = rows - half;
        let upper = block(0, 1, half, rest)?;
        let (first, last) = (block(0, 0, half, rest)?, block(1, 1, half, rest)?);
        let top = Tensor::f_cat(&[&first, &upper], 2)?;
        let bottom = Tensor::f_cat(&[&upper.f_transpose(1, 2)?, &last], 2)?;
        self.round(Tensor::f_cat(&[top, bottom], 1)?)
    }
}

/// The Frobenius norm of each matrix of a contiguous float32 stack, by our own fixed-order sum.
pub(super) fn norms(m: &Tensor) -> Result<Vec<f64>, OptimError> {
    let (parts, rows, columns) = m.size3()?;
    let size = (rows * columns) as usize;
    let values = elements::<f32>(m);
    Ok((0..parts as usize)
        .map(|part| {
            lockstep_kernels::sums::square_sum(&values[part * size..(part + 1) * size])
                .0
                .sqrt()
        })
        .collect())
}

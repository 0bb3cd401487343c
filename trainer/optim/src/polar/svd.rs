//! The polar factor by the singular value decomposition, in float64: slow and exact.

use tch::{Kind, Tensor};

use crate::OptimError;

/// U·Vᵀ of each matrix of `m` `[parts, rows, columns]`, float32. Directions whose singular value is below
/// max(rows, columns)·ε·σ_max (float64's ε) have none: they are left out, and a zero matrix gives zeros.
pub(super) fn factors(m: &Tensor) -> Result<Tensor, OptimError> {
    let (_, rows, columns) = m.size3()?;
    let (u, sigma, v) = m.f_to_kind(Kind::Double)?.f_svd(true, true)?;
    // [parts, n] → [parts, 1, n]: one factor 0 or 1 for each column of U.
    let largest = sigma.f_amax([-1], true)?;
    let floor = largest.f_mul_scalar(rows.max(columns) as f64 * f64::EPSILON)?;
    let kept = sigma.f_gt_tensor(&floor)?.f_to_kind(Kind::Double)?.f_unsqueeze(1)?;
    let factors = u.f_mul(&kept)?.f_matmul(&v.f_transpose(1, 2)?)?;
    Ok(factors.f_to_kind(Kind::Float)?.f_contiguous()?)
}

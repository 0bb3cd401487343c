//! The step along a direction: p ← keep·p − step·d.

use lockstep_kernels::update::Stride;
use tch::{Kind, TchError, Tensor};

/// The new values of float32 `old`; `direction` is of any kind.
pub(super) fn stepped(old: &Tensor, direction: &Tensor, stride: Stride) -> Result<Tensor, TchError> {
    let direction = direction.f_to_kind(Kind::Float)?;
    let mut new = old.f_mul_scalar(f64::from(stride.keep))?;
    if stride.cautious {
        let smaller = direction.f_mul(old)?.f_ge(0.0)?;
        new = new.f_where_self(&smaller, old)?;
    }
    let _ = new.f_sub_(&direction.f_mul_scalar(f64::from(stride.step))?)?;
    Ok(new)
}

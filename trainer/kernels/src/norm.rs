//! Layer norm over rows and the residual addition before it, in float32 throughout.
//!
//! Forward: x = residual + branch, then y = (x − mean)·rstd·gain + bias, kept with mean and rstd per row. Backward: from dy
//! and the gradient that came down the residual stream, the gradient of x (which is the branch's too), gain and bias.

use crate::real::{Real, row_sum};

/// Added to the variance, as GPT-2 does.
pub const EPSILON: f32 = 1e-5;

/// x = residual + branch, all `[rows, width]`: the addition before a norm.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn add_branch<B: Real>(residual: &[f32], branch: &[B], x: &mut [f32]) {
    assert!(residual.len() == x.len() && branch.len() == x.len());
    for ((x, residual), branch) in x.iter_mut().zip(residual).zip(branch) {
        *x = residual + branch.to_f32();
    }
}

/// Normalises the rows of `x` `[rows, width]`; `stats` receives (mean, 1/√(variance + ε)) per row.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn forward<Y: Real>(x: &[f32], gain: &[f32], bias: Option<&[f32]>, y: &mut [Y], stats: &mut [(f32, f32)]) {
    let width = gain.len();
    assert!(x.len() == y.len() && x.len() == stats.len() * width);
    assert!(bias.is_none_or(|b| b.len() == width));
    for (row, stat) in stats.iter_mut().enumerate() {
        let x = &x[row * width..][..width];
        let y = &mut y[row * width..][..width];
        let mean = row_sum(|i| x[i], width) / width as f32;
        let variance = row_sum(|i| (x[i] - mean) * (x[i] - mean), width) / width as f32;
        let rstd = 1.0 / (variance + EPSILON).sqrt();
        *stat = (mean, rstd);
        match bias {
            Some(bias) => {
                for i in 0..width {
                    y[i] = Y::from_f32(((x[i] - mean) * rstd).mul_add(gain[i], bias[i]));
                }
            }
            None => {
                for i in 0..width {
                    y[i] = Y::from_f32((x[i] - mean) * rstd * gain[i]);
                }
            }
        }
    }
}

/// The gradient of [`forward`]: `dx` comes in as the gradient of the residual stream below (zeros if none) and leaves
/// as the gradient of x and of the branch; those of gain and bias are added to `d_gain`, `d_bias`, row after row.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn backward<Y: Real>(
    x: &[f32],
    stats: &[(f32, f32)],
    gain: &[f32],
    dy: &[Y],
    dx: &mut [f32],
    d_gain: &mut [f32],
    mut d_bias: Option<&mut [f32]>,
) {
    let width = gain.len();
    assert!(x.len() == dy.len() && x.len() == dx.len() && x.len() == stats.len() * width && d_gain.len() == width);
    assert!(d_bias.as_ref().is_none_or(|b| b.len() == width));
    for (row, &(mean, rstd)) in stats.iter().enumerate() {
        let x = &x[row * width..][..width];
        let dy = &dy[row * width..][..width];
        let dx = &mut dx[row * width..][..width];
        let scaled = row_sum(|i| dy[i].to_f32() * gain[i], width) / width as f32;
        let along = row_sum(|i| dy[i].to_f32() * gain[i] * ((x[i] - mean) * rstd), width) / width as f32;
        for i in 0..width {
            let unit = (x[i] - mean) * rstd;
            let d = dy[i].to_f32();
            d_gain[i] += d * unit;
            dx[i] += rstd * (d * gain[i] - scaled - unit * along);
        }
        if let Some(d_bias) = d_bias.as_deref_mut() {
            for i in 0..width {
                d_bias[i] += dy[i].to_f32();
            }
        }
    }
}

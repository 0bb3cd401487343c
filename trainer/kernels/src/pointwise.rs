//! Passes over single elements: GELU (tanh form, as GPT-2), bias rows.

use crate::real::{Real, exp};

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

/// σ(2u) and its derivative factor for u = √(2/π)(x + 0.044715 x³); GELU(x) = x·σ(2u).
#[inline(always)]
fn gate(x: f32) -> (f32, f32) {
    let x2 = x * x;
    let u = SQRT_2_OVER_PI * x * CUBE.mul_add(x2, 1.0);
    let du = SQRT_2_OVER_PI * (3.0 * CUBE).mul_add(x2, 1.0);
    (1.0 / (1.0 + exp(-2.0 * u)), du)
}

/// y = GELU(x), tanh form.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn gelu<T: Real>(x: &[T], y: &mut [T]) {
    assert_eq!(x.len(), y.len());
    for (x, y) in x.iter().zip(y) {
        let x = x.to_f32();
        *y = T::from_f32(x * gate(x).0);
    }
}

/// dx = dy·GELU′(x); `dy` is overwritten with dx.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn gelu_backward<T: Real>(x: &[T], dy: &mut [T]) {
    assert_eq!(x.len(), dy.len());
    for (x, dy) in x.iter().zip(dy) {
        let x = x.to_f32();
        let (s, du) = gate(x);
        let slope = (2.0 * x * s * (1.0 - s)).mul_add(du, s);
        *dy = T::from_f32(dy.to_f32() * slope);
    }
}

/// Adds `bias` `[width]` to each row of `x` `[rows, width]`.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn add_bias<T: Real>(x: &mut [T], bias: &[f32]) {
    for row in x.chunks_exact_mut(bias.len()) {
        for (x, bias) in row.iter_mut().zip(bias) {
            *x = T::from_f32(x.to_f32() + bias);
        }
    }
}

/// Adds the rows of `dy` `[rows, width]` to `d_bias` `[width]`, row after row.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn bias_backward<T: Real>(dy: &[T], d_bias: &mut [f32]) {
    for row in dy.chunks_exact(d_bias.len()) {
        for (d, dy) in d_bias.iter_mut().zip(row) {
            *d += dy.to_f32();
        }
    }
}

/// a ← a + b, b of any element type.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn add<T: Real>(a: &mut [f32], b: &[T]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter_mut().zip(b) {
        *a += b.to_f32();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_and_its_slope_match_float64() {
        let exact = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh());
        let x: Vec<f32> = (-800..800).map(|i| i as f32 / 100.0).collect();
        let (mut y, mut dx) = (vec![0.0f32; x.len()], vec![1.0f32; x.len()]);
        gelu(&x, &mut y);
        gelu_backward(&x, &mut dx);
        for i in 0..x.len() {
            let at = f64::from(x[i]);
            assert!((f64::from(y[i]) - exact(at)).abs() < 2e-6, "gelu({at})");
            let slope = (exact(at + 1e-5) - exact(at - 1e-5)) / 2e-5;
            assert!((f64::from(dx[i]) - slope).abs() < 4e-6, "gelu'({at})");
        }
    }
}

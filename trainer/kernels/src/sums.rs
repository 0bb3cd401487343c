//! Sums over a block in float64, and the block's hash: what goes into slots.

use crate::LANES;
use crate::real::{bf16, fold};

/// Σ xᵢ² in float64 and the number of values that are not finite.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn square_sum(x: &[f32]) -> (f64, u64) {
    let mut sums = [0.0f64; LANES];
    let mut bad = [0u32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            let v = f64::from(chunk[i]);
            sums[i] += v * v;
            bad[i] += u32::from(chunk[i].to_bits() & 0x7f80_0000 == 0x7f80_0000);
        }
    }
    for (i, value) in rest.iter().enumerate() {
        let v = f64::from(*value);
        sums[i] += v * v;
        bad[i] += u32::from(value.to_bits() & 0x7f80_0000 == 0x7f80_0000);
    }
    (fold(sums), bad.iter().map(|b| u64::from(*b)).sum())
}

/// Σ aᵢ·bᵢ in float64, `b` of any element type.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn dot<T: crate::real::Real>(a: &[f32], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len());
    let mut sums = [0.0f64; LANES];
    let (ca, cb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (ra, rb) = (ca.remainder(), cb.remainder());
    for (a, b) in ca.zip(cb) {
        for i in 0..LANES {
            sums[i] += f64::from(a[i]) * f64::from(b[i].to_f32());
        }
    }
    for (i, (a, b)) in ra.iter().zip(rb).enumerate() {
        sums[i] += f64::from(*a) * f64::from(b.to_f32());
    }
    fold(sums)
}

/// Σ wordᵢ·(2i+1) mod 2⁶⁴ over the float32 bits of a block: its part of the `parameter_hash`.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn block_hash(block: &[f32]) -> u64 {
    let mut sum = 0u64;
    let mut odd = 1u64;
    for value in block {
        sum = sum.wrapping_add(u64::from(value.to_bits()).wrapping_mul(odd));
        odd = odd.wrapping_add(2);
    }
    sum
}

/// The same over the 16-bit words of bf16 values: what a rounded working copy is known by.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn block_hash_of_bf16(block: &[bf16]) -> u64 {
    let mut sum = 0u64;
    let mut odd = 1u64;
    for value in block {
        sum = sum.wrapping_add(u64::from(value.to_bits()).wrapping_mul(odd));
        odd = odd.wrapping_add(2);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_match_a_plain_loop_and_count_what_is_not_finite() {
        let x: Vec<f32> = (0..1003).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let (sum, bad) = square_sum(&x);
        let plain: f64 = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        assert!((sum / plain - 1.0).abs() < 1e-13);
        assert_eq!(bad, 0);
        let mut y = x.clone();
        y[5] = f32::NAN;
        y[1000] = f32::NEG_INFINITY;
        assert_eq!(square_sum(&y).1, 2);
        assert!((dot(&x, &x) / plain - 1.0).abs() < 1e-13);
    }

    #[test]
    fn the_hash_sees_every_bit_and_the_order() {
        let x: Vec<f32> = (0..70).map(|i| i as f32).collect();
        let hash = block_hash(&x);
        for i in 0..x.len() {
            let mut y = x.clone();
            y[i] = f32::from_bits(y[i].to_bits() ^ 1);
            assert_ne!(block_hash(&y), hash);
        }
        let mut y = x.clone();
        y.swap(3, 4);
        assert_ne!(block_hash(&y), hash);
        assert_eq!(block_hash(&[1.0, 2.0]), 0x3f80_0000 + 3 * 0x4000_0000);
        assert_eq!(block_hash_of_bf16(&[1.0, 2.0].map(bf16::from_f32)), 0x3f80 + 3 * 0x4000);
    }
}

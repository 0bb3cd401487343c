//! Element types of activations and working copies, and the elementary functions that kernels share.

pub use half::bf16;

/// An element that kernels read as float32 and round to on writing.
pub trait Real: Copy + Send + Sync + 'static {
    /// Zero.
    const ZERO: Self;
    /// The value as float32 (exact).
    fn to_f32(self) -> f32;
    /// The nearest value, ties to even.
    fn from_f32(value: f32) -> Self;
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }
}

impl Real for bf16 {
    const ZERO: bf16 = bf16::ZERO;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> bf16 {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff).wrapping_add((bits >> 16) & 1);
        // A NaN must not be rounded into an infinity.
        let quiet = bits | 0x0040_0000;
        bf16::from_bits(((if value.is_nan() { quiet } else { rounded }) >> 16) as u16)
    }
}

/// e to the x in float32, relative error below 2e-7 on [-87, 88]; smaller x give about 1e-38, larger ones about 1e38.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to an integer that then stands in the low bits of the sum.
    const MAGIC: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(-0.693_145_75, x);
    let r = n.mul_add(-1.428_606_8e-6, r);
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 0.166_666_65);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r * r, r) + 1.0;
    p * f32::from_bits(shifted.to_bits().wrapping_shl(23).wrapping_add(0x3f80_0000))
}

/// Adds the partial sums of a reduction as a balanced tree.
#[inline(always)]
pub(crate) fn fold<T: Copy + std::ops::Add<Output = T>>(partials: [T; crate::LANES]) -> T {
    let mut p = partials;
    let mut width = crate::LANES / 2;
    while width > 0 {
        for i in 0..width {
            p[i] = p[i] + p[i + width];
        }
        width /= 2;
    }
    p[0]
}

/// Σ values(i) for i below `count` in float32, in the fixed order of all reductions here.
#[inline(always)]
pub(crate) fn row_sum(values: impl Fn(usize) -> f32, count: usize) -> f32 {
    let mut sums = [0.0f32; crate::LANES];
    let whole = count / crate::LANES * crate::LANES;
    let mut at = 0;
    while at < whole {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum += values(at + i);
        }
        at += crate::LANES;
    }
    for i in whole..count {
        sums[i - whole] += values(i);
    }
    fold(sums)
}

/// Rounds float32 values to the nearest that bf16 holds, ties to even, in place.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn round_to_bf16(values: &mut [f32]) {
    for value in values {
        *value = <bf16 as Real>::from_f32(*value).to_f32();
    }
}

/// Writes `from` into `to`, rounding.
///
/// # Panics
/// If the lengths differ, as all kernels here do on mismatched lengths: a bug of the caller.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn convert<A: Real, B: Real>(from: &[A], to: &mut [B]) {
    assert_eq!(from.len(), to.len());
    for (to, from) in to.iter_mut().zip(from) {
        *to = B::from_f32(from.to_f32());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_three_units_of_the_last_place() {
        let mut x = -87.0f32;
        while x < 88.0 {
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 2.5e-7, "exp({x})");
            x += 0.0137;
        }
    }

    #[test]
    fn rounding_in_place_is_storing_in_bf16() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 1.013).collect();
        let mut rounded = values.clone();
        round_to_bf16(&mut rounded);
        for (value, rounded) in values.iter().zip(rounded) {
            assert_eq!(bf16::from_f32(*value).to_f32(), rounded);
        }
    }

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        for bits in (0..u32::MAX).step_by(99_991) {
            let value = f32::from_bits(bits);
            let (ours, theirs) = (<bf16 as Real>::from_f32(value), bf16::from_f32(value));
            assert!(
                ours.to_bits() == theirs.to_bits() || value.is_nan() && ours.is_nan(),
                "{bits:#x}"
            );
        }
    }
}

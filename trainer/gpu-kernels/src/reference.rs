//! The kernels in slow, obvious Rust, operation by operation in the same order: what a GPU's results are compared with.

/// Partial sums of a block; the number of threads that share it.
const PARTIALS: usize = crate::sources::THREADS as usize;

/// left + right, element by element.
pub fn tree_add(left: &[f32], right: &[f32]) -> Vec<f32> {
    left.iter().zip(right).map(|(a, b)| a + b).collect()
}

/// left + right, the right side as the bits of bf16.
pub fn tree_add_bf16(left: &[f32], right: &[u16]) -> Vec<f32> {
    left.iter()
        .zip(right)
        .map(|(a, b)| a + f32::from_bits(u32::from(*b) << 16))
        .collect()
}

/// Adds values in the order of the kernels: value i goes to partial sum i mod 256, the partial sums are folded in halves.
pub fn block_sum(values: impl Iterator<Item = f64>) -> f64 {
    let mut partial = vec![0.0f64; PARTIALS];
    for (i, value) in values.enumerate() {
        partial[i % PARTIALS] += value;
    }
    while partial.len() > 1 {
        let half = partial.len() / 2;
        partial = (0..half).map(|i| partial[i] + partial[i + half]).collect();
    }
    partial[0]
}

/// Σ xᵢ² of a block in float64, and how many values are not finite.
pub fn square_sum(block: &[f32]) -> (f64, u64) {
    let squares = block.iter().map(|v| f64::from(*v) * f64::from(*v));
    (
        block_sum(squares),
        block.iter().filter(|v| !v.is_finite()).count() as u64,
    )
}

/// Σ xᵢ·yᵢ of a block in float64.
pub fn dot(left: &[f32], right: &[f32]) -> f64 {
    block_sum(left.iter().zip(right).map(|(a, b)| f64::from(*a) * f64::from(*b)))
}

/// Σ wordᵢ·(2i+1) mod 2⁶⁴ over the float32 bits of a block.
pub fn block_hash(block: &[f32]) -> u64 {
    block.iter().zip(0u64..).fold(0, |sum, (value, i)| {
        sum.wrapping_add(u64::from(value.to_bits()).wrapping_mul(2 * i + 1))
    })
}

/// The bits of the nearest bf16, ties to even; a NaN becomes a quiet one.
pub fn round_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return ((bits | 0x0040_0000) >> 16) as u16;
    }
    let (above, rest) = ((bits >> 16) as u16, bits & 0xffff);
    match rest.cmp(&0x8000) {
        std::cmp::Ordering::Less => above,
        std::cmp::Ordering::Greater => above + 1,
        std::cmp::Ordering::Equal => above + (above & 1),
    }
}

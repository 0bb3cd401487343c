//! Token and position embeddings: look-up into the float32 residual stream, and scatter-add in token order.

use crate::real::Real;

/// x[n] = table[ids[n]] + positions[n mod time], `[ids.len(), width]`.
///
/// # Panics
/// If an id lies outside the table: the loader has checked them against the vocabulary.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn forward<T: Real>(ids: &[i64], time: usize, table: &[T], positions: &[T], x: &mut [f32]) {
    let width = x.len() / ids.len().max(1);
    for (n, (&id, x)) in ids.iter().zip(x.chunks_exact_mut(width)).enumerate() {
        let token = &table[id as usize * width..][..width];
        let position = &positions[n % time * width..][..width];
        for i in 0..width {
            x[i] = token[i].to_f32() + position[i].to_f32();
        }
    }
}

/// Adds the gradient of x to the rows of both tables, in token order.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn backward(ids: &[i64], time: usize, dx: &[f32], d_table: &mut [f32], d_positions: &mut [f32]) {
    let width = dx.len() / ids.len().max(1);
    for (n, (&id, dx)) in ids.iter().zip(dx.chunks_exact(width)).enumerate() {
        for (d, dx) in d_table[id as usize * width..][..width].iter_mut().zip(dx) {
            *d += dx;
        }
        for (d, dx) in d_positions[n % time * width..][..width].iter_mut().zip(dx) {
            *d += dx;
        }
    }
}

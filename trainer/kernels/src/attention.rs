//! What attention needs around its two batched products: heads split and merged, causal softmax, query-key norm.
//!
//! Layouts: qkv `[batch·time, 3·heads·head_width]` with q, k, v as thirds of a row; q, k, v, o as
//! `[batch·heads, time, head_width]`; scores `[batch·heads, time, time]`.

use crate::LANES;
use crate::real::{Real, exp, fold, row_sum};

/// Batch, time, heads and head width of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Positions of a sequence.
    pub time: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_width: usize,
}

impl Shape {
    /// Elements of q, k, v or o.
    pub fn elements(self) -> usize {
        self.batch * self.time * self.heads * self.head_width
    }

    /// Copies piece by piece between `parts` thirds-of-a-row layout and head layout.
    #[inline(always)]
    fn each(self, parts: usize, part: usize, mut copy: impl FnMut(usize, usize, usize)) {
        let width = self.heads * self.head_width;
        for b in 0..self.batch {
            for t in 0..self.time {
                for h in 0..self.heads {
                    let row = ((b * self.time + t) * parts + part) * width + h * self.head_width;
                    let head = ((b * self.heads + h) * self.time + t) * self.head_width;
                    copy(row, head, self.head_width);
                }
            }
        }
    }
}

/// Takes third `part` of `rows` (of `parts` parts a row) apart into heads, converting.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn split_heads<A: Real, B: Real>(shape: Shape, rows: &[A], parts: usize, part: usize, heads: &mut [B]) {
    assert!(heads.len() == shape.elements() && rows.len() == parts * shape.elements());
    shape.each(parts, part, |row, head, width| {
        for (to, from) in heads[head..][..width].iter_mut().zip(&rows[row..][..width]) {
            *to = B::from_f32(from.to_f32());
        }
    });
}

/// Puts heads together into third `part` of `rows`, converting: the inverse of [`split_heads`].
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn merge_heads<A: Real, B: Real>(shape: Shape, heads: &[A], parts: usize, part: usize, rows: &mut [B]) {
    assert!(heads.len() == shape.elements() && rows.len() == parts * shape.elements());
    shape.each(parts, part, |row, head, width| {
        for (to, from) in rows[row..][..width].iter_mut().zip(&heads[head..][..width]) {
            *to = B::from_f32(from.to_f32());
        }
    });
}

/// A block of query rows of the causal scores: `rows` queries from position `first` on, against `columns` keys.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Position of the first query.
    pub first: usize,
    /// Queries of each matrix.
    pub rows: usize,
    /// Keys of each matrix, at least `first + rows`.
    pub columns: usize,
}

/// Causal softmax of `scale`·scores in place, for matrices `[rows, columns]` of a [`Window`]: the query at position i keeps
/// keys 0..=i, the rest is 0.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn causal_softmax<T: Real>(scores: &mut [T], window: Window, scale: f32) {
    for (index, row) in scores.chunks_exact_mut(window.columns).enumerate() {
        let seen = window.first + index % window.rows + 1;
        let (row, hidden) = row.split_at_mut(seen);
        let whole = seen / LANES * LANES;
        let mut top = [f32::NEG_INFINITY; LANES];
        for chunk in row[..whole].chunks_exact(LANES) {
            for i in 0..LANES {
                top[i] = top[i].max(chunk[i].to_f32());
            }
        }
        for value in &row[whole..] {
            top[0] = top[0].max(value.to_f32());
        }
        let top = top.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b)) * scale;
        let mut sums = [0.0f32; LANES];
        for chunk in row[..whole].chunks_exact_mut(LANES) {
            for i in 0..LANES {
                let e = exp(chunk[i].to_f32().mul_add(scale, -top));
                chunk[i] = T::from_f32(e);
                sums[i] += e;
            }
        }
        for (i, value) in row[whole..].iter_mut().enumerate() {
            let e = exp(value.to_f32().mul_add(scale, -top));
            *value = T::from_f32(e);
            sums[i] += e;
        }
        let inverse = 1.0 / fold(sums);
        for value in row {
            *value = T::from_f32(value.to_f32() * inverse);
        }
        hidden.fill(T::ZERO);
    }
}

/// From the gradient of the probabilities (in `d`) to that of the unscaled scores, in place:
/// dS = scale · P ∘ (dP − Σ P∘dP), row by row, 0 where the mask hides.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn causal_softmax_backward<T: Real>(probabilities: &[T], d: &mut [T], window: Window, scale: f32) {
    assert_eq!(probabilities.len(), d.len());
    let rows = probabilities
        .chunks_exact(window.columns)
        .zip(d.chunks_exact_mut(window.columns));
    for (index, (p, d)) in rows.enumerate() {
        let seen = window.first + index % window.rows + 1;
        let whole = seen / LANES * LANES;
        let mut sums = [0.0f32; LANES];
        for (p, d) in p[..whole].chunks_exact(LANES).zip(d[..whole].chunks_exact(LANES)) {
            for i in 0..LANES {
                sums[i] = p[i].to_f32().mul_add(d[i].to_f32(), sums[i]);
            }
        }
        for i in whole..seen {
            sums[i - whole] = p[i].to_f32().mul_add(d[i].to_f32(), sums[i - whole]);
        }
        let along = fold(sums);
        for (d, p) in d[..seen].iter_mut().zip(p) {
            *d = T::from_f32(scale * p.to_f32() * (d.to_f32() - along));
        }
        d[seen..].fill(T::ZERO);
    }
}

/// Divides each head vector by its root mean square (query-key norm, without gain) in place; `inverse` receives
/// 1/√(mean square + 1e-6) per vector.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn rms_norm<T: Real>(x: &mut [T], head_width: usize, inverse: &mut [f32]) {
    assert_eq!(x.len(), inverse.len() * head_width);
    for (x, inverse) in x.chunks_exact_mut(head_width).zip(inverse) {
        let square = row_sum(|i| x[i].to_f32() * x[i].to_f32(), head_width);
        *inverse = 1.0 / (square / head_width as f32 + 1e-6).sqrt();
        for value in x {
            *value = T::from_f32(value.to_f32() * *inverse);
        }
    }
}

/// The gradient of [`rms_norm`] from its output `y`: dx = inverse·(dy − y·mean(y∘dy)), in place of `dy`.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn rms_norm_backward<T: Real>(y: &[T], head_width: usize, inverse: &[f32], dy: &mut [T]) {
    assert!(y.len() == dy.len() && y.len() == inverse.len() * head_width);
    for ((y, dy), inverse) in y
        .chunks_exact(head_width)
        .zip(dy.chunks_exact_mut(head_width))
        .zip(inverse)
    {
        let along = row_sum(|i| y[i].to_f32() * dy[i].to_f32(), head_width) / head_width as f32;
        for (dy, y) in dy.iter_mut().zip(y) {
            *dy = T::from_f32(inverse * (dy.to_f32() - y.to_f32() * along));
        }
    }
}

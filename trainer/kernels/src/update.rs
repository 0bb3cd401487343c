//! The passes of a step over what an owner holds: momentum, Muon's application, AdamW.
//!
//! Gradients come in as sums over counted tokens; `scale` (clip factor ÷ token count) makes them the mean. Each
//! applying pass writes the float32 master and its working copy, and returns the block's hash and Σ update².

use crate::LANES;
use crate::real::{Real, fold};

/// What an applying pass leaves for the slots of its block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Applied {
    /// Σ wordᵢ·(2i+1) mod 2⁶⁴ over the new master's bits.
    pub hash: u64,
    /// Σ (new − old)² in float64.
    pub square_sum: f64,
}

/// m ← β·m + (1−β)·g with g = scale·gradient; `out` = (1−β)·g + β·m with `nesterov`, else m. Returns Σ out².
///
/// Source: Muon as published (PAPERS: Keller Jordan's form, exponential moving average).
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn momentum(gradient: &[f32], scale: f32, beta: f32, nesterov: bool, m: &mut [f32], out: &mut [f32]) -> f64 {
    assert!(gradient.len() == m.len() && m.len() == out.len());
    let rest = 1.0 - beta;
    let mut sums = [0.0f64; LANES];
    for ((g, m), out) in gradient
        .chunks(LANES)
        .zip(m.chunks_mut(LANES))
        .zip(out.chunks_mut(LANES))
    {
        for (i, ((g, m), out)) in g.iter().zip(m).zip(out).enumerate() {
            let g = g * scale;
            *m = beta.mul_add(*m, rest * g);
            *out = if nesterov { beta.mul_add(*m, rest * g) } else { *m };
            sums[i] += f64::from(*out) * f64::from(*out);
        }
    }
    fold(sums)
}

/// p ← (1 − decay)·p − step·U, and the working copy.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn apply<U: Real, W: Real>(master: &mut [f32], polar: &[U], step: f32, decay: f32, working: &mut [W]) -> Applied {
    assert!(master.len() == polar.len() && master.len() == working.len());
    let keep = 1.0 - decay;
    let mut sums = [0.0f64; LANES];
    for ((p, u), w) in master
        .chunks_mut(LANES)
        .zip(polar.chunks(LANES))
        .zip(working.chunks_mut(LANES))
    {
        for (i, ((p, u), w)) in p.iter_mut().zip(u).zip(w).enumerate() {
            let old = *p;
            *p = (-step).mul_add(u.to_f32(), keep * old);
            *w = W::from_f32(*p);
            let moved = f64::from(*p) - f64::from(old);
            sums[i] += moved * moved;
        }
    }
    Applied {
        hash: crate::sums::block_hash(master),
        square_sum: fold(sums),
    }
}

/// The numbers of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Clip factor ÷ token count.
    pub scale: f32,
    /// Learning rate ÷ (1 − β₁ᵗ).
    pub step: f32,
    /// √(1 − β₂ᵗ).
    pub root: f32,
    /// β₁ and β₂.
    pub betas: [f32; 2],
    /// Added to √v̂.
    pub epsilon: f32,
    /// Learning rate × weight decay.
    pub decay: f32,
}

/// One AdamW step (Loshchilov & Hutter, with bias correction, decay decoupled): p ← (1−decay)·p − step·m/(√v/root + ε).
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn adamw<W: Real>(
    gradient: &[f32],
    numbers: AdamW,
    master: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    working: &mut [W],
) -> Applied {
    let n = master.len();
    assert!(gradient.len() == n && m.len() == n && v.len() == n && working.len() == n);
    let AdamW {
        scale,
        step,
        root,
        betas: [b1, b2],
        epsilon,
        decay,
    } = numbers;
    let (r1, r2, keep, inverse_root) = (1.0 - b1, 1.0 - b2, 1.0 - decay, 1.0 / root);
    let mut sums = [0.0f64; LANES];
    let chunks = gradient
        .chunks(LANES)
        .zip(master.chunks_mut(LANES))
        .zip(m.chunks_mut(LANES))
        .zip(v.chunks_mut(LANES))
        .zip(working.chunks_mut(LANES));
    for ((((g, p), m), v), w) in chunks {
        for (i, ((((g, p), m), v), w)) in g.iter().zip(p).zip(m).zip(v).zip(w).enumerate() {
            let g = g * scale;
            *m = b1.mul_add(*m, r1 * g);
            *v = b2.mul_add(*v, r2 * g * g);
            let old = *p;
            *p = keep * old - step * *m / (v.sqrt() * inverse_root + epsilon);
            *w = W::from_f32(*p);
            let moved = f64::from(*p) - f64::from(old);
            sums[i] += moved * moved;
        }
    }
    Applied {
        hash: crate::sums::block_hash(master),
        square_sum: fold(sums),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adamw_matches_a_float64_reference_over_ten_steps() {
        let n = 100;
        let (mut p, mut m, mut v) = (vec![0.5f32; n], vec![0.0f32; n], vec![0.0f32; n]);
        let (mut p64, mut m64, mut v64) = (vec![0.5f64; n], vec![0.0f64; n], vec![0.0f64; n]);
        let mut working = vec![0.0f32; n];
        let (lr, b1, b2, eps, wd) = (1e-2, 0.9f64, 0.95f64, 1e-8, 0.1);
        for t in 1..=10 {
            let g: Vec<f32> = (0..n).map(|i| ((i * 7 + t * 13) % 19) as f32 - 9.0).collect();
            let numbers = AdamW {
                scale: 0.25,
                step: (lr / (1.0 - b1.powi(t as i32))) as f32,
                root: (1.0 - b2.powi(t as i32)).sqrt() as f32,
                betas: [b1 as f32, b2 as f32],
                epsilon: eps as f32,
                decay: (lr * wd) as f32,
            };
            let before = p.clone();
            let applied = adamw(&g, numbers, &mut p, &mut m, &mut v, &mut working);
            assert_eq!(applied.hash, crate::sums::block_hash(&p));
            assert_eq!(working, p);
            let moved: f64 = p
                .iter()
                .zip(&before)
                .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
                .sum();
            assert!((applied.square_sum / moved - 1.0).abs() < 1e-12);
            for i in 0..n {
                let g = f64::from(g[i]) * 0.25;
                m64[i] = b1 * m64[i] + (1.0 - b1) * g;
                v64[i] = b2 * v64[i] + (1.0 - b2) * g * g;
                let (mh, vh) = (m64[i] / (1.0 - b1.powi(t as i32)), v64[i] / (1.0 - b2.powi(t as i32)));
                p64[i] = p64[i] * (1.0 - lr * wd) - lr * mh / (vh.sqrt() + eps);
            }
        }
        for i in 0..n {
            assert!((f64::from(p[i]) - p64[i]).abs() < 1e-6);
        }
    }
}

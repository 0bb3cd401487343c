//! The passes of a step over what an owner holds: moments of the gradient, and the step along a direction.
//!
//! Gradients come in as sums over counted tokens; `scale` (clip factor ÷ token count) makes them the mean. A [`Direction`]
//! is made of moments while it is used and never stored: [`apply`] steps along it, [`direction_dot`] is its inner product
//! with the momentum, so that a dual norm is exactly that of the direction that is applied.

use crate::LANES;
use crate::real::{Real, fold};

/// The weight of what is new in a moving average, 1 − β, rounded from float64: one minus a rounded β would be off by up to
/// 5e-5 of itself for β near one.
pub fn rest(beta: f64) -> f32 {
    (1.0 - beta) as f32
}

/// m ← m + rest·(g − m) with g = scale·gradient: the moving average β·m + (1−β)·g.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn momentum(gradient: &[f32], scale: f32, rest: f32, m: &mut [f32]) {
    assert_eq!(gradient.len(), m.len());
    for (g, m) in gradient.iter().zip(m) {
        *m = rest.mul_add(g * scale - *m, *m);
    }
}

/// m ← β·m + g with g = scale·gradient: heavy ball.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn heavy_ball(gradient: &[f32], scale: f32, beta: f32, m: &mut [f32]) {
    assert_eq!(gradient.len(), m.len());
    for (g, m) in gradient.iter().zip(m) {
        *m = beta.mul_add(*m, g * scale);
    }
}

/// m ← m + rest₁·(g − m) and v ← v + rest₂·(g² − v) with g = scale·gradient; `rests` are 1 − β₁ and 1 − β₂.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn moments(gradient: &[f32], scale: f32, rests: [f32; 2], m: &mut [f32], v: &mut [f32]) {
    assert!(gradient.len() == m.len() && m.len() == v.len());
    let [first, second] = rests;
    for ((g, m), v) in gradient.iter().zip(m).zip(v) {
        let g = g * scale;
        *m = first.mul_add(g - *m, *m);
        *v = second.mul_add(g * g - *v, *v);
    }
}

/// The elements of a direction, made when they are asked for.
pub trait Direction: Copy {
    /// Number of elements.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Elements `at .. at + LANES`.
    fn lanes(&self, at: usize) -> [f32; LANES];
    /// Element `at`.
    fn one(&self, at: usize) -> f32;
}

/// [`LANES`] elements of a slice as an array.
#[inline(always)]
fn window<T: Real>(slice: &[T], at: usize) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for (out, value) in out.iter_mut().zip(&slice[at..at + LANES]) {
        *out = value.to_f32();
    }
    out
}

/// A direction that is stored: a polar factor, a momentum.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a, T>(pub &'a [T]);

impl<T: Real> Direction for Stored<'_, T> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.0.len()
    }
    #[inline(always)]
    fn lanes(&self, at: usize) -> [f32; LANES] {
        window(self.0, at)
    }
    #[inline(always)]
    fn one(&self, at: usize) -> f32 {
        self.0[at].to_f32()
    }
}

/// sign(m), zero where m is.
#[derive(Clone, Copy, Debug)]
pub struct Sign<'a>(pub &'a [f32]);

#[inline(always)]
fn sign(m: f32) -> f32 {
    if m > 0.0 {
        1.0
    } else if m < 0.0 {
        -1.0
    } else {
        0.0
    }
}

impl Direction for Sign<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.0.len()
    }
    #[inline(always)]
    fn lanes(&self, at: usize) -> [f32; LANES] {
        window(self.0, at).map(sign)
    }
    #[inline(always)]
    fn one(&self, at: usize) -> f32 {
        sign(self.0[at])
    }
}

/// m / (√v·inverse_root + ε): Adam's direction; `inverse_root` = 1/√(1 − β₂ᵗ) under bias correction, else 1.
#[derive(Clone, Copy, Debug)]
pub struct Adam<'a> {
    /// First moment.
    pub m: &'a [f32],
    /// Second moment.
    pub v: &'a [f32],
    /// Corrects the root.
    pub inverse_root: f32,
    /// ε.
    pub epsilon: f32,
}

impl Direction for Adam<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        assert_eq!(self.m.len(), self.v.len());
        self.m.len()
    }
    #[inline(always)]
    fn lanes(&self, at: usize) -> [f32; LANES] {
        let (m, v) = (window(self.m, at), window(self.v, at));
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = m[i] / (v[i].sqrt() * self.inverse_root + self.epsilon);
        }
        out
    }
    #[inline(always)]
    fn one(&self, at: usize) -> f32 {
        self.m[at] / (self.v[at].sqrt() * self.inverse_root + self.epsilon)
    }
}

/// Nesterov's look along the momentum, with g = scale·gradient: m + (1−β)·(g − m) of an average, g + β·m of a sum.
#[derive(Clone, Copy, Debug)]
pub struct LookAhead<'a> {
    /// Gradient sums.
    pub gradient: &'a [f32],
    /// Makes them the mean.
    pub scale: f32,
    /// The momentum.
    pub m: &'a [f32],
    /// How the momentum is kept.
    pub form: Form,
}

/// How a momentum is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// An average, with the weight 1 − β of what is new.
    Average(f32),
    /// A sum, with the weight β of what was.
    Sum(f32),
}

impl LookAhead<'_> {
    #[inline(always)]
    fn at(&self, g: f32, m: f32) -> f32 {
        match self.form {
            Form::Average(rest) => rest.mul_add(g * self.scale - m, m),
            Form::Sum(beta) => beta.mul_add(m, g * self.scale),
        }
    }
}

impl Direction for LookAhead<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        assert_eq!(self.m.len(), self.gradient.len());
        self.m.len()
    }
    #[inline(always)]
    fn lanes(&self, at: usize) -> [f32; LANES] {
        let (g, m) = (window(self.gradient, at), window(self.m, at));
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = self.at(g[i], m[i]);
        }
        out
    }
    #[inline(always)]
    fn one(&self, at: usize) -> f32 {
        self.at(self.gradient[at], self.m[at])
    }
}

/// Σ mᵢ·dᵢ in float64.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn direction_dot<D: Direction>(m: &[f32], direction: D) -> f64 {
    assert_eq!(m.len(), direction.len());
    let whole = m.len() / LANES * LANES;
    let mut sums = [0.0f64; LANES];
    for at in (0..whole).step_by(LANES) {
        let (m, d) = (window(m, at), direction.lanes(at));
        for i in 0..LANES {
            sums[i] += f64::from(m[i]) * f64::from(d[i]);
        }
    }
    for (at, m) in m.iter().enumerate().skip(whole) {
        sums[at - whole] += f64::from(*m) * f64::from(direction.one(at));
    }
    fold(sums)
}

/// Writes a direction out.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn write<D: Direction>(direction: D, out: &mut [f32]) {
    assert_eq!(out.len(), direction.len());
    let whole = out.len() / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        out[at..at + LANES].copy_from_slice(&direction.lanes(at));
    }
    for (at, out) in out.iter_mut().enumerate().skip(whole) {
        *out = direction.one(at);
    }
}

/// How far and with what decay a step goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stride {
    /// The direction is multiplied by this and subtracted.
    pub step: f32,
    /// The parameters are multiplied by this before.
    pub keep: f32,
    /// Whether an element decays only where the step makes it smaller.
    pub cautious: bool,
}

/// p ← keep·p − step·d, and the working copy. Returns Σ (new − old)² in float64.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn apply<D: Direction, W: Real>(master: &mut [f32], direction: D, stride: Stride, working: &mut [W]) -> f64 {
    assert!(master.len() == direction.len() && master.len() == working.len());
    let Stride { step, keep, cautious } = stride;
    // Off the cautious way both are `keep`: no branch in the loop.
    let against = if cautious { 1.0 } else { keep };
    let stepped = |old: f32, d: f32| {
        let keep = if d * old >= 0.0 { keep } else { against };
        (-step).mul_add(d, keep * old)
    };
    let mut sums = [0.0f64; LANES];
    let whole = master.len() / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        let (old, d) = (window(master, at), direction.lanes(at));
        let mut new = [0.0f32; LANES];
        for i in 0..LANES {
            new[i] = stepped(old[i], d[i]);
            let moved = f64::from(new[i]) - f64::from(old[i]);
            sums[i] += moved * moved;
        }
        master[at..at + LANES].copy_from_slice(&new);
        for (w, new) in working[at..at + LANES].iter_mut().zip(new) {
            *w = W::from_f32(new);
        }
    }
    for (at, (master, working)) in master.iter_mut().zip(working).enumerate().skip(whole) {
        let old = *master;
        let new = stepped(old, direction.one(at));
        let moved = f64::from(new) - f64::from(old);
        sums[at - whole] += moved * moved;
        *master = new;
        *working = W::from_f32(new);
    }
    fold(sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real::bf16;

    /// 101 numbers of both signs, zero among them.
    fn numbers(seed: usize) -> Vec<f32> {
        (0..101)
            .map(|i| ((i * 37 + seed * 13) % 41) as f32 / 16.0 - 1.25)
            .collect()
    }

    #[test]
    fn moments_follow_their_formulas_over_ten_steps() {
        let (mut m, mut m2, mut v, mut ball) = (
            vec![0.0f32; 101],
            vec![0.0f32; 101],
            vec![0.0f32; 101],
            vec![0.0f32; 101],
        );
        let (mut m64, mut v64) = (vec![0.0f64; 101], vec![0.0f64; 101]);
        for step in 0..10 {
            let g = numbers(step);
            moments(&g, 0.25, [0.9, 0.999].map(rest), &mut m, &mut v);
            momentum(&g, 0.25, rest(0.9), &mut m2);
            heavy_ball(&g, 0.25, 0.9, &mut ball);
            for i in 0..101 {
                let g = f64::from(g[i]) * 0.25;
                m64[i] = 0.9 * m64[i] + 0.1 * g;
                v64[i] = 0.999 * v64[i] + 0.001 * g * g;
            }
        }
        assert_eq!(m, m2);
        for i in 0..101 {
            assert!((f64::from(m[i]) - m64[i]).abs() < 1e-6);
            assert!((f64::from(ball[i]) * 0.1 - m64[i]).abs() < 1e-6);
            assert!((f64::from(v[i]) - v64[i]).abs() <= 1e-6 * v64[i]);
        }
    }

    /// Every direction with its elements by definition.
    fn check(direction: impl Direction, expected: impl Fn(usize) -> f64) {
        let (m, n) = (numbers(7), 101);
        let mut written = vec![0.0f32; n];
        write(direction, &mut written);
        for (i, value) in written.iter().enumerate() {
            assert!((f64::from(*value) - expected(i)).abs() < 1e-5, "element {i}");
        }
        let dot: f64 = (0..n).map(|i| f64::from(m[i]) * expected(i)).sum();
        assert!((direction_dot(&m, direction) - dot).abs() < 1e-4);
        for cautious in [false, true] {
            let (mut p, old) = (numbers(3), numbers(3));
            let mut working = vec![bf16::ZERO; n];
            let stride = Stride {
                step: 0.5,
                keep: 0.75,
                cautious,
            };
            let moved = apply(&mut p, direction, stride, &mut working);
            let mut square = 0.0;
            for i in 0..n {
                let keep = if cautious && expected(i) * f64::from(old[i]) < 0.0 {
                    1.0
                } else {
                    0.75
                };
                let new = keep * f64::from(old[i]) - 0.5 * expected(i);
                assert!((f64::from(p[i]) - new).abs() < 1e-5, "element {i}");
                assert_eq!(working[i].to_bits(), <bf16 as Real>::from_f32(p[i]).to_bits());
                square += (f64::from(p[i]) - f64::from(old[i])).powi(2);
            }
            assert!((moved / square - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn every_direction_is_written_multiplied_and_stepped_along_as_defined() {
        let (m, g) = (numbers(1), numbers(2));
        let v: Vec<f32> = numbers(4).iter().map(|x| x * x).collect();
        check(Stored(&m[..]), |i| f64::from(m[i]));
        check(Sign(&m), |i| if m[i] == 0.0 { 0.0 } else { f64::from(m[i]).signum() });
        let adam = Adam {
            m: &m,
            v: &v,
            inverse_root: 2.0,
            epsilon: 0.125,
        };
        check(adam, |i| f64::from(m[i]) / (2.0 * f64::from(v[i]).sqrt() + 0.125));
        let look = |form| LookAhead {
            gradient: &g,
            scale: 0.5,
            m: &m,
            form,
        };
        check(look(Form::Average(0.25)), |i| {
            0.125 * f64::from(g[i]) + 0.75 * f64::from(m[i])
        });
        check(look(Form::Sum(0.75)), |i| {
            0.5 * f64::from(g[i]) + 0.75 * f64::from(m[i])
        });
    }
}

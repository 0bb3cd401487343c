//! A schedule that is bound to a run: every length in whole counts, so that its value at a position can be computed.
//!
//! A position is what was counted as the step starts, its span what the step adds. A decay over D counts takes at position k
//! of it the fraction k/D: it begins at the peak and would reach its end with the step after the last, so that no step of a run
//! is spent at a floor of 0. A warm-up takes the position as the step ends: its first step is not spent at 0, and its last one
//! takes the first value of what follows.

use std::f64::consts::PI;

use lockstep_config::{Between, Curve, Ends, RampForm, Shape, Warmup, WarmupForm};

use crate::plan::measure::Measure;

/// A schedule bound to the length of a run, or of a part of one.
#[derive(Clone, Debug)]
pub(super) enum Bound {
    Constant(f64),
    Warmup {
        length: u64,
        warmup: Warmup,
        /// The first value of what follows.
        peak: f64,
        after: Box<Bound>,
    },
    Ramp {
        ends: Ends,
        form: RampForm,
        over: u64,
    },
    Stable {
        peak: f64,
        floor: f64,
        form: RampForm,
        /// Where the decay begins.
        from: u64,
        over: u64,
    },
    Power {
        peak: f64,
        exponent: f64,
        scale: u64,
    },
    Growth {
        start: f64,
        factor: f64,
        every: u64,
        limit: Option<f64>,
    },
    Points {
        points: Vec<(u64, f64)>,
        between: Between,
    },
    Sequence(Vec<(u64, Bound)>),
    Product(Vec<Bound>),
}

impl Bound {
    /// Binds a curve to `horizon` counts. None where it depends on the horizon and that is not known.
    pub(super) fn new(curve: &Curve, measure: &Measure, horizon: Option<u64>) -> Option<Bound> {
        let Some(warmup) = curve.warmup else {
            return Bound::of_shape(&curve.shape, measure, horizon, horizon);
        };
        let length = measure.counts(warmup.length);
        let left = horizon.map(|horizon| horizon.saturating_sub(length));
        let after = Bound::of_shape(&curve.shape, measure, horizon, left)?;
        Some(Bound::Warmup {
            length,
            warmup,
            peak: after.at(0, 1),
            after: Box::new(after),
        })
    }

    /// `whole`: the horizon; `left`: what remains of it after the warm-up.
    fn of_shape(shape: &Shape, measure: &Measure, whole: Option<u64>, left: Option<u64>) -> Option<Bound> {
        let counts = |length: f64| measure.counts(length);
        Some(match shape {
            Shape::Constant { value } => Bound::Constant(*value),
            Shape::Ramp { ends, form, over } => Bound::Ramp {
                ends: *ends,
                form: *form,
                over: over.map(counts).or(left)?,
            },
            Shape::WarmupStableDecay {
                peak,
                floor,
                decay,
                form,
            } => {
                let (whole, left) = (whole?, left?);
                // `decay` is in (0, 1], so the product is at most the whole.
                let over = ((decay * whole as f64).round() as u64).min(left);
                Bound::Stable {
                    peak: *peak,
                    floor: *floor,
                    form: *form,
                    from: left - over,
                    over,
                }
            }
            Shape::Power {
                peak, exponent, scale, ..
            } => Bound::Power {
                peak: *peak,
                exponent: *exponent,
                scale: scale.map_or(1, counts).max(1),
            },
            Shape::Growth {
                start,
                factor,
                every,
                limit,
            } => Bound::Growth {
                start: *start,
                factor: *factor,
                every: counts(*every).max(1),
                limit: *limit,
            },
            Shape::Points { points, between } => Bound::Points {
                points: points.iter().map(|(at, value)| (counts(*at), *value)).collect(),
                between: *between,
            },
            Shape::Sequence { parts } => {
                let mut from = 0_u64;
                let mut bound = Vec::with_capacity(parts.len());
                for (curve, lasts) in parts {
                    let lasts = lasts.map(counts);
                    let horizon = lasts.or(left.map(|left| left.saturating_sub(from)));
                    bound.push((from, Bound::new(curve, measure, horizon)?));
                    from = from.saturating_add(lasts.unwrap_or(0));
                }
                Bound::Sequence(bound)
            }
            Shape::Product { factors } => Bound::Product(
                factors
                    .iter()
                    .map(|factor| Bound::new(factor, measure, left))
                    .collect::<Option<_>>()?,
            ),
        })
    }

    /// The value of a step that starts at `position` and spans `span` counts.
    pub(super) fn at(&self, position: u64, span: u64) -> f64 {
        match self {
            Bound::Constant(value) => *value,
            Bound::Warmup {
                length,
                warmup,
                peak,
                after,
            } => match position.saturating_add(span) {
                end if end <= *length => peak * way_up(warmup, end as f64 / *length as f64),
                _ => after.at(position.saturating_sub(*length), span),
            },
            Bound::Ramp { ends, form, over } => ramp(*ends, *form, progress(position, *over)),
            Bound::Stable {
                peak,
                floor,
                form,
                from,
                over,
            } => match position.checked_sub(*from) {
                Some(done) if *over > 0 => {
                    let ends = Ends::Peak {
                        peak: *peak,
                        floor: *floor,
                    };
                    ramp(ends, *form, progress(done, *over))
                }
                _ => *peak,
            },
            Bound::Power { peak, exponent, scale } => {
                let t = 1.0 + position as f64 / *scale as f64;
                match *exponent == 0.5 {
                    true => peak / t.sqrt(),
                    false => peak / t.powf(*exponent),
                }
            }
            Bound::Growth {
                start,
                factor,
                every,
                limit,
            } => {
                let grown = start * power(*factor, position / every);
                match (limit, *factor < 1.0) {
                    (Some(limit), true) => grown.max(*limit),
                    (Some(limit), false) => grown.min(*limit),
                    // For ever, but not beyond numbers.
                    (None, _) => grown.min(f64::MAX),
                }
            }
            Bound::Points { points, between } => on_points(points, *between, position),
            Bound::Sequence(parts) => {
                let after = parts.partition_point(|(from, _)| *from <= position);
                let (from, part) = &parts[after.max(1) - 1];
                part.at(position - from, span)
            }
            Bound::Product(factors) => factors.iter().map(|factor| factor.at(position, span)).product(),
        }
    }

    /// Where, after `position`, the value may begin to move the other way; `span` as in [`Bound::at`].
    pub(super) fn turns_after(&self, position: u64, span: u64) -> Option<u64> {
        match self {
            Bound::Warmup { length, after, .. } => match position.saturating_add(span) <= *length {
                true => Some((*length - span).saturating_add(1)),
                false if position < *length => Some(*length),
                false => after
                    .turns_after(position - length, span)
                    .map(|at| at.saturating_add(*length)),
            },
            Bound::Points { points, .. } => {
                let after = points.partition_point(|(at, _)| *at <= position);
                points.get(after).map(|(at, _)| *at)
            }
            Bound::Sequence(parts) => {
                let after = parts.partition_point(|(from, _)| *from <= position);
                let (from, part) = &parts[after.max(1) - 1];
                let inside = part
                    .turns_after(position - from, span)
                    .map(|at| at.saturating_add(*from));
                let next = parts.get(after).map(|(from, _)| *from);
                inside.into_iter().chain(next).min()
            }
            // A batch is never one.
            Bound::Product(factors) => factors
                .iter()
                .filter_map(|factor| factor.turns_after(position, span))
                .min(),
            _ => None,
        }
    }
}

/// factorⁿ, by squaring: the same bits on every machine.
fn power(factor: f64, mut n: u64) -> f64 {
    let (mut result, mut square) = (1.0, factor);
    while n > 0 {
        if n & 1 == 1 {
            result *= square;
        }
        square *= square;
        n >>= 1;
    }
    result
}

/// How much of a way of `over` counts is done, in [0, 1].
fn progress(done: u64, over: u64) -> f64 {
    match over {
        0 => 0.0,
        over => (done as f64 / over as f64).min(1.0),
    }
}

fn way_up(warmup: &Warmup, t: f64) -> f64 {
    match warmup.form {
        WarmupForm::Linear if warmup.from == 0.0 => t,
        WarmupForm::Linear => warmup.from + (1.0 - warmup.from) * t,
        WarmupForm::Exponential => warmup.from.powf(1.0 - t),
    }
}

fn ramp(ends: Ends, form: RampForm, t: f64) -> f64 {
    if form == RampForm::Exponential {
        let (first, last) = match ends {
            Ends::Peak { peak, floor } => (peak, peak * floor),
            Ends::Between { start, end } => (start, end),
        };
        // Rounding must not lead beyond the end.
        return if t < 1.0 { first * (last / first).powf(t) } else { last };
    }
    let left = match form {
        RampForm::Cosine => 0.5 * (1.0 + (PI * t).cos()),
        RampForm::Polynomial { power } => (1.0 - t).powf(power),
        RampForm::Linear | RampForm::Exponential => 1.0 - t,
    };
    match ends {
        Ends::Peak { peak, floor } => peak * (floor + (1.0 - floor) * left),
        Ends::Between { start, end } => end + (start - end) * left,
    }
}

fn on_points(points: &[(u64, f64)], between: Between, position: u64) -> f64 {
    // The first point is at 0, so one before the partition point exists.
    let after = points.partition_point(|(at, _)| *at <= position);
    let (at, value) = points[after.max(1) - 1];
    match (between, points.get(after)) {
        (Between::Linear, Some((next_at, next))) => {
            let t = (position - at) as f64 / (next_at - at) as f64;
            value + (next - value) * t
        }
        _ => value,
    }
}

//! A value over the run: learning rate, batch size, momentum or weight decay as a function of how far the run is, counted
//! in steps, samples, tokens or epochs. What a schedule says is here; `lockstep_coordinator::plan` computes with it.

/// What a schedule counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Steps that are done.
    Steps,
    /// Samples (sequences) that are consumed.
    Samples,
    /// Tokens that are consumed: samples × `data.sequence_length`.
    Tokens,
    /// Passes over the training data: samples ÷ samples of an epoch.
    Epochs,
}

/// A value over the run. All lengths and positions in it are in its unit: whole numbers of at most 2^53, or of epochs any
/// number.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// What lengths and positions count.
    pub unit: Unit,
    /// The value.
    pub curve: Curve,
}

impl Schedule {
    /// The same value at any time.
    pub fn constant(value: f64) -> Schedule {
        Schedule {
            unit: Unit::Steps,
            curve: Curve {
                warmup: None,
                shape: Shape::Constant { value },
            },
        }
    }
}

/// A shape with what leads up to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Leads from a fraction of the shape's first value to all of it.
    pub warmup: Option<Warmup>,
    /// What comes after the warm-up, counted from its end.
    pub shape: Shape,
}

/// The way up to a shape's first value p. The step that ends at position x of the warm-up of length w takes the fraction
/// x/w of the way: the last one takes p itself, and no step takes 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Warmup {
    /// How long.
    pub length: f64,
    /// Where it begins, as a fraction of p; in (0, 1) where the form is exponential, in [0, 1) where it is linear.
    pub from: f64,
    /// The way.
    pub form: WarmupForm,
}

/// The way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarmupForm {
    /// p·(from + (1 − from)·x/w).
    Linear,
    /// p·from^(1 − x/w).
    Exponential,
}

/// A value by position x, as the step starts.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// One value.
    Constant {
        /// It.
        value: f64,
    },
    /// From one value to another, which then stays.
    Ramp {
        /// From where to where.
        ends: Ends,
        /// The way.
        form: RampForm,
        /// How long it takes; none: what remains of the run, or of the part of a sequence.
        over: Option<f64>,
    },
    /// Stays at the peak, then falls over the last part of the run (or of the part of a sequence).
    WarmupStableDecay {
        /// The value at which it stays.
        peak: f64,
        /// What the decay leads to, as a fraction of the peak; in [0, 1].
        floor: f64,
        /// Fraction of the whole length, warm-up included, that decays; in (0, 1].
        decay: f64,
        /// The way down.
        form: RampForm,
    },
    /// peak·(1 + x/scale)^(−exponent): 1/√t where the exponent is a half.
    Power {
        /// The first value.
        peak: f64,
        /// p of t^(−p), above 0.
        exponent: f64,
        /// What counts as one unit of t; none: 1 step.
        scale: Option<f64>,
        /// The class of problem whose range p is checked against.
        problem: Option<Problem>,
    },
    /// start·factor^⌊x/every⌋, up to a limit.
    Growth {
        /// The first value.
        start: f64,
        /// What each interval multiplies it by.
        factor: f64,
        /// Length of an interval.
        every: f64,
        /// The largest value; where the factor is below 1, the smallest.
        limit: Option<f64>,
    },
    /// Values at positions.
    Points {
        /// `(position, value)`, the first at 0, positions rising; never empty.
        points: Vec<(f64, f64)>,
        /// What holds between two of them.
        between: Between,
    },
    /// One curve after the other, each counted from its own beginning.
    Sequence {
        /// The curves with their lengths; the last one has none and lasts to the end. Never empty.
        parts: Vec<(Curve, Option<f64>)>,
    },
    /// The product of curves. Never empty.
    Product {
        /// The curves.
        factors: Vec<Curve>,
    },
}

/// From where to where a ramp leads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ends {
    /// From a peak down to a fraction of it.
    Peak {
        /// The first value.
        peak: f64,
        /// What it leads to, as a fraction of the peak; in [0, 1].
        floor: f64,
    },
    /// From one value to another, up or down.
    Between {
        /// The first value.
        start: f64,
        /// The last one.
        end: f64,
    },
}

/// The way of a ramp; t in [0, 1] is the fraction that is done, r(t) what is left of the difference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RampForm {
    /// r = 1 − t.
    Linear,
    /// r = (1 + cos πt)/2.
    Cosine,
    /// r = (1 − t)^power.
    Polynomial {
        /// Above 0.
        power: f64,
    },
    /// Equal factors in equal times: first·(last/first)^t. Neither may be 0.
    Exponential,
}

/// What holds between two points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// The value of the earlier one.
    Hold,
    /// A straight line; the last value stays.
    Linear,
}

/// A class of problems for which there is a theorem about step sizes t^(−p) (Hudiani, arXiv 2507.07281).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Problem {
    /// Smooth and convex: p in (1/2, 1), best 2/3.
    SmoothConvex,
    /// Convex with a γ-Hölder gradient: p in (1/(1 + γ), 1).
    Holder {
        /// In (0, 1].
        gamma: f64,
    },
    /// Smooth, not convex: p in (1/2, 1).
    NonConvex,
}

/// How the learning rate follows the batch. Its factor is 1 where the batch has the base size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Coupling {
    /// Not at all.
    None,
    /// batch / base.
    Linear {
        /// The batch for which the schedule is meant.
        base: f64,
    },
    /// √(batch / base).
    SquareRoot {
        /// The batch for which the schedule is meant.
        base: f64,
    },
}

words!(Unit {
    Steps = "steps",
    Samples = "samples",
    Tokens = "tokens",
    Epochs = "epochs",
});
words!(WarmupForm {
    Linear = "linear",
    Exponential = "exponential",
});
words!(Between {
    Hold = "hold",
    Linear = "linear",
});

//! What is known of a schedule before anybody pays for it: the terms of the bound for SGD with momentum, and the conditions of
//! theorems that it does not meet. A warning refuses nothing: it says what was violated, and why that matters.
//!
//! Kondo & Iiduka (arXiv 2508.03105): with rates η_t and batches b_t, the smallest squared gradient norm so far is at most
//! C₁/Σ η + C₂·(Σ η²/b)/Σ η. So Σ η must grow, and faster than Σ η²/b; a constant batch leaves the second term near η/b, and
//! where the batch grows by δ and the rate by γ in the same interval, Σ η²/b stays bounded only if γ² < δ.
//! Hudiani (arXiv 2507.07281): last iterates of SGD and heavy ball with steps t^(−p), for a range of p by class of problem.

use lockstep_config::{BatchSchedule, Curve, Ends, Problem, RunConfig, Schedule, Shape, Unit};

use crate::plan::Planner;

/// More steps than this are not added up.
const MOST_STEPS: u64 = 50_000_000;

/// The sums of the bound, over a whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// Σ η.
    pub rates: f64,
    /// Σ η²/b, b in samples.
    pub squares_by_batch: f64,
}

impl Terms {
    /// The sums of a run; none for one that has too many steps to go through.
    pub fn of(planner: &Planner) -> Option<Terms> {
        if planner.total_steps() > MOST_STEPS {
            return None;
        }
        let mut terms = Terms::default();
        for row in planner.rows() {
            terms.rates += row.plan.learning_rate;
            terms.squares_by_batch += row.plan.learning_rate.powi(2) / row.plan.samples as f64;
        }
        Some(terms)
    }

    /// 1/Σ η: what is left of where the run begins, up to a constant of the problem.
    pub fn start(&self) -> f64 {
        1.0 / self.rates
    }

    /// (Σ η²/b)/Σ η: what noise adds, up to a constant of the problem.
    pub fn noise(&self) -> f64 {
        self.squares_by_batch / self.rates
    }
}

/// A sentence for each condition that the schedules of a config do not meet.
pub fn warnings(config: &RunConfig) -> Vec<String> {
    let mut sentences = Vec::new();
    let rate = &config.learning_rate.schedule;
    let batch = match &config.batch.schedule {
        BatchSchedule::Curve(schedule) => growth(schedule),
        _ => None,
    };
    match (batch, growth(rate)) {
        (Some(batch), Some(rate)) if rate.factor > 1.0 => compare(&batch, &rate, config, &mut sentences),
        (None, Some(rate)) if rate.factor > 1.0 && is_constant(&config.batch.schedule) => sentences.push(format!(
            "the learning rate grows by {} every {} and the batch does not: the noise term (Σ η²/b)/Σ η grows with it. Let the \
             batch grow by more than {:.4} in the same interval",
            rate.factor,
            said(rate.every, rate.unit),
            rate.factor.powi(2)
        )),
        _ => {}
    }
    for curve in curves(&rate.curve) {
        if let Shape::Power {
            exponent,
            problem: Some(problem),
            ..
        } = &curve.shape
        {
            sentences.extend(out_of_range(*exponent, *problem));
        }
    }
    if let Shape::Ramp {
        ends, over: Some(over), ..
    } = &rate.curve.shape
        && vanishes(ends)
        && ends_before_the_run(
            *over + rate.curve.warmup.map_or(0.0, |warmup| warmup.length),
            rate.unit,
            config,
        )
    {
        sentences.push(format!(
            "the learning rate is 0 after {} and the run goes on: its last steps change nothing. Give a floor, or let the decay \
             last to the end (leave `over` out)",
            said(*over, rate.unit)
        ));
    }
    sentences
}

/// Growth that lasts to the end of the run.
struct Growing {
    factor: f64,
    every: f64,
    unit: Unit,
}

fn growth(schedule: &Schedule) -> Option<Growing> {
    match &schedule.curve.shape {
        Shape::Growth { factor, every, .. } => Some(Growing {
            factor: *factor,
            every: *every,
            unit: schedule.unit,
        }),
        _ => None,
    }
}

fn compare(batch: &Growing, rate: &Growing, config: &RunConfig, sentences: &mut Vec<String>) {
    let every = said(batch.every, batch.unit);
    if batch.unit != rate.unit {
        sentences.push(format!(
            "the batch grows every {every} and the learning rate every {}: whether γ² < δ holds cannot be said, since one \
             counts {} and the other {}",
            said(rate.every, rate.unit),
            batch.unit.word(),
            rate.unit.word()
        ));
        return;
    }
    let (delta, gamma) = (batch.factor, rate.factor.powf(batch.every / rate.every));
    if gamma * gamma >= delta {
        sentences.push(format!(
            "in {every} the batch grows by δ = {delta} and the learning rate by γ = {gamma:.4}: γ² = {:.4} is not below δ, so \
             Σ η²/b grows as fast as Σ η or faster and the noise term does not vanish. Let the rate grow by less than {:.4}",
            gamma * gamma,
            delta.sqrt()
        ));
    }
    let momentum = config.optimizer.momentum;
    if config.optimizer.may_change_momentum().is_ok() && gamma * momentum * momentum >= 1.0 {
        sentences.push(format!(
            "the learning rate grows by γ = {gamma:.4} with a momentum of {momentum}: γ·β² = {:.4} is not below 1, which the \
             authors' experiments keep it at by a smaller momentum (0.87 in place of 0.9)",
            gamma * momentum * momentum
        ));
    }
}

fn is_constant(batch: &BatchSchedule) -> bool {
    match batch {
        BatchSchedule::Constant { .. } => true,
        BatchSchedule::Steps { sizes } => sizes.len() == 1,
        BatchSchedule::Curve(schedule) => matches!(schedule.curve.shape, Shape::Constant { .. }),
    }
}

fn out_of_range(p: f64, problem: Problem) -> Option<String> {
    let (low, class) = match problem {
        Problem::SmoothConvex => (0.5, "smooth convex problems"),
        Problem::NonConvex => (0.5, "smooth non-convex problems"),
        Problem::Holder { gamma } => (1.0 / (1.0 + gamma), "problems with a Hölder gradient"),
    };
    // At γ = 0.6 and p = 5/8 the bound must not be met by rounding.
    let is_inside = p > low * (1.0 + 1e-12) && p < 1.0;
    (!is_inside).then(|| {
        let best = match problem {
            Problem::SmoothConvex => " (2/3 gives the best rate)",
            _ => "",
        };
        format!(
            "the step sizes fall as t^(−{p}): the theorem about the last iterate on {class} is for p above {low:.4} and below \
             1{best}. Smaller p leave the noise standing, larger ones stop before the minimum"
        )
    })
}

/// A curve and all inside it.
fn curves(curve: &Curve) -> Vec<&Curve> {
    let mut all = vec![curve];
    match &curve.shape {
        Shape::Sequence { parts } => all.extend(parts.iter().flat_map(|(part, _)| curves(part))),
        Shape::Product { factors } => all.extend(factors.iter().flat_map(curves)),
        _ => {}
    }
    all
}

fn vanishes(ends: &Ends) -> bool {
    match *ends {
        Ends::Peak { floor, .. } => floor == 0.0,
        Ends::Between { end, .. } => end == 0.0,
    }
}

fn ends_before_the_run(at: f64, unit: Unit, config: &RunConfig) -> bool {
    use lockstep_config::Length;
    match (unit, config.run.length) {
        (Unit::Steps, Length::Steps(steps)) => at < steps as f64,
        (Unit::Samples, Length::Samples(samples)) => at < samples as f64,
        (Unit::Tokens, Length::Tokens(tokens)) => at < tokens as f64,
        (Unit::Epochs, Length::Epochs(epochs)) => at < epochs,
        _ => false,
    }
}

/// As "30 epochs".
fn said(length: f64, unit: Unit) -> String {
    let word = unit.word();
    let word = if length == 1.0 {
        word.trim_end_matches('s')
    } else {
        word
    };
    format!("{length} {word}")
}

//! Schedules as inline tables of TOML. A learning rate of a kind that there was from the first version on is written as it
//! was then, so that the hash of a config stays.

use crate::sections::*;
use crate::write::number;

/// The table of a schedule; `is_rate` where the warm-up is always written.
pub(super) fn table(schedule: &Schedule, is_rate: bool) -> String {
    let unit = match schedule.unit {
        Unit::Steps => String::new(),
        unit => format!("unit = \"{}\", ", unit.word()),
    };
    let curve = keys(&schedule.curve, schedule.unit, is_rate);
    format!("{{ {unit}{curve} }}")
}

fn keys(curve: &Curve, unit: Unit, has_warmup: bool) -> String {
    let length = |value: f64| length(value, unit);
    let warmup = match curve.warmup {
        None if has_warmup => ", warmup = 0".to_owned(),
        None => String::new(),
        Some(warmup) => {
            let from = match warmup.from {
                0.0 => String::new(),
                from => format!(", warmup_from = {}", number(from)),
            };
            let form = match warmup.form {
                WarmupForm::Linear => String::new(),
                form => format!(", warmup_kind = \"{}\"", form.word()),
            };
            format!(", warmup = {}{from}{form}", length(warmup.length))
        }
    };
    let optional = |key: &str, value: Option<String>| value.map_or(String::new(), |value| format!(", {key} = {value}"));
    match &curve.shape {
        Shape::Constant { value } => format!("kind = \"constant\", peak = {}{warmup}", number(*value)),
        Shape::Ramp { ends, form, over } => {
            let (kind, power) = ramp(*form);
            let over = optional("over", over.map(length));
            match *ends {
                Ends::Peak { peak, floor } => format!(
                    "kind = \"{kind}\", peak = {}{warmup}, floor = {}{power}{over}",
                    number(peak),
                    number(floor)
                ),
                Ends::Between { start, end } => format!(
                    "kind = \"{kind}\", start = {}, end = {}{warmup}{power}{over}",
                    number(start),
                    number(end)
                ),
            }
        }
        Shape::WarmupStableDecay {
            peak,
            floor,
            decay,
            form,
        } => {
            let (kind, power) = ramp(*form);
            let kind = match form {
                RampForm::Linear => String::new(),
                _ => format!(", decay_kind = \"{kind}\"{power}"),
            };
            format!(
                "kind = \"warmup-stable-decay\", peak = {}{warmup}, floor = {}, decay = {}{kind}",
                number(*peak),
                number(*floor),
                number(*decay)
            )
        }
        Shape::Power {
            peak,
            exponent,
            scale,
            problem,
        } => {
            let scale = optional("scale", scale.map(length));
            let problem = match problem {
                None => String::new(),
                Some(Problem::SmoothConvex) => ", problem = \"smooth-convex\"".to_owned(),
                Some(Problem::NonConvex) => ", problem = \"non-convex\"".to_owned(),
                Some(Problem::Holder { gamma }) => format!(", problem = \"holder\", gamma = {}", number(*gamma)),
            };
            format!(
                "kind = \"power\", peak = {}{warmup}, exponent = {}{scale}{problem}",
                number(*peak),
                number(*exponent)
            )
        }
        Shape::Growth {
            start,
            factor,
            every,
            limit,
        } => {
            let key = if *factor < 1.0 { "min" } else { "max" };
            format!(
                "kind = \"growth\", start = {}{warmup}, factor = {}, every = {}{}",
                number(*start),
                number(*factor),
                length(*every),
                optional(key, limit.map(number))
            )
        }
        Shape::Points { points, between } => {
            let points: Vec<String> = points
                .iter()
                .map(|(at, value)| format!("[{}, {}]", length(*at), number(*value)))
                .collect();
            let between = match between {
                Between::Hold => String::new(),
                between => format!(", between = \"{}\"", between.word()),
            };
            format!(
                "kind = \"piecewise\", points = [{}]{between}{warmup}",
                points.join(", ")
            )
        }
        Shape::Sequence { parts } => {
            let parts: Vec<String> = parts
                .iter()
                .map(|(curve, lasts)| {
                    let lasts = optional("for", lasts.map(length));
                    format!("{{ {}{lasts} }}", keys(curve, unit, false))
                })
                .collect();
            format!("kind = \"sequence\", parts = [{}]{warmup}", parts.join(", "))
        }
        Shape::Product { factors } => {
            let factors: Vec<String> = factors
                .iter()
                .map(|factor| format!("{{ {} }}", keys(factor, unit, false)))
                .collect();
            format!("kind = \"product\", factors = [{}]{warmup}", factors.join(", "))
        }
    }
}

/// The word of a way, and its power where it has one.
fn ramp(form: RampForm) -> (&'static str, String) {
    match form {
        RampForm::Linear => ("linear", String::new()),
        RampForm::Cosine => ("cosine", String::new()),
        RampForm::Polynomial { power } => ("polynomial", format!(", power = {}", number(power))),
        RampForm::Exponential => ("exponential", String::new()),
    }
}

/// Lengths in epochs may be fractions; all others are whole.
fn length(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Epochs => number(value),
        _ => format!("{value:.0}"),
    }
}

//! `[schedule]`: batch and learning rate together, as one of the four families of Kondo & Iiduka (arXiv 2508.03105). A family
//! is a short way to say `batch.schedule` and `learning_rate.schedule`, and nothing is kept of it but these two.

use toml::Value;

use crate::error::ConfigError;
use crate::fields::Fields;
use crate::read::schedule::{BATCH, RATE, length};
use crate::sections::*;

/// The four families.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    /// (i) A constant batch, a rate that decays.
    ConstantBatch,
    /// (ii) A batch that grows, a rate that decays.
    GrowingBatch,
    /// (iii) A batch that grows, a rate that grows.
    GrowingRate,
    /// (iv) A batch that grows, a rate that grows at first and decays then.
    WarmUp,
}

const FAMILIES: &[(&str, Family)] = &[
    ("constant-batch", Family::ConstantBatch),
    ("growing-batch", Family::GrowingBatch),
    ("growing-rate", Family::GrowingRate),
    ("warm-up", Family::WarmUp),
];

/// The schedules of batch and learning rate that a family means; none where there is no `[schedule]`.
pub(super) fn read(mut fields: Fields<'_>) -> Result<Option<(BatchSchedule, Schedule)>, ConfigError> {
    if fields.is_empty() {
        return Ok(None);
    }
    let family = fields.word("family", FAMILIES, None)?;
    let unit = fields.word("unit", Unit::WORDS, Some(Unit::Epochs))?;
    let first_batch = fields.number("batch", None, BATCH.expected, BATCH.is_allowed)?;
    let first_rate = fields.number("rate", None, RATE.expected, RATE.is_allowed)?;
    let of = |shape| Schedule {
        unit,
        curve: plain(shape),
    };
    let (batch, every) = match family {
        Family::ConstantBatch => {
            // At most what a batch may be, which is far below 2^53.
            let size = first_batch.ceil() as u64;
            (BatchSchedule::Constant { size }, None)
        }
        _ => {
            let every = length(&mut fields, "every", unit)?;
            let growing = growing_batch(&mut fields, first_batch, every)?;
            (BatchSchedule::Curve(of(growing)), Some(every))
        }
    };
    let rate = match (family, every) {
        (Family::GrowingRate, Some(every)) => Shape::Growth {
            start: first_rate,
            factor: fields.number("rate_factor", None, "a number above 1", |x| x > 1.0)?,
            every,
            limit: fields.optional_number("rate_max", "a number of at least `rate`", |x| x >= first_rate)?,
        },
        (Family::WarmUp, _) => warm_up(&mut fields, unit, first_rate)?,
        _ => decay(&mut fields, unit, first_rate)?,
    };
    fields.done()?;
    Ok(Some((batch, of(rate))))
}

fn plain(shape: Shape) -> Curve {
    Curve { warmup: None, shape }
}

/// δ^⌊x/every⌋ times the first batch.
fn growing_batch(fields: &mut Fields<'_>, start: f64, every: f64) -> Result<Shape, ConfigError> {
    let is_larger = |x: f64| (BATCH.is_allowed)(x) && x >= start;
    Ok(Shape::Growth {
        start,
        factor: fields.number("batch_factor", Some(2.0), "a number above 1", |x| x > 1.0)?,
        every,
        limit: Some(fields.number("batch_max", None, "a number of samples, at least `batch`", is_larger)?),
    })
}

/// From `rate` to `rate_max` in equal factors, one every `warmup_every`, so that the last interval of the warm-up has all of it;
/// then the decay.
fn warm_up(fields: &mut Fields<'_>, unit: Unit, start: f64) -> Result<Shape, ConfigError> {
    let most = fields.number("rate_max", None, "a number above `rate`", |x| x > start)?;
    let every = length(fields, "warmup_every", unit)?;
    let lasts = length(fields, "warmup", unit)?;
    if lasts <= every {
        let expected = "longer than `warmup_every`: the rate grows at the end of each interval but the last";
        return Err(fields.refuse("warmup", &Value::Float(lasts), expected));
    }
    let rising = Shape::Growth {
        start,
        factor: (most / start).powf(every / (lasts - every)),
        every,
        limit: Some(most),
    };
    let falling = decay(fields, unit, most)?;
    Ok(Shape::Sequence {
        parts: vec![(plain(rising), Some(lasts)), (plain(falling), None)],
    })
}

fn decay(fields: &mut Fields<'_>, unit: Unit, peak: f64) -> Result<Shape, ConfigError> {
    #[derive(Clone, Copy)]
    enum Decay {
        Constant,
        InverseSquareRoot,
        Ramp(RampForm),
    }
    const DECAYS: &[(&str, Decay)] = &[
        ("constant", Decay::Constant),
        ("inverse-sqrt", Decay::InverseSquareRoot),
        ("cosine", Decay::Ramp(RampForm::Cosine)),
        ("linear", Decay::Ramp(RampForm::Linear)),
        ("polynomial", Decay::Ramp(RampForm::Polynomial { power: 2.0 })),
    ];
    Ok(match fields.word("decay", DECAYS, Some(Decay::Constant))? {
        Decay::Constant => Shape::Constant { value: peak },
        Decay::InverseSquareRoot => Shape::Power {
            peak,
            exponent: 0.5,
            scale: match unit {
                Unit::Steps => None,
                _ => Some(length(fields, "decay_scale", unit)?),
            },
            problem: None,
        },
        Decay::Ramp(form) => Shape::Ramp {
            ends: Ends::Peak { peak, floor: 0.0 },
            form,
            over: None,
        },
    })
}

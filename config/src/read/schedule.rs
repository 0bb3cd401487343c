//! Schedules: a number, or an inline table whose `kind` says which further keys it has.

use toml::Value;

use crate::error::ConfigError;
use crate::fields::{Fields, finite, integer_in};
use crate::sections::*;

/// The largest whole length: beyond it a float64 no longer counts by ones.
const LONGEST: u64 = 1 << 53;
/// Points of a table: more would make every message that carries the config a large one.
const MOST_POINTS: usize = 10_000;
/// Curves inside of curves.
const DEEPEST: u32 = 8;
/// Parts of a sequence, factors of a product.
const MOST_PARTS: usize = 256;

const FACTOR: &str = "a number above 0";
const LEAST: &str = "a number of at least 0";

/// What is scheduled: which values it may have, and what errors say of them.
pub(super) struct Quantity {
    /// The values, in words.
    pub(super) expected: &'static str,
    /// Whether a value is one of them.
    pub(super) is_allowed: fn(f64) -> bool,
    /// Whether a decay may lead to 0.
    pub(super) may_vanish: bool,
    /// Whether growth may go on for ever, and factors be of any size.
    pub(super) is_open: bool,
}

/// The learning rate.
pub(super) const RATE: Quantity = Quantity {
    expected: "a number above 0",
    is_allowed: |value| value > 0.0,
    may_vanish: true,
    is_open: true,
};
/// The batch, in samples.
pub(super) const BATCH: Quantity = Quantity {
    expected: "a number of samples from 1 to 16777216",
    is_allowed: |value| (1.0..=16_777_216.0).contains(&value),
    may_vanish: false,
    is_open: false,
};
/// The momentum.
pub(super) const MOMENTUM: Quantity = Quantity {
    expected: "a number of at least 0 and below 1",
    is_allowed: |value| (0.0..1.0).contains(&value),
    may_vanish: true,
    is_open: false,
};
/// The weight decay.
pub(super) const WEIGHT_DECAY: Quantity = Quantity {
    expected: "a number of at least 0",
    is_allowed: |value| value >= 0.0,
    may_vanish: true,
    is_open: true,
};

/// The schedule under `key`, if it is there.
pub(super) fn optional(
    fields: &mut Fields<'_>,
    key: &'static str,
    quantity: &Quantity,
) -> Result<Option<Schedule>, ConfigError> {
    match fields.take(key) {
        None => Ok(None),
        Some(Value::Table(table)) => {
            let mut inner = Fields::new(fields.origin(), fields.dotted(key), table);
            let schedule = schedule(&mut inner, quantity)?;
            inner.done()?;
            Ok(Some(schedule))
        }
        Some(value) => match finite(&value) {
            Some(number) if (quantity.is_allowed)(number) => Ok(Some(Schedule::constant(number))),
            _ => {
                let expected = format!(
                    "{}, or a table such as {{ kind = \"cosine\", peak = …, … }}",
                    quantity.expected
                );
                Err(fields.refuse(key, &value, expected))
            }
        },
    }
}

/// A schedule whose keys are these fields.
pub(super) fn schedule(fields: &mut Fields<'_>, quantity: &Quantity) -> Result<Schedule, ConfigError> {
    let unit = fields.word("unit", Unit::WORDS, Some(Unit::Steps))?;
    let curve = curve(fields, unit, quantity, DEEPEST)?;
    Ok(Schedule { unit, curve })
}

type Build = fn(&mut Fields<'_>, Unit, &Quantity, u32) -> Result<Shape, ConfigError>;

const KINDS: &[(&str, Build)] = &[
    ("constant", constant),
    ("cosine", |fields, unit, quantity, _| {
        ramp(fields, unit, quantity, RampForm::Cosine)
    }),
    ("linear", |fields, unit, quantity, _| {
        ramp(fields, unit, quantity, RampForm::Linear)
    }),
    ("polynomial", |fields, unit, quantity, _| {
        let form = polynomial(fields)?;
        ramp(fields, unit, quantity, form)
    }),
    ("exponential", |fields, unit, quantity, _| {
        ramp(fields, unit, quantity, RampForm::Exponential)
    }),
    ("warmup-stable-decay", warmup_stable_decay),
    ("inverse-sqrt", |fields, unit, quantity, _| {
        power(fields, unit, quantity, Some(0.5))
    }),
    ("power", |fields, unit, quantity, _| power(fields, unit, quantity, None)),
    ("growth", growth),
    ("piecewise", piecewise),
    ("table", table),
    ("sequence", sequence),
    ("product", product),
];

fn curve(fields: &mut Fields<'_>, unit: Unit, quantity: &Quantity, deepest: u32) -> Result<Curve, ConfigError> {
    let build = fields.word("kind", KINDS, None)?;
    let warmup = warmup(fields, unit)?;
    let shape = build(fields, unit, quantity, deepest)?;
    Ok(Curve { warmup, shape })
}

fn warmup(fields: &mut Fields<'_>, unit: Unit) -> Result<Option<Warmup>, ConfigError> {
    let length = optional_length(fields, "warmup", unit, 0)?;
    let Some(length) = length.filter(|length| *length > 0.0) else {
        return Ok(None);
    };
    let form = fields.word("warmup_kind", WarmupForm::WORDS, Some(WarmupForm::Linear))?;
    let from = match form {
        WarmupForm::Linear => fields.number(
            "warmup_from",
            Some(0.0),
            "a fraction of the first value: at least 0 and below 1",
            |from| (0.0..1.0).contains(&from),
        )?,
        WarmupForm::Exponential => fields.number(
            "warmup_from",
            None,
            "a fraction of the first value: above 0 and below 1",
            |from| from > 0.0 && from < 1.0,
        )?,
    };
    Ok(Some(Warmup { length, from, form }))
}

fn value(fields: &mut Fields<'_>, key: &'static str, quantity: &Quantity) -> Result<f64, ConfigError> {
    fields.number(key, None, quantity.expected, quantity.is_allowed)
}

/// The first value of a shape.
fn peak(fields: &mut Fields<'_>, quantity: &Quantity) -> Result<f64, ConfigError> {
    value(fields, "peak", quantity)
}

fn constant(fields: &mut Fields<'_>, _: Unit, quantity: &Quantity, _: u32) -> Result<Shape, ConfigError> {
    Ok(Shape::Constant {
        value: peak(fields, quantity)?,
    })
}

fn floor(fields: &mut Fields<'_>) -> Result<f64, ConfigError> {
    fields.number("floor", Some(0.0), "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))
}

fn polynomial(fields: &mut Fields<'_>) -> Result<RampForm, ConfigError> {
    let power = fields.number("power", Some(2.0), FACTOR, |x| x > 0.0)?;
    Ok(RampForm::Polynomial { power })
}

fn ramp(fields: &mut Fields<'_>, unit: Unit, quantity: &Quantity, form: RampForm) -> Result<Shape, ConfigError> {
    // Not a value of the run itself where it stands at the end: an end of 0 is as good as any.
    let end = |value: f64| (quantity.is_allowed)(value) || (quantity.may_vanish && value == 0.0);
    let ends = match fields.peek("start") {
        Some(_) => Ends::Between {
            start: fields.number("start", None, quantity.expected, end)?,
            end: fields.number("end", None, quantity.expected, end)?,
        },
        None => Ends::Peak {
            peak: peak(fields, quantity)?,
            floor: floor(fields)?,
        },
    };
    let (lowest, key) = match ends {
        Ends::Between { start, end } => (start.min(end), "end"),
        Ends::Peak { peak, floor } => (peak * floor, "floor"),
    };
    if form == RampForm::Exponential && lowest <= 0.0 {
        return Err(fields.refuse_with(
            key,
            &Value::Float(lowest),
            "above 0: equal factors never lead to 0",
            "give an end above 0, or take kind = \"linear\" or \"cosine\"",
        ));
    }
    if !quantity.may_vanish && lowest < 1.0 {
        return Err(fields.refuse(key, &Value::Float(lowest), quantity.expected));
    }
    let over = optional_length(fields, "over", unit, 1)?;
    Ok(Shape::Ramp { ends, form, over })
}

fn warmup_stable_decay(fields: &mut Fields<'_>, _: Unit, quantity: &Quantity, _: u32) -> Result<Shape, ConfigError> {
    let forms: &[(&str, RampForm)] = &[
        ("linear", RampForm::Linear),
        ("cosine", RampForm::Cosine),
        ("polynomial", RampForm::Polynomial { power: 2.0 }),
    ];
    let peak = peak(fields, quantity)?;
    let floor = floor(fields)?;
    let decay = fields.number(
        "decay",
        Some(0.2),
        "a fraction of the run, above 0 and at most 1",
        |x| x > 0.0 && x <= 1.0,
    )?;
    let form = match fields.word("decay_kind", forms, Some(RampForm::Linear))? {
        RampForm::Polynomial { .. } => polynomial(fields)?,
        form => form,
    };
    if !quantity.may_vanish && peak * floor < 1.0 {
        return Err(fields.refuse("floor", &Value::Float(floor), quantity.expected));
    }
    Ok(Shape::WarmupStableDecay {
        peak,
        floor,
        decay,
        form,
    })
}

fn power(
    fields: &mut Fields<'_>,
    unit: Unit,
    quantity: &Quantity,
    exponent: Option<f64>,
) -> Result<Shape, ConfigError> {
    let peak = peak(fields, quantity)?;
    let exponent = match exponent {
        Some(exponent) => exponent,
        None => fields.number("exponent", None, FACTOR, |x| x > 0.0)?,
    };
    let scale = match unit {
        Unit::Steps => optional_length(fields, "scale", unit, 1)?,
        _ => Some(length(fields, "scale", unit)?),
    };
    let classes: &[(&str, Problem)] = &[
        ("smooth-convex", Problem::SmoothConvex),
        ("holder", Problem::Holder { gamma: 1.0 }),
        ("non-convex", Problem::NonConvex),
    ];
    let problem = match fields.peek("problem") {
        None => None,
        Some(_) => Some(match fields.word("problem", classes, None)? {
            Problem::Holder { .. } => Problem::Holder {
                gamma: fields.number("gamma", None, "a number above 0 and at most 1", |x| x > 0.0 && x <= 1.0)?,
            },
            other => other,
        }),
    };
    Ok(Shape::Power {
        peak,
        exponent,
        scale,
        problem,
    })
}

fn growth(fields: &mut Fields<'_>, unit: Unit, quantity: &Quantity, _: u32) -> Result<Shape, ConfigError> {
    let start = value(fields, "start", quantity)?;
    let factor = fields.number("factor", None, FACTOR, |x| x > 0.0)?;
    let every = length(fields, "every", unit)?;
    let key = if factor < 1.0 { "min" } else { "max" };
    let limit = fields.optional_number(key, quantity.expected, quantity.is_allowed)?;
    let leads_away = |limit: f64| (factor < 1.0) == (limit > start) && limit != start;
    match limit {
        Some(limit) if factor != 1.0 && leads_away(limit) => {
            let side = if factor < 1.0 { "at most" } else { "at least" };
            Err(fields.refuse(key, &Value::Float(limit), format!("{side} `start`, which is {start}")))
        }
        None if !quantity.is_open && factor != 1.0 => Err(fields.missing(key, quantity.expected)),
        limit => Ok(Shape::Growth {
            start,
            factor,
            every,
            limit,
        }),
    }
}

fn between(fields: &mut Fields<'_>) -> Result<Between, ConfigError> {
    fields.word("between", Between::WORDS, Some(Between::Hold))
}

fn piecewise(fields: &mut Fields<'_>, unit: Unit, quantity: &Quantity, _: u32) -> Result<Shape, ConfigError> {
    const KEY: &str = "points";
    let expected = format!(
        "a list of [position, value] pairs such as [[0, 1e-3], [100, 5e-4]], at most {MOST_POINTS}, the first at 0, the \
         positions rising, each value {}",
        quantity.expected
    );
    let Some(value) = fields.take(KEY) else {
        return Err(fields.missing(KEY, expected));
    };
    let pair = |pair: &Value| match pair.as_array().map(Vec::as_slice) {
        Some([at, value]) => Some((amount(at, unit, 0)?, finite(value)?)),
        _ => None,
    };
    let points: Option<Vec<(f64, f64)>> = value.as_array().and_then(|list| list.iter().map(pair).collect());
    match points {
        Some(points) if are_points(&points, quantity) => Ok(Shape::Points {
            points,
            between: between(fields)?,
        }),
        _ => Err(fields.refuse(KEY, &value, expected)),
    }
}

fn are_points(points: &[(f64, f64)], quantity: &Quantity) -> bool {
    let is_allowed = |value: f64| (quantity.is_allowed)(value) || (quantity.may_vanish && value == 0.0);
    points.len() <= MOST_POINTS
        && points.first().is_some_and(|first| first.0 == 0.0)
        && points.windows(2).all(|two| two[0].0 < two[1].0)
        && points.iter().all(|point| is_allowed(point.1))
}

/// The points of a file: two columns, position and value, apart by a comma or by space. A first line of words is a header, and
/// what follows a `#` is a remark.
fn table(fields: &mut Fields<'_>, unit: Unit, quantity: &Quantity, _: u32) -> Result<Shape, ConfigError> {
    const KEY: &str = "file";
    const EXPECTED: &str = "the path of a text file with two columns, position and value";
    let Some(file) = fields.optional_text(KEY, EXPECTED)? else {
        return Err(fields.missing(KEY, EXPECTED));
    };
    let refuse = |reason: String| {
        let advice = format!("{reason}; mend the file or name another one");
        fields.refuse_with(KEY, &Value::String(file.clone()), EXPECTED, advice)
    };
    let text = std::fs::read_to_string(&file).map_err(|error| refuse(format!("it cannot be read: {error}")))?;
    let mut points = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let words: Vec<&str> = line
            .split(|c: char| c == ',' || c.is_whitespace())
            .filter(|word| !word.is_empty())
            .collect();
        let numbers: Option<Vec<f64>> = words.iter().map(|word| word.parse().ok()).collect();
        let is_whole = |at: f64| unit == Unit::Epochs || (at.fract() == 0.0 && at <= LONGEST as f64);
        match numbers.as_deref() {
            Some([]) => {}
            Some(&[at, value]) if at.is_finite() && at >= 0.0 && is_whole(at) && value.is_finite() => {
                points.push((at, value));
            }
            None if number == 0 => {}
            _ => return Err(refuse(format!("its line {} is `{line}`", number + 1))),
        }
    }
    if !are_points(&points, quantity) {
        let reason = format!(
            "it has {} points; there must be 1 to {MOST_POINTS}, the first at 0, positions rising, each value {}",
            points.len(),
            quantity.expected
        );
        return Err(refuse(reason));
    }
    Ok(Shape::Points {
        points,
        between: between(fields)?,
    })
}

fn sequence(fields: &mut Fields<'_>, unit: Unit, quantity: &Quantity, deepest: u32) -> Result<Shape, ConfigError> {
    const KEY: &str = "parts";
    let mut parts = Vec::new();
    let all = inner_tables(fields, KEY, deepest)?;
    let last = all.len() - 1;
    for (index, mut inner) in all.into_iter().enumerate() {
        let curve = curve(&mut inner, unit, quantity, deepest - 1)?;
        let lasts = match index == last {
            true => None,
            false => Some(length(&mut inner, "for", unit)?),
        };
        inner.done()?;
        parts.push((curve, lasts));
    }
    Ok(Shape::Sequence { parts })
}

fn product(fields: &mut Fields<'_>, unit: Unit, quantity: &Quantity, deepest: u32) -> Result<Shape, ConfigError> {
    const KEY: &str = "factors";
    if !quantity.is_open {
        let kind = Value::String("product".to_owned());
        let expected = "a kind whose values are known to be in range";
        return Err(fields.refuse_with(
            "kind",
            &kind,
            expected,
            "say the values themselves, as a sequence or piecewise",
        ));
    }
    let factor = Quantity {
        expected: LEAST,
        is_allowed: |value| value >= 0.0,
        may_vanish: true,
        is_open: true,
    };
    let mut factors = Vec::new();
    for mut inner in inner_tables(fields, KEY, deepest)? {
        factors.push(curve(&mut inner, unit, &factor, deepest - 1)?);
        inner.done()?;
    }
    Ok(Shape::Product { factors })
}

/// The tables of a list of curves.
fn inner_tables<'a>(fields: &mut Fields<'a>, key: &'static str, deepest: u32) -> Result<Vec<Fields<'a>>, ConfigError> {
    let expected =
        format!("a list of 1 to {MOST_PARTS} tables, each a schedule such as {{ kind = \"constant\", peak = … }}");
    let Some(value) = fields.take(key) else {
        return Err(fields.missing(key, expected));
    };
    if deepest == 0 {
        let advice = format!("schedules may stand at most {DEEPEST} deep in each other");
        return Err(fields.refuse_with(key, &value, "a simpler schedule", advice));
    }
    let list = value.as_array().filter(|list| (1..=MOST_PARTS).contains(&list.len()));
    let tables = list.and_then(|list| {
        list.iter()
            .map(|part| part.as_table().cloned())
            .collect::<Option<Vec<_>>>()
    });
    let Some(tables) = tables else {
        return Err(fields.refuse(key, &value, expected));
    };
    let (origin, dotted) = (fields.origin(), fields.dotted(key));
    let inner = |(index, table)| Fields::new(origin, format!("{dotted}.{index}"), table);
    Ok(tables.into_iter().enumerate().map(inner).collect())
}

/// A length or position, at least `least`.
fn amount(value: &Value, unit: Unit, least: u64) -> Option<f64> {
    match unit {
        Unit::Epochs => finite(value).filter(|amount| *amount >= 0.0 && (least == 0 || *amount > 0.0)),
        _ => integer_in(value, &(least..=LONGEST)).map(|amount| amount as f64),
    }
}

fn optional_length(
    fields: &mut Fields<'_>,
    key: &'static str,
    unit: Unit,
    least: u64,
) -> Result<Option<f64>, ConfigError> {
    let Some(value) = fields.take(key) else {
        return Ok(None);
    };
    match amount(&value, unit, least) {
        Some(amount) => Ok(Some(amount)),
        None => Err(fields.refuse(key, &value, expected_length(unit))),
    }
}

/// A length that must be there.
pub(super) fn length(fields: &mut Fields<'_>, key: &'static str, unit: Unit) -> Result<f64, ConfigError> {
    optional_length(fields, key, unit, 1)?.ok_or_else(|| fields.missing(key, expected_length(unit)))
}

fn expected_length(unit: Unit) -> String {
    match unit {
        Unit::Epochs => "a number of epochs".to_owned(),
        unit => format!("a whole number of {} up to {LONGEST}", unit.word()),
    }
}

//! `[optimizer]`: which keys go with which method, their defaults, and what is refused with the reason.
//!
//! Way of data: the method first (by name, or by its three words); then every key either belongs to it and is read, or is
//! refused; last, what breaks the model of the loss is refused where there is one.

mod rules;

use toml::{Table, Value};

use super::{POSITIVE, UNIT};
use crate::error::ConfigError;
use crate::fields::{Fields, finite};
use crate::sections::*;

const NOT_NEGATIVE: &str = "a number of at least 0";
const REMOVE: &str = "take the key out, or choose another optimizer.method";
const REMOVE_POLAR: &str = "take the key out, or choose another optimizer.polar.method";

impl OptimizerSection {
    /// Reads the table `[optimizer]` alone. `origin` names it in errors; `run_precision` is the default of
    /// `polar.precision`.
    ///
    /// # Errors
    /// Unknown keys, values out of their range, keys that do not go together.
    pub fn parse(table: Table, origin: &str, run_precision: Precision) -> Result<OptimizerSection, ConfigError> {
        read(Fields::new(origin, "optimizer".to_owned(), table), run_precision)
    }
}

pub(super) fn read(mut fields: Fields<'_>, run_precision: Precision) -> Result<OptimizerSection, ConfigError> {
    let method = method(&mut fields)?;
    let betas = betas_of(&mut fields, method)?;
    let (betas, momentum) = moments(&mut fields, method, betas)?;
    let orthogonalises = method.orthogonalises();
    let section = OptimizerSection {
        method,
        momentum,
        nesterov: nesterov(&mut fields, method)?,
        normalized: normalized(&mut fields, method)?,
        betas,
        epsilon: epsilon(&mut fields, method)?,
        weight_decay: fields.number("weight_decay", Some(0.0), NOT_NEGATIVE, |x| x >= 0.0)?,
        cautious: fields.boolean("cautious", false)?,
        hidden_scale: hidden_scale(&mut fields, method)?,
        scaling: scaling(&mut fields, method)?,
        clip_norm: fields.optional_number("clip_norm", POSITIVE, |x| x > 0.0)?,
        polar: match orthogonalises {
            true => polar(fields.section("polar")?, run_precision)?,
            false => {
                absent(&mut fields, "polar", "this method orthogonalises nothing")?;
                PolarSection {
                    method: PolarMethod::PolarExpress,
                    steps: 5,
                    precision: run_precision,
                }
            }
        },
        momo: momo(&mut fields, method)?,
        hidden: rules::hidden(&mut fields, orthogonalises)?,
        groups: match method {
            Method::Momo | Method::MomoAdam => {
                absent(
                    &mut fields,
                    "groups",
                    "this method has one step size and one decay for all tensors",
                )?;
                Vec::new()
            }
            _ => rules::groups(&mut fields)?,
        },
    };
    keeps_the_model(&fields, &section)?;
    fields.done()?;
    Ok(section)
}

/// Refuses a key that does not belong to the method.
fn absent(fields: &mut Fields<'_>, key: &'static str, reason: &str) -> Result<(), ConfigError> {
    absent_or(fields, key, reason, REMOVE)
}

/// As [`absent`], with advice of its own.
fn absent_or(fields: &mut Fields<'_>, key: &'static str, reason: &str, advice: &str) -> Result<(), ConfigError> {
    match fields.take(key) {
        None => Ok(()),
        Some(value) => Err(fields.refuse_with(key, &value, format!("absent: {reason}"), advice)),
    }
}

fn method(fields: &mut Fields<'_>) -> Result<Method, ConfigError> {
    const CHOICES: [&str; 3] = ["descent", "product", "other"];
    let given = CHOICES.into_iter().find(|key| fields.peek(key).is_some());
    let Some(given) = given else {
        // The three count as known where a name is near to them.
        for key in CHOICES {
            fields.take(key);
        }
        return fields.word("method", Method::WORDS, Some(Method::Muon));
    };
    if let Some(name) = fields.peek("method").cloned() {
        return Err(fields.refuse_with(
            "method",
            &name,
            format!("absent where `optimizer.{given}` is given"),
            "name the method, or spell it out by descent, product and other, not both",
        ));
    }
    fields.take("method");
    let mut descents = Descent::WORDS.to_vec();
    descents.push(("regularised", Descent::Regularized));
    Ok(Method::Steepest(Steepest {
        descent: fields.word("descent", &descents, None)?,
        product: fields.word("product", Product::WORDS, None)?,
        other: fields.word("other", OtherNorm::WORDS, None)?,
    }))
}

fn betas_of(fields: &mut Fields<'_>, method: Method) -> Result<Option<[f64; 2]>, ConfigError> {
    const KEY: &str = "betas";
    if matches!(method, Method::Sgd | Method::Momo) {
        absent(
            fields,
            KEY,
            "this method has no second moment; its decay rate is optimizer.momentum",
        )?;
    }
    let Some(value) = fields.take(KEY) else {
        return Ok(None);
    };
    let numbers: Option<Vec<f64>> = value.as_array().and_then(|list| list.iter().map(finite).collect());
    match numbers.as_deref() {
        Some(&[first, second]) if (0.0..1.0).contains(&first) && (0.0..1.0).contains(&second) => {
            Ok(Some([first, second]))
        }
        _ => Err(fields.refuse(
            KEY,
            &value,
            "two numbers of at least 0 and below 1, such as [0.9, 0.95]",
        )),
    }
}

/// Decay rates of the moments. Members of the family have one momentum for all tensors unless both are given.
fn moments(fields: &mut Fields<'_>, method: Method, betas: Option<[f64; 2]>) -> Result<([f64; 2], f64), ConfigError> {
    const KEY: &str = "momentum";
    if matches!(method, Method::AdamW | Method::MomoAdam) {
        absent(fields, KEY, "the first moment decays by optimizer.betas[0]")?;
    }
    let momentum = fields.optional_number(KEY, UNIT, |x| (0.0..1.0).contains(&x))?;
    Ok(match method {
        Method::Steepest(_) => {
            let momentum = momentum.or(betas.map(|betas| betas[0])).unwrap_or(0.95);
            (betas.unwrap_or([momentum, 0.95]), momentum)
        }
        Method::Muon | Method::NorMuon => (betas.unwrap_or([0.9, 0.95]), momentum.unwrap_or(0.95)),
        Method::Sgd | Method::Momo => {
            let momentum = momentum.unwrap_or(0.9);
            ([momentum, 0.95], momentum)
        }
        Method::AdamW => {
            let betas = betas.unwrap_or([0.9, 0.95]);
            (betas, betas[0])
        }
        Method::MomoAdam => {
            let betas = betas.unwrap_or([0.9, 0.999]);
            (betas, betas[0])
        }
    })
}

fn nesterov(fields: &mut Fields<'_>, method: Method) -> Result<bool, ConfigError> {
    const KEY: &str = "nesterov";
    let allowed = matches!(method, Method::Muon | Method::NorMuon | Method::Sgd);
    if let (false, Some(value)) = (allowed, fields.peek(KEY))
        && value.as_bool() == Some(true)
    {
        return Err(fields.refuse_with(
            KEY,
            value,
            "false: this method steps along the momentum itself, whose norm and model of the loss a look ahead would break",
            "take the key out, or choose muon, normuon or sgd",
        ));
    }
    fields.boolean(KEY, matches!(method, Method::Muon | Method::NorMuon))
}

fn normalized(fields: &mut Fields<'_>, method: Method) -> Result<bool, ConfigError> {
    const KEY: &str = "normalized";
    if let (false, Some(value)) = (method == Method::Sgd, fields.peek(KEY))
        && value.as_bool() == Some(true)
    {
        return Err(fields.refuse_with(KEY, value, "false: only sgd has a momentum that is a sum", REMOVE));
    }
    fields.boolean(KEY, false)
}

fn epsilon(fields: &mut Fields<'_>, method: Method) -> Result<f64, ConfigError> {
    if matches!(method, Method::Sgd | Method::Momo) {
        absent(fields, "epsilon", "this method divides by no second moment")?;
    }
    fields.number("epsilon", Some(1e-8), POSITIVE, |x| x > 0.0)
}

fn hidden_scale(fields: &mut Fields<'_>, method: Method) -> Result<f64, ConfigError> {
    if !method.orthogonalises() {
        absent(fields, "hidden_scale", "this method has no hidden matrices")?;
    }
    // Of the family: what the authors' sweeps took (arXiv 2510.09827).
    let default = match method {
        Method::Muon | Method::NorMuon => 20.0,
        Method::Steepest(Steepest::MUONADAM) => 16.0,
        Method::Steepest(Steepest::MUONMAX | Steepest::SCION) => 4.0,
        Method::Steepest(Steepest::POLARGRAD) => 64.0,
        _ => 1.0,
    };
    fields.number("hidden_scale", Some(default), POSITIVE, |x| x > 0.0)
}

fn scaling(fields: &mut Fields<'_>, method: Method) -> Result<Scaling, ConfigError> {
    let mut words = Scaling::WORDS.to_vec();
    words.extend([
        ("jordan", Scaling::Original),
        ("torch", Scaling::Original),
        ("moonlight", Scaling::MatchRms),
        ("match_rms_adamw", Scaling::MatchRms),
        ("match-rms-adamw", Scaling::MatchRms),
    ]);
    if !method.orthogonalises() {
        absent(fields, "scaling", "this method has no hidden matrices")?;
    }
    let default = match method {
        Method::Muon | Method::NorMuon => Scaling::Original,
        _ => Scaling::None,
    };
    fields.word("scaling", &words, Some(default))
}

fn polar(mut fields: Fields<'_>, run_precision: Precision) -> Result<PolarSection, ConfigError> {
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Express,
        Schulz,
        Gram,
        Svd,
    }
    const KINDS: [(&str, Kind); 4] = [
        ("polar-express", Kind::Express),
        ("newton-schulz", Kind::Schulz),
        ("gram", Kind::Gram),
        ("svd", Kind::Svd),
    ];
    let kind = fields.word("method", &KINDS, Some(Kind::Express))?;
    let method = match kind {
        Kind::Express => PolarMethod::PolarExpress,
        Kind::Schulz => PolarMethod::NewtonSchulz(fields.word("table", PolarTable::WORDS, Some(PolarTable::Jordan))?),
        Kind::Gram => PolarMethod::Gram {
            restart: fields.integer32("restart", 1..=99, Some(2))?,
        },
        Kind::Svd => PolarMethod::Svd,
    };
    if kind == Kind::Svd
        && let Some(value) = fields.take("precision")
        && value.as_str() != Some("fp32")
    {
        return Err(fields.refuse_with("precision", &value, "\"fp32\": the SVD has no bf16 form", REMOVE_POLAR));
    }
    let steps = match method {
        PolarMethod::NewtonSchulz(PolarTable::Cans) => 12,
        _ => 5,
    };
    let section = PolarSection {
        method,
        steps: match (fields.integer32("steps", 1..=99, Some(steps))?, method) {
            // It has none: whatever is given, configs that mean the same are equal.
            (_, PolarMethod::Svd) => steps,
            (given, _) => given,
        },
        precision: match kind {
            Kind::Svd => Precision::Fp32,
            _ => fields.word("precision", Precision::WORDS, Some(run_precision))?,
        },
    };
    if let (PolarMethod::Gram { restart }, Precision::Bf16) = (method, section.precision)
        && restart > 2
    {
        return Err(fields.refuse_with(
            "restart",
            &Value::Integer(restart.into()),
            "at most 2 in bf16: with later restarts the Gram iteration diverges there (singular values far above 1 were measured on steep spectra)",
            "lower optimizer.polar.restart, or set optimizer.polar.precision = \"fp32\"",
        ));
    }
    if kind != Kind::Schulz {
        absent_or(
            &mut fields,
            "table",
            "only newton-schulz has tables to choose from",
            REMOVE_POLAR,
        )?;
    }
    if kind != Kind::Gram {
        absent_or(&mut fields, "restart", "only gram restarts", REMOVE_POLAR)?;
    }
    fields.done()?;
    Ok(section)
}

fn momo(fields: &mut Fields<'_>, method: Method) -> Result<Option<MomoSection>, ConfigError> {
    const KEY: &str = "momo";
    let always = matches!(method, Method::Momo | Method::MomoAdam);
    match method {
        Method::Muon => absent(
            fields,
            KEY,
            "muon's look ahead and AdamW's corrected moments have no model of the loss; muonadam is muon in the form that has one",
        )?,
        Method::NorMuon => absent(
            fields,
            KEY,
            "rows that are normalised after the polar factor are no steepest descent under any norm",
        )?,
        Method::AdamW => absent(
            fields,
            KEY,
            "the method that adds a model of the loss to Adam is momo-adam",
        )?,
        Method::Sgd => absent(fields, KEY, "the method that adds a model of the loss to SGD is momo")?,
        Method::Steepest(_) | Method::Momo | Method::MomoAdam => {}
    }
    if fields.peek(KEY).is_none() && !always {
        fields.take(KEY);
        return Ok(None);
    }
    let mut inner = fields.section(KEY)?;
    const BOUND: &str = "a finite number, or \"auto\"";
    let lower_bound = match inner.take("lower_bound") {
        None => LowerBound::Fixed(0.0),
        Some(Value::String(word)) if word == "auto" => LowerBound::Auto,
        Some(value) => match finite(&value) {
            Some(bound) => LowerBound::Fixed(bound),
            None => return Err(inner.refuse("lower_bound", &value, BOUND)),
        },
    };
    if always {
        absent(&mut inner, "decay", "weight decay is part of this method's own step")?;
    }
    let decay = inner.word("decay", MomoDecay::WORDS, Some(MomoDecay::Paper))?;
    inner.done()?;
    Ok(Some(MomoSection { lower_bound, decay }))
}

/// Refuses what breaks the model of the loss (arXiv 2510.09827 and 2305.07583): each with its reason.
fn keeps_the_model(fields: &Fields<'_>, section: &OptimizerSection) -> Result<(), ConfigError> {
    if section.momo.is_none() {
        return Ok(());
    }
    let refuse = |key: &str, value: Value, expected: &str, advice: &str| {
        Err(fields.refuse_with(key, &value, format!("{expected} with Momo"), advice))
    };
    if let Some(limit) = section.clip_norm {
        return refuse(
            "clip_norm",
            Value::Float(limit),
            "absent: a clipped gradient is not that of the loss, so the model of the loss would be wrong",
            "take optimizer.clip_norm or optimizer.momo out",
        );
    }
    if section.cautious {
        return refuse(
            "cautious",
            Value::Boolean(true),
            "false: decay of chosen elements moves the point at which the model of the loss is evaluated",
            "take optimizer.cautious or optimizer.momo out",
        );
    }
    if section.momentum != section.betas[0] {
        return refuse(
            "momentum",
            Value::Float(section.momentum),
            "equal to optimizer.betas[0]: hidden matrices and other tensors must average the same model of the loss",
            "give both the same value, or one of them alone",
        );
    }
    Ok(())
}

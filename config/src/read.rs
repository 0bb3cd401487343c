//! From TOML to [`RunConfig`]: each section's keys, defaults and ranges.

mod adaptive;
mod alerts;
mod family;
mod fault;
mod optimizer;
mod schedule;
mod security;
mod telemetry;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::error::ConfigError;
use crate::fields::{Fields, MAX, integer_in};
use crate::overrides::{self, LENGTH_KEYS};
use crate::sections::*;

const UNIT: &str = "a number of at least 0 and below 1";
const POSITIVE: &str = "a number above 0";

impl RunConfig {
    /// Reads a config file and lays `sets` (`key=value`) over it.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, has unknown keys, or a value is out of its range.
    pub fn read(path: impl AsRef<Path>, sets: &[String]) -> Result<RunConfig, ConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        RunConfig::parse(&text, &path.display().to_string(), sets)
    }

    /// As [`RunConfig::read`], from text; `origin` names it in errors.
    ///
    /// # Errors
    /// As [`RunConfig::read`].
    pub fn parse(text: &str, origin: &str, sets: &[String]) -> Result<RunConfig, ConfigError> {
        let mut table: Table = text.parse().map_err(|error| syntax(text, origin, &error))?;
        overrides::apply(&mut table, sets)?;
        let mut root = Fields::new(origin, String::new(), table);
        let run = run(root.section("run")?)?;
        let data = data(root.section("data")?)?;
        let model = model(root.section("model")?, data.sequence_length)?;
        let family = family::read(root.section("schedule")?)?;
        let (family_batch, family_rate) = family.unzip();
        let batch = batch(root.section("batch")?, family_batch, &run)?;
        let learning_rate = learning_rate(root.section("learning_rate")?, family_rate)?;
        let optimizer = optimizer::read(root.section("optimizer")?, run.precision)?;
        let momentum = momentum(root.section("momentum")?, &optimizer)?;
        let weight_decay = scheduled(root.section("weight_decay")?, &schedule::WEIGHT_DECAY)?;
        let validation = validation(root.section("validation")?)?;
        let checkpoint = checkpoint(root.section("checkpoint")?)?;
        let collective = collective(root.section("collective")?, &run)?;
        let fault = fault::read(root.section("fault")?, &run, &collective)?;
        let security = security::read(root.section("security")?)?;
        let coordinator = coordinator(root.section("coordinator")?, &security)?;
        let alerts = alerts::read(root.section("alerts")?)?;
        let telemetry = telemetry::read(root.section("telemetry")?)?;
        root.done()?;
        Ok(RunConfig {
            run,
            data,
            model,
            batch,
            learning_rate,
            momentum,
            weight_decay,
            optimizer,
            validation,
            checkpoint,
            collective,
            fault,
            coordinator,
            security,
            alerts,
            telemetry,
        })
    }
}

fn syntax(text: &str, origin: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start).min(text.len());
    let before = text.get(..at).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    ConfigError::Syntax {
        origin: origin.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        reason: error.message().lines().collect::<Vec<_>>().join("; "),
    }
}

fn run(mut fields: Fields<'_>) -> Result<RunSection, ConfigError> {
    let section = RunSection {
        name: name(&mut fields)?,
        seed: fields.integer("seed", 0..=MAX, Some(0))?,
        lanes: fields.integer32("lanes", 1..=4096, Some(4))?,
        length: length(&mut fields)?,
        intra_op_threads: fields.integer32("intra_op_threads", 1..=1024, Some(1))?,
        precision: fields.word("precision", Precision::WORDS, Some(Precision::Bf16))?,
        reduction: fields.word("reduction", Reduction::WORDS, Some(Reduction::Invariant))?,
        device: fields.word("device", Device::WORDS, Some(Device::Cpu))?,
    };
    fields.done()?;
    Ok(section)
}

fn name(fields: &mut Fields<'_>) -> Result<String, ConfigError> {
    const EXPECTED: &str =
        "a name that can be a folder: 1 to 64 letters, digits, `.`, `_` or `-`, beginning with a letter or digit";
    let Some(name) = fields.optional_text("name", EXPECTED)? else {
        return Err(fields.missing("name", EXPECTED));
    };
    let safe = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if safe {
        Ok(name)
    } else {
        Err(fields.refuse("name", &Value::String(name), EXPECTED))
    }
}

fn length(fields: &mut Fields<'_>) -> Result<Length, ConfigError> {
    let given: Vec<(&str, &Value)> = LENGTH_KEYS
        .into_iter()
        .filter_map(|key| Some((key, fields.peek(key)?)))
        .collect();
    if let [(first, _), (second, value), ..] = given[..] {
        return Err(fields.refuse_with(
            second,
            value,
            format!("absent where `run.{first}` says how long the run is"),
            "keep exactly one of run.steps, run.samples, run.tokens and run.epochs",
        ));
    }
    let [steps, samples, tokens, epochs] = LENGTH_KEYS;
    let mut of = |key| fields.optional_integer(key, 1..=MAX);
    let length = (of(steps)?.map(Length::Steps))
        .or(of(samples)?.map(Length::Samples))
        .or(of(tokens)?.map(Length::Tokens));
    let passes = fields.optional_number(epochs, POSITIVE, |x| x > 0.0)?;
    length.or(passes.map(Length::Epochs)).ok_or_else(|| {
        fields.missing(
            "steps",
            "exactly one of run.steps, run.samples and run.tokens, a whole number of at least 1, or run.epochs",
        )
    })
}

fn data(mut fields: Fields<'_>) -> Result<DataSection, ConfigError> {
    const FOLDER: &str = "the path of a folder made by `lockstep data prepare`";
    let path = fields.optional_text("path", FOLDER)?;
    let section = DataSection {
        path: PathBuf::from(path.ok_or_else(|| fields.missing("path", FOLDER))?),
        validation: fields.optional_text("validation", FOLDER)?.map(PathBuf::from),
        sequence_length: fields.integer32("sequence_length", 1..=1_048_576, None)?,
    };
    fields.done()?;
    Ok(section)
}

fn model(mut fields: Fields<'_>, sequence_length: u32) -> Result<ModelSection, ConfigError> {
    let kind = fields.word("kind", ModelKind::WORDS, Some(ModelKind::Gpt2))?;
    let layers = fields.integer32("layers", 1..=1024, None)?;
    let heads = fields.integer32("heads", 1..=1024, None)?;
    let width = fields.integer32("width", 1..=65_536, None)?;
    if width % heads != 0 {
        return Err(fields.refuse_with(
            "heads",
            &Value::Integer(heads.into()),
            format!("a divisor of model.width, which is {width}"),
            "change model.heads or model.width",
        ));
    }
    let vocab = fields.optional_integer("vocab", 1..=2_147_483_647)?;
    let context = fields.optional_integer("context", 1..=1_048_576)?;
    if let Some(context) = context
        && context < u64::from(sequence_length)
    {
        return Err(fields.refuse_with(
            "context",
            &Value::Integer(context as i64),
            format!("at least data.sequence_length, which is {sequence_length}"),
            "raise model.context or shorten data.sequence_length",
        ));
    }
    let section = ModelSection {
        kind,
        layers,
        heads,
        width,
        vocab: vocab.and_then(|vocab| u32::try_from(vocab).ok()),
        bias: fields.boolean("bias", false)?,
        qk_norm: fields.boolean("qk_norm", false)?,
        context: context.and_then(|context| u32::try_from(context).ok()),
    };
    fields.done()?;
    Ok(section)
}

fn batch(mut fields: Fields<'_>, family: Option<BatchSchedule>, run: &RunSection) -> Result<BatchSection, ConfigError> {
    let micro_batch = fields.integer32("micro_batch", 1..=65_536, None)?;
    let schedule = match family {
        Some(schedule) => {
            said_once(&fields)?;
            schedule
        }
        None => batch_schedule(&mut fields)?,
    };
    let section = BatchSection {
        adaptive: adaptive::read(&mut fields, run, (micro_batch, &schedule))?,
        micro_batch,
        schedule,
    };
    fields.done()?;
    Ok(section)
}

/// Refuses a schedule where a family says it already.
fn said_once(fields: &Fields<'_>) -> Result<(), ConfigError> {
    match fields.peek("schedule") {
        None => Ok(()),
        Some(value) => Err(fields.refuse_with(
            "schedule",
            value,
            "absent where [schedule] names a family",
            "take it out, or say both schedules and no family",
        )),
    }
}

/// The largest batch: large enough for any run, small enough that no product of it overflows.
const SIZES: std::ops::RangeInclusive<u64> = 1..=16_777_216;

fn batch_schedule(fields: &mut Fields<'_>) -> Result<BatchSchedule, ConfigError> {
    const KEY: &str = "schedule";
    const EXPECTED: &str = "a number of samples from 1 to 16777216, { kind = \"constant\", size = 32 }, { kind = \"steps\", sizes = [[0, 16], [100, 32]] } or { kind = \"growth\", start = 16, factor = 2, every = 100, max = 256 }";
    match fields.take(KEY) {
        None => Err(fields.missing(KEY, EXPECTED)),
        Some(Value::Table(table)) => {
            let is = |kind: &str| table.get("kind").and_then(Value::as_str) == Some(kind);
            let (in_steps, one_size) = (is("steps"), is("constant"));
            let mut inner = Fields::new(fields.origin(), fields.dotted(KEY), table);
            let schedule = if in_steps || one_size {
                inner.word("kind", &[("constant", ()), ("steps", ())], None)?;
                match in_steps {
                    true => BatchSchedule::Steps {
                        sizes: batch_sizes(&mut inner)?,
                    },
                    false => BatchSchedule::Constant {
                        size: inner.integer("size", SIZES, None)?,
                    },
                }
            } else {
                BatchSchedule::Curve(schedule::schedule(&mut inner, &schedule::BATCH)?)
            };
            inner.done()?;
            Ok(schedule)
        }
        Some(value) => match integer_in(&value, &SIZES) {
            Some(size) => Ok(BatchSchedule::Constant { size }),
            None => Err(fields.refuse(KEY, &value, EXPECTED)),
        },
    }
}

fn batch_sizes(fields: &mut Fields<'_>) -> Result<Vec<(u64, u64)>, ConfigError> {
    const KEY: &str = "sizes";
    const EXPECTED: &str = "a list of [from_step, size] pairs such as [[0, 16], [100, 32]], the first from step 0, the steps rising, the sizes from 1 to 16777216";
    let Some(value) = fields.take(KEY) else {
        return Err(fields.missing(KEY, EXPECTED));
    };
    let pair = |pair: &Value| match pair.as_array().map(Vec::as_slice) {
        Some([from, size]) => Some((integer_in(from, &(0..=MAX))?, integer_in(size, &SIZES)?)),
        _ => None,
    };
    let pairs: Option<Vec<(u64, u64)>> = value.as_array().and_then(|list| list.iter().map(pair).collect());
    match pairs {
        Some(pairs)
            if pairs.first().is_some_and(|first| first.0 == 0) && pairs.windows(2).all(|two| two[0].0 < two[1].0) =>
        {
            Ok(pairs)
        }
        _ => Err(fields.refuse(KEY, &value, EXPECTED)),
    }
}

fn learning_rate(mut fields: Fields<'_>, family: Option<Schedule>) -> Result<LearningRateSection, ConfigError> {
    const KEY: &str = "schedule";
    const EXPECTED: &str = "a learning rate above 0, or { kind = \"constant\" | \"cosine\" | \"linear\" | \"warmup-stable-decay\" | …, peak = 1e-3, … }";
    let schedule = match family {
        Some(schedule) => {
            said_once(&fields)?;
            schedule
        }
        None => schedule::optional(&mut fields, KEY, &schedule::RATE)?.ok_or_else(|| fields.missing(KEY, EXPECTED))?,
    };
    #[derive(Clone, Copy)]
    enum Couple {
        None,
        Linear,
        SquareRoot,
    }
    let words = [
        ("none", Couple::None),
        ("linear", Couple::Linear),
        ("sqrt", Couple::SquareRoot),
    ];
    let couple = fields.word("couple", &words, Some(Couple::None))?;
    let mut base = || {
        fields.number(
            "base_batch",
            None,
            "the number of samples for which the schedule is meant",
            |x| x >= 1.0,
        )
    };
    let coupling = match couple {
        Couple::None => Coupling::None,
        Couple::Linear => Coupling::Linear { base: base()? },
        Couple::SquareRoot => Coupling::SquareRoot { base: base()? },
    };
    fields.done()?;
    Ok(LearningRateSection { schedule, coupling })
}

/// A section that holds nothing but a schedule.
fn scheduled(mut fields: Fields<'_>, quantity: &schedule::Quantity) -> Result<Option<Schedule>, ConfigError> {
    let schedule = schedule::optional(&mut fields, "schedule", quantity)?;
    fields.done()?;
    Ok(schedule)
}

fn momentum(fields: Fields<'_>, optimizer: &OptimizerSection) -> Result<Option<Schedule>, ConfigError> {
    if let (Some(value), Err(reason)) = (fields.peek("schedule"), optimizer.may_change_momentum()) {
        let advice = "take [momentum] out, or choose another optimizer.method";
        return Err(fields.refuse_with("schedule", value, format!("absent: {reason}"), advice));
    }
    scheduled(fields, &schedule::MOMENTUM)
}

fn collective(mut fields: Fields<'_>, run: &RunSection) -> Result<CollectiveSection, ConfigError> {
    let backend = fields.word("backend", CollectiveBackend::WORDS, Some(CollectiveBackend::Auto))?;
    let fits = match backend {
        CollectiveBackend::Nccl => run.device == Device::Cuda,
        CollectiveBackend::Mpi | CollectiveBackend::Host => run.device == Device::Cpu,
        CollectiveBackend::Auto => true,
    };
    if !fits {
        let other = match backend {
            CollectiveBackend::Nccl => "\"host\" or \"mpi\", since run.device is \"cpu\"",
            _ => "\"nccl\", since run.device is \"cuda\"",
        };
        return Err(fields.refuse_with(
            "backend",
            &Value::String(backend.word().to_owned()),
            other,
            "NCCL serves GPUs, host and MPI serve processors; leave collective.backend at \"auto\" or change run.device",
        ));
    }
    let section = CollectiveSection {
        backend,
        wire: fields.word("wire", Wire::WORDS, Some(Wire::Fp32))?,
        overlap: fields.boolean("overlap", true)?,
        transport: fields.word("transport", HostTransport::WORDS, Some(HostTransport::Auto))?,
        deadline_seconds: fields.number(
            "deadline_seconds",
            Some(600.0),
            "a number of seconds above 0 and at most 86400",
            |x| x > 0.0 && x <= 86_400.0,
        )?,
    };
    fields.done()?;
    Ok(section)
}

fn validation(mut fields: Fields<'_>) -> Result<ValidationSection, ConfigError> {
    let section = ValidationSection {
        every: fields.integer("every", 0..=MAX, Some(100))?,
    };
    fields.done()?;
    Ok(section)
}

fn checkpoint(mut fields: Fields<'_>) -> Result<CheckpointSection, ConfigError> {
    const KEY: &str = "store";
    const EXPECTED: &str = "a folder, or \"s3://BUCKET/PREFIX\"";
    let store = fields.optional_text(KEY, EXPECTED)?;
    let address = store.as_deref().and_then(|store| store.split_once("://"));
    if let Some((scheme, rest)) = address
        && (scheme != "s3" || rest.is_empty() || rest.starts_with('/'))
    {
        return Err(fields.refuse(KEY, &Value::String(format!("{scheme}://{rest}")), EXPECTED));
    }
    let section = CheckpointSection {
        every: fields.integer("every", 0..=MAX, Some(1000))?,
        keep_last: fields.integer("keep_last", 1..=MAX, Some(3))?,
        keep_every: fields.integer("keep_every", 0..=MAX, Some(0))?,
        store,
    };
    fields.done()?;
    Ok(section)
}

fn coordinator(mut fields: Fields<'_>, security: &SecuritySection) -> Result<CoordinatorSection, ConfigError> {
    const KEY: &str = "bind";
    const EXPECTED: &str = "a loopback address and port such as \"127.0.0.1:0\" (port 0 takes a free one)";
    let text = fields.optional_text(KEY, EXPECTED)?;
    let text = text.unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let refuse = |advice: &str| fields.refuse_with(KEY, &Value::String(text.clone()), EXPECTED, advice);
    let bind: SocketAddr = text.parse().map_err(|_| refuse("write it as ADDRESS:PORT"))?;
    security::check_bind(bind, security, refuse)?;
    let section = CoordinatorSection {
        bind,
        plan_window_seconds: fields.number(
            "plan_window_seconds",
            Some(5.0),
            "a number of seconds above 0 and at most 3600",
            |x| x > 0.0 && x <= 3600.0,
        )?,
        record_events: fields.boolean("record_events", true)?,
    };
    fields.done()?;
    Ok(section)
}

//! `plan`: what a run will take, before it is started: memory of a rank, bytes between ranks, milliseconds of a step and of its
//! parts; what does not fit, and the nearest config that does.
//!
//! - `work`: what a step is for each rank, counted
//! - `probe`: a short calibration on this machine, by the very engine that trains
//! - `devices`: devices that are known by their data sheets
//! - `rates`: how fast the parts of a step go, and what follows for a run
//! - `table`: how it is shown
//!
//! Data flows: config → [`work::Work`] of each world; probes or a data sheet → [`rates::Rates`] → [`rates::Prediction`] →
//! beside the memory that there is: fits, or the nearest that does → a table, or JSON.

mod devices;
mod probe;
mod rates;
mod table;
mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;

use lockstep_config::{Device, RunConfig};
use lockstep_data::Dataset;
use lockstep_doctor::facts::Places;
use lockstep_doctor::facts::memory::Memory;

use crate::error::TrainerError;
use crate::plan::devices::{device, names, overlapped};
use crate::plan::probe::{Shortened, measure, measured_as_a_rank};
use crate::plan::rates::{Prediction, Rates, predict};
use crate::plan::work::Work;

/// Rate between ranks where nobody says one and none was measured, GB/s: a link of 10 Gbit/s.
const USUAL_LINK: f64 = 1.25;

/// What is planned.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// The config.
    pub config: PathBuf,
    /// Overrides of its keys.
    pub sets: Vec<String>,
    /// Numbers of ranks.
    pub ranks: Vec<u32>,
    /// `here`, or a device that is known.
    pub device: Option<String>,
    /// What a rank gets from others, GB/s, instead of what is measured or known.
    pub link: Option<f64>,
    /// Micro-batches of a step; one a lane where nobody says.
    pub micro_batches: Option<u32>,
    /// Steps of the run, where they are known.
    pub steps: Option<u64>,
    /// Print JSON.
    pub json: bool,
}

/// The prediction of one world, and whether it fits.
#[derive(Clone, Debug)]
struct Planned {
    prediction: Prediction,
    /// Ranks that were measured at the same time; 0 where none was.
    measured_on: u32,
    /// Bytes that a rank may take.
    room: u64,
    /// Where it does not fit: the nearest that does, as overrides of the config.
    nearest: Option<Result<String, String>>,
}

/// What `plan` prints; none where this process is a rank of a probe.
///
/// # Errors
/// The config, a number of ranks or the device cannot be used; the calibration fails.
pub fn plan(options: &PlanOptions) -> Result<Option<String>, TrainerError> {
    let config = RunConfig::read(&options.config, &options.sets)?;
    let vocabulary = match config.model.vocab {
        Some(vocabulary) => vocabulary,
        None => Dataset::open(&config.data.path)?.vocab(),
    };
    if let [ranks] = options.ranks[..]
        && measured_as_a_rank(&config, vocabulary, ranks)?
    {
        return Ok(None);
    }
    for ranks in &options.ranks {
        if *ranks == 0 || *ranks > config.run.lanes {
            return Err(TrainerError::Refused(format!(
                "--ranks {ranks} is not between 1 and run.lanes, which is {}",
                config.run.lanes
            )));
        }
    }
    let micro_batches = options.micro_batches.unwrap_or(config.run.lanes).max(1);
    let planned = match options.device.as_deref() {
        None if config.run.device == Device::Cuda => Err(TrainerError::Refused(format!(
            "run.device is \"cuda\": name the kind of GPU with --device ({})",
            names()
        ))),
        None | Some("here" | "cpu") => {
            let mut config = config.clone();
            config.run.device = Device::Cpu;
            here(&config, vocabulary, options, micro_batches)
        }
        Some(name) => by_data_sheet(&config, vocabulary, options, (name, micro_batches)),
    }?;
    let shown = table::Shown {
        config: &config,
        device: options.device.as_deref().unwrap_or("here"),
        micro_batches,
        steps: options.steps,
        planned: &planned,
    };
    Ok(Some(if options.json { shown.json() } else { shown.text() }))
}

/// By probes of this machine.
fn here(
    config: &RunConfig,
    vocabulary: u32,
    options: &PlanOptions,
    micro_batches: u32,
) -> Result<Vec<Planned>, TrainerError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u32;
    let at_once = (cores / config.run.intra_op_threads.max(1)).max(1);
    let available = available_memory();
    let mut known: BTreeMap<(u32, Vec<Shortened>), Rates> = BTreeMap::new();
    let mut planned = Vec::new();
    for ranks in &options.ranks {
        let on = (*ranks).min(at_once);
        let probes = Shortened::all(config, (*ranks, on, micro_batches));
        let key = (on, probes.clone());
        let mut rates = match known.get(&key) {
            Some(rates) => rates.clone(),
            None => {
                let probes = probes
                    .into_iter()
                    .map(|probe| measure(options, config, (vocabulary, on), probe));
                let probes = probes.collect::<Result<Vec<_>, _>>()?;
                let rates = Rates::of(&probes);
                tracing::debug!("{on} ranks measured {probes:?}, so {rates:?}");
                known.insert(key, rates.clone());
                rates
            }
        };
        if let Some(link) = options.link.or((on == 1).then_some(USUAL_LINK)) {
            (rates.reduce, rates.gather) = (1.0 / link, 1.0 / link);
        }
        let work = Work::of(config, vocabulary, (*ranks, micro_batches))?;
        let prediction = predict(config, &work, &rates);
        // As many ranks as run at once share this machine's memory; more of them are on other hosts.
        let room = available / u64::from(on);
        let nearest = nearest(
            config,
            (*ranks, micro_batches),
            (&prediction, room),
            |config, micro_batches| {
                let work = Work::of(config, vocabulary, (*ranks, micro_batches))?;
                Ok(predict(config, &work, &scaled(&rates, config, options)?))
            },
        )?;
        planned.push(Planned {
            prediction,
            measured_on: on,
            room,
            nearest,
        });
    }
    Ok(planned)
}

/// The rates of a config whose micro-batch is another one than the one that was measured.
fn scaled(rates: &Rates, config: &RunConfig, options: &PlanOptions) -> Result<Rates, TrainerError> {
    let measured = RunConfig::read(&options.config, &options.sets)?;
    let factor = f64::from(config.batch.micro_batch) / f64::from(measured.batch.micro_batch);
    let mut scaled = rates.clone();
    for line in [&mut scaled.activations, &mut scaled.forward, &mut scaled.backward] {
        line.fixed *= factor;
        line.layer *= factor;
    }
    Ok(scaled)
}

/// By a data sheet.
fn by_data_sheet(
    config: &RunConfig,
    vocabulary: u32,
    options: &PlanOptions,
    (name, micro_batches): (&str, u32),
) -> Result<Vec<Planned>, TrainerError> {
    let device = device(name).ok_or_else(|| {
        TrainerError::Refused(format!("--device {name:?} is not known; there are: here, {}", names()))
    })?;
    let mut config = config.clone();
    config.run.device = Device::Cuda;
    let of = |config: &RunConfig, (ranks, micro_batches): (u32, u32)| -> Result<Prediction, TrainerError> {
        let work = Work::of(config, vocabulary, (ranks, micro_batches))?;
        let rates = device.rates(config, &work, options.link);
        Ok(overlapped(predict(config, &work, &rates), &work))
    };
    let each = options.ranks.iter().map(|ranks| {
        let prediction = of(&config, (*ranks, micro_batches))?;
        let room = device.memory();
        let nearest = nearest(
            &config,
            (*ranks, micro_batches),
            (&prediction, room),
            |config, micro_batches| of(config, (*ranks, micro_batches)),
        )?;
        Ok(Planned {
            prediction,
            measured_on: 0,
            room,
            nearest,
        })
    });
    each.collect()
}

/// Where a prediction does not fit into `room`: the nearest config that does. First smaller micro-batches, with which the batch
/// and the bits' meaning stay, then fewer layers.
fn nearest(
    config: &RunConfig,
    (ranks, micro_batches): (u32, u32),
    (prediction, room): (&Prediction, u64),
    predicted: impl Fn(&RunConfig, u32) -> Result<Prediction, TrainerError>,
) -> Result<Option<Result<String, String>>, TrainerError> {
    if prediction.memory.total() <= room {
        return Ok(None);
    }
    let mut smaller = config.clone();
    let mut more = micro_batches;
    while smaller.batch.micro_batch > 1 {
        let before = smaller.batch.micro_batch;
        smaller.batch.micro_batch /= 2;
        more = (more * before).div_ceil(smaller.batch.micro_batch);
        if predicted(&smaller, more)?.memory.total() <= room {
            return Ok(Some(Ok(format!(
                "--set batch.micro_batch={}",
                smaller.batch.micro_batch
            ))));
        }
    }
    while smaller.model.layers > 1 {
        smaller.model.layers -= 1;
        if predicted(&smaller, more)?.memory.total() <= room {
            return Ok(Some(Ok(format!(
                "--set batch.micro_batch={} --set model.layers={}",
                smaller.batch.micro_batch, smaller.model.layers
            ))));
        }
    }
    Ok(Some(Err(format!(
        "no smaller micro-batch and no fewer layers make it fit on {ranks} {}: take a smaller width or vocabulary, or more ranks",
        if ranks == 1 { "rank" } else { "ranks" }
    ))))
}

/// Memory of this machine that can be taken, bytes: what the kernel says is available, within what this process's group may
/// have; as `lockstep doctor` sees it.
fn available_memory() -> u64 {
    Memory::look(&Places::default()).now().unwrap_or(u64::MAX)
}

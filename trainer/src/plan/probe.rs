//! A short calibration: a few steps of the very engine that trains, for the run with fewer layers, on this machine.
//!
//! Way of data: config → [`Shortened`] (few layers, few lanes a rank) → one process a rank, a copy of this command with
//! [`SHORTENED`] in its environment → ranks meet as in a run, make steps on tokens of a formula, and write what they measured,
//! times and memory, into a file each → [`Probe`].

use std::ffi::OsString;
use std::path::Path;

use lockstep_autograd::TensorBytes;
use lockstep_collective::communication::{Communication, Overlap};
use lockstep_config::RunConfig;
use lockstep_data::{MicroBatch, rank_lanes};
use lockstep_proto::domain::Plan;

use crate::bench::Carrier;
use crate::device::opening::open;
use crate::error::TrainerError;
use crate::fingerprint::fingerprint;
use crate::model::choice::from_config;
use crate::plan::PlanOptions;
use crate::plan::rates::{Measured, Probe, Times};
use crate::plan::work::Work;
use crate::ranks;
use crate::step::{Engine, StepOutcome};

/// Names, for a process that measures, the layers, lanes and micro-batches of the shortened run, and the folder of results.
const SHORTENED: &str = "LOCKSTEP_PLAN_PROBE";
/// Steps before those that count: memory is touched for the first time in them.
const WARM_UP: u64 = 2;
/// Steps that count.
const STEPS: u64 = 5;
/// Lanes of a rank that are measured; more of them are more of the same. Three is the least with an addition that hides
/// behind nothing.
const LANES: u32 = 3;

/// What is measured of a run: all ranks, with fewer layers and lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shortened {
    pub(super) layers: u32,
    pub(super) lanes: u32,
    pub(super) micro_batches: u32,
}

impl Shortened {
    /// The probes of a run of `micro_batches` on `ranks` ranks, of which `on` run here at once, in rising order of layers.
    pub(super) fn all(config: &RunConfig, (ranks, on, micro_batches): (u32, u32, u32)) -> Vec<Shortened> {
        // As many as the rank with most lanes has.
        let lanes_each = config.run.lanes.div_ceil(ranks).clamp(1, LANES);
        let lanes = lanes_each * on;
        // A lane with several micro-batches runs two of them.
        let each = (micro_batches / config.run.lanes)
            .clamp(1, 2)
            .min(if lanes_each > 1 { 1 } else { 2 });
        let layers: &[u32] = match config.model.layers {
            1 => &[1],
            2 => &[1, 2],
            _ => &[1, 3],
        };
        let of = |layers: &u32| Shortened {
            layers: *layers,
            lanes,
            micro_batches: lanes * each,
        };
        layers.iter().map(of).collect()
    }

    fn config(self, config: &RunConfig) -> RunConfig {
        let mut short = config.clone();
        short.model.layers = self.layers;
        short.run.lanes = self.lanes;
        // Nothing is kept or compared while it is measured.
        short.fault.drift_every = 0;
        short
    }

    fn words(self, folder: &Path) -> String {
        format!(
            "{} {} {} {}",
            self.layers,
            self.lanes,
            self.micro_batches,
            folder.display()
        )
    }

    fn parse(words: &str) -> Option<(Shortened, &Path)> {
        let mut words = words.splitn(4, ' ');
        let mut number = || words.next()?.parse().ok();
        let (layers, lanes, micro_batches) = (number()?, number()?, number()?);
        let shortened = Shortened {
            layers,
            lanes,
            micro_batches,
        };
        Some((shortened, Path::new(words.next()?)))
    }
}

/// Measures a shortened run on `ranks` ranks of this machine.
///
/// # Errors
/// Ranks cannot be started, do not meet, or fail.
pub(super) fn measure(
    options: &PlanOptions,
    config: &RunConfig,
    (vocabulary, ranks): (u32, u32),
    shortened: Shortened,
) -> Result<Probe, TrainerError> {
    let broken = |what: &str, error: &dyn std::fmt::Display| TrainerError::Broken(format!("cannot {what}: {error}"));
    let folder = std::env::temp_dir().join(format!("lockstep-plan-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|error| broken("make a folder for what ranks measure", &error))?;
    let threads = config.run.intra_op_threads.to_string();
    let arguments = rank_arguments(options, ranks);
    let ran = ranks::start_ranks(Carrier::Host, (ranks, &arguments), |command| {
        command
            .env(SHORTENED, shortened.words(&folder))
            .env("OMP_NUM_THREADS", &threads)
            .env("MKL_NUM_THREADS", &threads);
    });
    let results = ran.and_then(|()| {
        let read = |rank: u32| -> Result<Measured, TrainerError> {
            let text = std::fs::read(folder.join(format!("{rank}.json")))
                .map_err(|error| broken("read what a rank measured", &error))?;
            serde_json::from_slice(&text).map_err(|error| broken("read what a rank measured", &error))
        };
        (0..ranks).map(read).collect::<Result<Vec<_>, _>>()
    });
    // What is left in a folder for temporary files harms nobody.
    let _ = std::fs::remove_dir_all(&folder);
    Ok(Probe {
        work: Work::of(&shortened.config(config), vocabulary, (ranks, shortened.micro_batches))?,
        measured: results?,
    })
}

/// What a rank of a probe is started with: this command, for one world.
fn rank_arguments(options: &PlanOptions, ranks: u32) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["plan".into(), options.config.clone().into()];
    arguments.extend(["--ranks".into(), ranks.to_string().into()]);
    arguments.extend(options.sets.iter().map(|set| format!("--set={set}").into()));
    arguments
}

/// Measures as one rank, if this process was started for that.
///
/// # Errors
/// The environment is not what [`measure`] writes; the ranks do not meet; a step fails.
pub(super) fn measured_as_a_rank(config: &RunConfig, vocabulary: u32, ranks: u32) -> Result<bool, TrainerError> {
    let (Ok(words), Some(place)) = (std::env::var(SHORTENED), ranks::place()) else {
        return Ok(false);
    };
    let (shortened, folder) = Shortened::parse(&words)
        .ok_or_else(|| TrainerError::Refused(format!("{SHORTENED} is {words:?}, which is no probe")))?;
    let broken =
        |error: &dyn std::fmt::Display| TrainerError::Broken(format!("cannot write what was measured: {error}"));
    let resident_before = resident();
    let tensors = TensorBytes::count()?;
    // A rank makes its fingerprint first, and what that leaves of the heap is there when the run's memory is taken.
    fingerprint(config, vocabulary, &open(config, 0)?)?;
    tensors.most(); // from now on
    let (rank, measured) = steps(config, (vocabulary, ranks), shortened, &place)?;
    let measured = Measured {
        resident_before,
        peak: peak(),
        tensors: tensors.most(),
        ..measured
    };
    let text = serde_json::to_vec(&measured).map_err(|error| broken(&error))?;
    std::fs::write(folder.join(format!("{rank}.json")), text).map_err(|error| broken(&error))?;
    Ok(true)
}

fn steps(
    config: &RunConfig,
    (vocabulary, ranks): (u32, u32),
    shortened: Shortened,
    place: &str,
) -> Result<(u32, Measured), TrainerError> {
    tch::set_num_threads(i32::try_from(config.run.intra_op_threads).unwrap_or(1));
    let config = shortened.config(config);
    let (collective, compute) = ranks::meet(place, Carrier::Host, ranks)?;
    let rank = collective.rank();
    let overlap = if config.collective.overlap {
        Overlap::Thread
    } else {
        Overlap::None
    };
    let communication = Communication::start(compute.collectives(), overlap, move || Ok(collective))?;
    let deal = (0..ranks)
        .map(|rank| rank_lanes(rank, ranks, config.run.lanes))
        .collect();
    let model = from_config(&config, vocabulary);
    let mut engine = Engine::new(&config, model, communication, deal, &compute)?;
    let mut outcomes = Vec::new();
    for step in 1..=WARM_UP + STEPS {
        let plan = plan(&config, step, shortened.micro_batches);
        let mut indices = engine.micro_batches_of(&plan).into_iter();
        let outcome = engine.step(&plan, 0, &mut || {
            Ok(batch(&config, vocabulary, (step, indices.next().unwrap_or(0))))
        })?;
        if step > WARM_UP {
            outcomes.push(outcome);
        }
    }
    engine.settle()?;
    let measured = Measured {
        layers: shortened.layers,
        times: times(&outcomes),
        ..Measured::default()
    };
    Ok((rank, measured))
}

/// Each part's median over the steps.
fn times(outcomes: &[StepOutcome]) -> Times {
    let median = |of: &dyn Fn(&StepOutcome) -> f64| {
        let mut values: Vec<f64> = outcomes.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    let phase = |outcome: &StepOutcome, name: &str| {
        let phases = outcome.phases.iter().filter(|(phase, _)| phase == name);
        phases.map(|(_, ms)| ms).sum::<f64>()
    };
    let of = |name: &'static str| median(&move |outcome| phase(outcome, name));
    Times {
        // Waits at gates are inside.
        forward: median(&|outcome| phase(outcome, "forward_ms") - phase(outcome, "gather_wait_ms")),
        backward: of("backward_ms"),
        norms: of("norms_ms"),
        lanes: of("lanes_ms"),
        reduce: of("reduce_ms"),
        polar: of("polar_ms"),
        apply: of("apply_ms"),
        slots: of("slots_ms"),
        gather: of("gather_wait_ms"),
        step: median(&|outcome| outcome.step_ms),
    }
}

fn plan(config: &RunConfig, step: u64, micro_batches: u32) -> Plan {
    Plan {
        step,
        // Small, so that no step of a few is spent on a run that goes astray.
        learning_rate: 1e-5,
        micro_batches,
        first_sample: 0,
        samples: u64::from(micro_batches) * u64::from(config.batch.micro_batch),
        validate: false,
        last: false,
        version: 0,
        checkpoint: false,
        momentum: None,
        weight_decay: None,
        stop: false,
    }
}

/// A micro-batch of the run's shape; how long a step takes does not depend on which tokens there are.
fn batch(config: &RunConfig, vocabulary: u32, (step, index): (u64, u32)) -> MicroBatch {
    let (rows, columns) = (config.batch.micro_batch, config.data.sequence_length);
    let count = rows as usize * columns as usize;
    let token = |at: usize| {
        let mixed = (at as u64 * 7 + step * 131 + u64::from(index) * 17).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        (mixed % u64::from(vocabulary.max(1))) as i64
    };
    let tokens: Vec<i64> = (0..=count).map(token).collect();
    MicroBatch {
        rows,
        columns,
        inputs: tokens[..count].to_vec(),
        targets: tokens[1..].to_vec(),
        counted: count as u64,
    }
}

/// Resident memory of this process, bytes.
fn resident() -> u64 {
    field("VmRSS:")
}

/// The largest that it was.
fn peak() -> u64 {
    field("VmHWM:")
}

fn field(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_for_a_rank_are_read_as_they_were_written() {
        let shortened = Shortened {
            layers: 3,
            lanes: 6,
            micro_batches: 6,
        };
        let folder = Path::new("results/a folder");
        assert_eq!(Shortened::parse(&shortened.words(folder)), Some((shortened, folder)));
        assert_eq!(Shortened::parse("3 6"), None);
        assert_eq!(Shortened::parse("3 six 6 results"), None);
    }
}

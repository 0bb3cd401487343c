//! The step that `bench train` and `bench optimizer` measure: `examples/bench-30m.toml` on a text that is prepared here.
//! A run gives a [`Measured`], medians over its steps; several runs give a [`Spread`].

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::demo::build;
use crate::failure::{Failure, on_path};
use crate::metrics::{Metrics, Summary};
use crate::process;
use crate::setup::setup;
use crate::workspace::Workspace;

const CONFIG: &str = "examples/bench-30m.toml";
/// The text that benchmarks train on.
pub(super) const TEXT: &str = "examples/data/tinyshakespeare.txt";
/// The first steps warm caches and allocators up.
const FIRST_MEASURED_STEP: u64 = 4;

/// What one run of a trainer gave.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Measured {
    pub(super) tokens_per_second: f64,
    pub(super) step_ms: f64,
    /// The mean of the steps, which shows what not every step has.
    pub(super) mean_ms: f64,
    /// Median milliseconds by phase.
    pub(super) phases: BTreeMap<String, f64>,
    /// The largest of all ranks.
    pub(super) memory_mib: f64,
}

/// Everything that runs of the benchmark's config need, in place.
pub(super) struct Bench<'a> {
    workspace: &'a Workspace,
    /// Where the runs lie.
    place: PathBuf,
    data: PathBuf,
}

impl<'a> Bench<'a> {
    /// Builds the programs and prepares the data.
    pub(super) fn prepare(workspace: &'a Workspace) -> Result<Bench<'a>, Failure> {
        Bench::with_tokens(workspace, "gpt2", "data")
    }

    /// The same with a token a byte, so that nearly all of a step is its layers.
    pub(super) fn prepare_bytes(workspace: &'a Workspace) -> Result<Bench<'a>, Failure> {
        Bench::with_tokens(workspace, "byte", "bytes")
    }

    fn with_tokens(workspace: &'a Workspace, tokenizer: &str, folder_of_data: &str) -> Result<Bench<'a>, Failure> {
        setup(workspace, None)?;
        build(workspace)?;
        let place = folder(workspace);
        fs::create_dir_all(&place).map_err(on_path("create", &place))?;
        let data = place.join(folder_of_data);
        let mut prepare = Command::new(workspace.program("lockstep"));
        prepare
            .args(["data", "prepare", "--tokenizer", tokenizer, "--out"])
            .arg(&data)
            .arg(workspace.root.join(TEXT));
        process::run("preparing the data", &mut prepare)?;
        Ok(Bench { workspace, place, data })
    }

    /// Trains on `ranks` ranks with `sets` as changes of the config, and measures.
    pub(super) fn run(&self, ranks: u32, sets: &[String]) -> Result<Measured, Failure> {
        const NAME: &str = "bench-30m";
        let run = self.place.join("runs").join(NAME);
        if run.exists() {
            fs::remove_dir_all(&run).map_err(on_path("remove", &run))?;
        }
        let mut command = self.lockstep("run", ranks);
        let own = [format!("data.path={}", self.data.display()), format!("run.name={NAME}")];
        for set in own.iter().chain(sets) {
            command.args(["--set", set]);
        }
        process::run("the benchmark's run", &mut command)?;
        let summary = Summary::read(&run)?;
        measured(&Metrics::read(&run)?, summary.peak_memory_mib as f64)
    }

    /// What `lockstep inspect` says of the config with `sets` on `ranks` ranks.
    pub(super) fn inspect(&self, ranks: u32, sets: &[String]) -> Result<String, Failure> {
        let mut command = self.lockstep("inspect", ranks);
        for set in sets {
            command.args(["--set", set]);
        }
        process::text_of("inspecting the benchmark's config", &mut command)
    }

    /// What `lockstep plan --json` says of the config with `sets` on `ranks` ranks.
    pub(super) fn plan(&self, ranks: u32, sets: &[String]) -> Result<String, Failure> {
        let mut command = self.lockstep("plan", ranks);
        command.arg("--json");
        let own = [format!("data.path={}", self.data.display())];
        for set in own.iter().chain(sets) {
            command.args(["--set", set]);
        }
        process::text_of("predicting the benchmark's run", &mut command)
    }

    fn lockstep(&self, what: &str, ranks: u32) -> Command {
        let mut command = Command::new(self.workspace.program("lockstep"));
        command
            .current_dir(&self.place)
            .arg(what)
            .arg(self.workspace.root.join(CONFIG))
            .args(["-n", &ranks.to_string()]);
        command
    }
}

/// Where benchmarks leave their runs.
pub(super) fn folder(workspace: &Workspace) -> PathBuf {
    workspace.programs.parent().unwrap_or(&workspace.programs).join("bench")
}

/// Medians over the steps of one run, without the first ones.
pub(super) fn measured(metrics: &Metrics, memory_mib: f64) -> Result<Measured, Failure> {
    let rows: Vec<_> = metrics
        .steps
        .iter()
        .filter(|row| row.step >= FIRST_MEASURED_STEP)
        .collect();
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        return Err(Failure::input(format!(
            "the run has {} steps, and the benchmark measures from step {FIRST_MEASURED_STEP}; give it more with --set run.steps=14",
            metrics.steps.len()
        )));
    };
    let before = metrics
        .steps
        .iter()
        .rfind(|row| row.step < first.step)
        .map_or(0, |row| row.tokens);
    let tokens_per_step = (last.tokens - before) as f64 / rows.len() as f64;
    let step_ms = median(rows.iter().map(|row| row.step_ms));
    let mean_ms = rows.iter().map(|row| row.step_ms).sum::<f64>() / rows.len() as f64;
    let phases = first
        .phases
        .keys()
        .map(|name| {
            (
                name.clone(),
                median(rows.iter().filter_map(|row| row.phases.get(name).copied())),
            )
        })
        .collect();
    Ok(Measured {
        tokens_per_second: tokens_per_step / step_ms * 1e3,
        step_ms,
        mean_ms,
        phases,
        memory_mib,
    })
}

/// Middle value, or the mean of the two middle ones; NaN of nothing.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// The median of several values, and their range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Spread {
    /// Of no values: none.
    pub(super) fn of(values: &[f64]) -> Option<Spread> {
        (!values.is_empty()).then(|| Spread {
            median: median(values.iter().copied()),
            low: values.iter().copied().fold(f64::INFINITY, f64::min),
            high: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }

    /// The median, and the range in brackets.
    pub(super) fn shown(&self, decimals: usize) -> String {
        format!(
            "{:.decimals$} ({:.decimals$}–{:.decimals$})",
            self.median, self.low, self.high
        )
    }
}

/// The processor and the number of its cores, for the record.
pub(super) fn machine() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("an unknown processor", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{cores} × {model}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Step;

    fn metrics(step_ms: &[f64]) -> Metrics {
        let steps = step_ms
            .iter()
            .zip(1..)
            .map(|(ms, step)| Step {
                step,
                samples: 0,
                batch: 0,
                lr: 0.0,
                tokens: step * 2048,
                loss: 1.0,
                step_ms: *ms,
                phases: [("forward_ms".to_owned(), ms / 2.0)].into(),
            })
            .collect();
        Metrics {
            steps,
            validations: Vec::new(),
        }
    }

    #[test]
    fn the_first_steps_do_not_count_and_the_middle_one_is_taken() {
        let run = measured(&metrics(&[9000.0, 9000.0, 9000.0, 100.0, 500.0, 200.0]), 700.0).unwrap();
        assert_eq!(run.step_ms, 200.0);
        assert_eq!(run.mean_ms, 800.0 / 3.0);
        assert_eq!(run.tokens_per_second, 10240.0);
        assert_eq!(run.phases["forward_ms"], 100.0);
        assert!(measured(&metrics(&[1.0, 1.0, 1.0]), 0.0).is_err());
    }

    #[test]
    fn medians_are_of_even_and_odd_numbers_of_values() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median(std::iter::empty()).is_nan());
    }
}

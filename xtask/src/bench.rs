//! `bench train`: a training step of `examples/bench-30m.toml` on two ranks with one thread each, phase by phase, and
//! beside it, turn about, a peer that the user names. Quoted are medians over the runs, their spread, and the ratio.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::demo::build;
use crate::failure::{Failure, on_path};
use crate::metrics::{Metrics, Summary};
use crate::process;
use crate::setup::setup;
use crate::workspace::Workspace;

const CONFIG: &str = "examples/bench-30m.toml";
const TEXT: &str = "examples/data/tinyshakespeare.txt";
/// The first steps warm caches and allocators up.
const FIRST_MEASURED_STEP: u64 = 4;
const RANKS: &str = "2";

/// Another trainer's script and how to start it.
pub(crate) struct Peer {
    pub(crate) script: PathBuf,
    pub(crate) python: PathBuf,
    pub(crate) arguments: Vec<String>,
}

/// What one run of either side gave.
#[derive(Debug, PartialEq)]
struct Measured {
    tokens_per_second: f64,
    step_ms: f64,
    /// Median milliseconds by phase.
    phases: BTreeMap<String, f64>,
    memory_mib: f64,
}

/// Runs the benchmark and prints its table. `sets` are changes of the config.
pub(crate) fn train(workspace: &Workspace, peer: Option<&Peer>, runs: u32, sets: &[String]) -> Result<(), Failure> {
    if let Some(peer) = peer {
        for path in [&peer.script, &peer.python] {
            if !path.is_file() {
                return Err(Failure::input(format!(
                    "the peer needs {}, which is not a file",
                    path.display()
                )));
            }
        }
    }
    setup(workspace, None)?;
    build(workspace)?;
    let place = workspace.programs.parent().unwrap_or(&workspace.programs).join("bench");
    fs::create_dir_all(&place).map_err(on_path("create", &place))?;
    let data = place.join("data");
    let mut prepare = Command::new(workspace.program("lockstep"));
    prepare
        .args(["data", "prepare", "--tokenizer", "gpt2", "--out"])
        .arg(&data)
        .arg(workspace.root.join(TEXT));
    process::run("preparing the data", &mut prepare)?;

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 1..=runs {
        println!("\n== turn {turn} of {runs}");
        ours.push(run_ours(workspace, &place, &data, sets)?);
        if let Some(peer) = peer {
            theirs.push(run_peer(peer)?);
        }
    }
    println!("\n{}", machine());
    println!("{}", table(&ours, &theirs));
    Ok(())
}

fn run_ours(workspace: &Workspace, place: &Path, data: &Path, sets: &[String]) -> Result<Measured, Failure> {
    const NAME: &str = "bench-30m";
    let run = place.join("runs").join(NAME);
    if run.exists() {
        fs::remove_dir_all(&run).map_err(on_path("remove", &run))?;
    }
    let mut command = Command::new(workspace.program("lockstep"));
    command
        .current_dir(place)
        .arg("run")
        .arg(workspace.root.join(CONFIG))
        .args(["-n", RANKS]);
    let own = [format!("data.path={}", data.display()), format!("run.name={NAME}")];
    for set in own.iter().chain(sets) {
        command.args(["--set", set]);
    }
    process::run("the benchmark's run", &mut command)?;
    let summary = Summary::read(&run)?;
    measured(&Metrics::read(&run)?, summary.peak_memory_mib as f64)
}

fn measured(metrics: &Metrics, memory_mib: f64) -> Result<Measured, Failure> {
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
        phases,
        memory_mib,
    })
}

fn run_peer(peer: &Peer) -> Result<Measured, Failure> {
    let mut command = Command::new(&peer.python);
    command
        .env("OMP_NUM_THREADS", "1")
        .args(["-m", "torch.distributed.run", "--nproc_per_node", RANKS])
        .arg(&peer.script)
        .args(&peer.arguments);
    let text = process::text_of("the peer", &mut command)?;
    measured_peer(&text).ok_or_else(|| {
        Failure::work(
            "the peer printed no JSON line with tokens_per_second, step_ms and peak_memory_mib, which is what is read of it",
        )
    })
}

fn measured_peer(text: &str) -> Option<Measured> {
    let line = text.lines().rev().find(|line| line.trim_start().starts_with('{'))?;
    let report: BTreeMap<String, serde_json::Value> = serde_json::from_str(line).ok()?;
    let number = |key: &str| report.get(key)?.as_f64();
    let phases = report
        .iter()
        .filter(|(key, _)| key.ends_with("_ms") && *key != "step_ms")
        .filter_map(|(key, value)| Some((key.clone(), value.as_f64()?)))
        .collect();
    Some(Measured {
        tokens_per_second: number("tokens_per_second")?,
        step_ms: number("step_ms")?,
        phases,
        memory_mib: number("peak_memory_mib")?,
    })
}

/// Middle value, or the mean of the two middle ones; NaN of nothing.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// A Markdown table, ready for PERFORMANCE.md.
fn table(ours: &[Measured], theirs: &[Measured]) -> String {
    let mut lines = vec![
        format!(
            "| {:<24} | {:>30} | {:>30} | {:>7} |",
            "median of runs (range)", "lockstep", "peer", "ratio"
        ),
        format!("| {0:-<24} | {0:->30} | {0:->30} | {0:->7} |", ""),
    ];
    let mut row = |name: &str, of: &dyn Fn(&Measured) -> Option<f64>, larger_is_better: bool| {
        let (left, right) = (spread(ours, of), spread(theirs, of));
        let ratio = match (&left, &right) {
            (Some(left), Some(right)) if larger_is_better => format!("{:.2}", left.median / right.median),
            (Some(left), Some(right)) => format!("{:.2}", right.median / left.median),
            _ => String::new(),
        };
        let shown = |side: &Option<Spread>| side.as_ref().map_or_else(String::new, Spread::shown);
        lines.push(format!(
            "| {name:<24} | {:>30} | {:>30} | {ratio:>7} |",
            shown(&left),
            shown(&right)
        ));
    };
    row("tokens/s", &|run| Some(run.tokens_per_second), true);
    row("step, ms", &|run| Some(run.step_ms), false);
    let names = |runs: &[Measured]| {
        runs.first()
            .map(|run| run.phases.keys().cloned().collect())
            .unwrap_or_default()
    };
    let mut phases: Vec<String> = names(ours);
    phases.extend(
        names(theirs)
            .into_iter()
            .filter(|name| !phases.contains(name))
            .collect::<Vec<_>>(),
    );
    for name in &phases {
        row(
            &name.replace("_ms", ", ms"),
            &|run| run.phases.get(name).copied(),
            false,
        );
    }
    row("memory per rank, MiB", &|run| Some(run.memory_mib), false);
    lines.push(format!(
        "{} runs each, turn about; ratio above 1: lockstep is faster or smaller. {RANKS} ranks × 1 thread.",
        ours.len()
    ));
    lines.join("\n")
}

struct Spread {
    median: f64,
    low: f64,
    high: f64,
}

impl Spread {
    fn shown(&self) -> String {
        format!("{:.1} ({:.1}–{:.1})", self.median, self.low, self.high)
    }
}

fn spread(runs: &[Measured], of: &dyn Fn(&Measured) -> Option<f64>) -> Option<Spread> {
    let values: Vec<f64> = runs.iter().filter_map(of).collect();
    (!values.is_empty()).then(|| Spread {
        median: median(values.iter().copied()),
        low: values.iter().copied().fold(f64::INFINITY, f64::min),
        high: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    })
}

/// The processor and the number of its cores, for the record.
fn machine() -> String {
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
        assert_eq!(run.tokens_per_second, 10240.0);
        assert_eq!(run.phases["forward_ms"], 100.0);
        assert!(measured(&metrics(&[1.0, 1.0, 1.0]), 0.0).is_err());
    }

    #[test]
    fn the_peer_is_read_from_its_last_json_line() {
        let text = "a warning\n{\"tokens_per_second\": 1576.0, \"forward_ms\": 351, \"step_ms\": 1300, \"peak_memory_mib\": 1873, \"muon\": \"torch\"}\n";
        let run = measured_peer(text).unwrap();
        assert_eq!(
            (run.tokens_per_second, run.step_ms, run.memory_mib),
            (1576.0, 1300.0, 1873.0)
        );
        assert_eq!(run.phases, [("forward_ms".to_owned(), 351.0)].into());
        assert_eq!(measured_peer("nothing\n"), None);
        assert_eq!(measured_peer("{\"step_ms\": 3}\n"), None);
    }

    #[test]
    fn medians_are_of_even_and_odd_numbers_of_values() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median(std::iter::empty()).is_nan());
    }

    #[test]
    fn a_ratio_above_one_always_means_that_lockstep_is_better() {
        let ours = [measured(&metrics(&[0.0, 0.0, 0.0, 500.0]), 900.0).unwrap()];
        let theirs = [measured(&metrics(&[0.0, 0.0, 0.0, 1000.0]), 1800.0).unwrap()];
        let text = table(&ours, &theirs);
        for name in ["tokens/s", "step, ms", "forward, ms", "memory per rank, MiB"] {
            let line = text.lines().find(|line| line.contains(name)).unwrap();
            assert!(line.trim_end_matches([' ', '|']).ends_with("2.00"), "{line}");
        }
    }
}

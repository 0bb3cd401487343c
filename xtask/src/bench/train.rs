//! `bench train`: a training step of `examples/bench-30m.toml` on two ranks with one thread each, phase by phase, and
//! beside it, turn about, a peer that the user names. Quoted are medians over the runs, their spread, and the ratio.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use super::step::{Bench, Measured, Spread, machine};
use crate::failure::Failure;
use crate::process;
use crate::workspace::Workspace;

const RANKS: u32 = 2;

/// Options of `bench train`.
#[derive(Args)]
pub(crate) struct Options {
    /// A training script for `python -m torch.distributed.run` that prints one JSON line, run turn about with ours.
    #[arg(long, requires = "python")]
    peer: Option<PathBuf>,
    /// The Python interpreter that has what the peer needs.
    #[arg(long, requires = "peer")]
    python: Option<PathBuf>,
    /// An argument for the peer's script; repeat it for more.
    #[arg(long = "peer-arg", requires = "peer", allow_hyphen_values = true)]
    peer_arguments: Vec<String>,
    /// How many runs of each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// A change of the config, as in `lockstep run --set`; repeat it for more.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// Another trainer's script and how to start it.
struct Peer<'a> {
    script: &'a PathBuf,
    python: &'a PathBuf,
    arguments: &'a [String],
}

/// Runs the benchmark and prints its table.
pub(crate) fn train(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let peer = options
        .peer
        .as_ref()
        .zip(options.python.as_ref())
        .map(|(script, python)| Peer {
            script,
            python,
            arguments: &options.peer_arguments,
        });
    if let Some(peer) = &peer {
        for path in [peer.script, peer.python] {
            if !path.is_file() {
                return Err(Failure::input(format!(
                    "the peer needs {}, which is not a file",
                    path.display()
                )));
            }
        }
    }
    let bench = Bench::prepare(workspace)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 1..=options.runs {
        println!("\n== turn {turn} of {}", options.runs);
        ours.push(bench.run(RANKS, &options.sets)?);
        if let Some(peer) = &peer {
            theirs.push(run_peer(peer)?);
        }
    }
    println!("\n{}", machine());
    println!("{}", table(&ours, &theirs));
    Ok(())
}

fn run_peer(peer: &Peer<'_>) -> Result<Measured, Failure> {
    let mut command = Command::new(peer.python);
    command
        .env("OMP_NUM_THREADS", "1")
        .args(["-m", "torch.distributed.run", "--nproc_per_node", &RANKS.to_string()])
        .arg(peer.script)
        .args(peer.arguments);
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
        mean_ms: number("step_ms")?,
        phases,
        memory_mib: number("peak_memory_mib")?,
    })
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
        let spread = |runs: &[Measured]| Spread::of(&runs.iter().filter_map(of).collect::<Vec<_>>());
        let (left, right) = (spread(ours), spread(theirs));
        let ratio = match (&left, &right) {
            (Some(left), Some(right)) if larger_is_better => format!("{:.2}", left.median / right.median),
            (Some(left), Some(right)) => format!("{:.2}", right.median / left.median),
            _ => String::new(),
        };
        let shown = |side: &Option<Spread>| side.map_or_else(String::new, |side| side.shown(1));
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_ratio_above_one_always_means_that_lockstep_is_better() {
        let run = |factor: f64| Measured {
            tokens_per_second: 4096.0 / factor,
            step_ms: 500.0 * factor,
            mean_ms: 500.0 * factor,
            phases: [("forward_ms".to_owned(), 250.0 * factor)].into(),
            memory_mib: 900.0 * factor,
        };
        let text = table(&[run(1.0)], &[run(2.0)]);
        for name in ["tokens/s", "step, ms", "forward, ms", "memory per rank, MiB"] {
            let line = text.lines().find(|line| line.contains(name)).unwrap();
            assert!(line.trim_end_matches([' ', '|']).ends_with("2.00"), "{line}");
        }
    }
}

//! `bench safety`: what it costs to be able to go on after a failure. The step of `bench train` with and without the search
//! for memory that changes, snapshots in memory, and checkpoints, turn about; time and memory.

use clap::Args;

use super::columns::{Column, ratios, times};
use super::step::{Bench, machine};
use crate::failure::Failure;
use crate::workspace::Workspace;

/// Steps with these changes of the config are compared; the first has nothing. A checkpoint is due after every step of the
/// last one, so that one is being written at any time.
const ROWS: &[(&str, &[&str])] = &[
    ("nothing", &["fault.snapshot_every=0", "fault.drift_every=0"]),
    ("drift", &["fault.snapshot_every=0", "fault.drift_every=1"]),
    ("snapshot every 20", &["fault.snapshot_every=20", "fault.drift_every=0"]),
    ("snapshot every 4", &["fault.snapshot_every=4", "fault.drift_every=0"]),
    (
        "snapshot every step",
        &["fault.snapshot_every=1", "fault.drift_every=0"],
    ),
    (
        "checkpoint every step",
        &["fault.snapshot_every=0", "fault.drift_every=0", "checkpoint.every=1"],
    ),
];

/// Options of `bench safety`.
#[derive(Args)]
pub(crate) struct Options {
    /// How many rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// A change of the config, as in `lockstep run --set`; repeat it for more.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Only rows whose names contain this, beside the first; repeat it for more.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
}

/// Runs the benchmark and prints its tables.
pub(crate) fn safety(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let bench = Bench::prepare(workspace)?;
    let is_wanted =
        |name: &str| options.only.is_empty() || options.only.iter().any(|only| name.contains(only.as_str()));
    let rows: Vec<_> = ROWS
        .iter()
        .enumerate()
        .filter(|(at, (name, _))| *at == 0 || is_wanted(name))
        .map(|(_, row)| row)
        .collect();
    let mut columns: Vec<Column> = rows
        .iter()
        .map(|(name, _)| Column {
            name: (*name).to_owned(),
            runs: Vec::new(),
        })
        .collect();
    for round in 1..=options.rounds {
        for (column, (_, own)) in columns.iter_mut().zip(&rows) {
            println!("\n== round {round} of {}: {}", options.rounds, column.name);
            let own = own.iter().map(|set| (*set).to_owned());
            let sets: Vec<String> = options.sets.iter().cloned().chain(own).collect();
            column.runs.push(bench.run(2, &sets)?);
        }
    }
    println!("\n{}", machine());
    println!(
        "{} runs each, turn about, 2 ranks × 1 thread: median of the runs' means (range)\n\n{}",
        options.rounds,
        times(&columns)
    );
    println!(
        "\nRatio to {} in the same round, median (range)\n\n{}",
        ROWS[0].0,
        ratios(&columns)
    );
    Ok(())
}

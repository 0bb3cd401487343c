//! `bench optimizer`: what a step costs with one optimiser and another. The step of `bench train` runs with each of
//! them, turn about; the first one listed is what the others are compared with, round by round. Beside the times stand
//! the polar cost and the state of the busiest rank, which `lockstep inspect` works out for 1, 2 and 4 ranks.

use clap::Args;

use super::columns::{Column, ratios, times};
use super::inspected::{RankLoad, rank_loads};
use super::markdown;
use super::step::{Bench, machine};
use super::variant::Variant;
use crate::failure::Failure;
use crate::workspace::Workspace;

/// Worlds whose loads are shown.
const WORLDS: [u32; 3] = [1, 2, 4];

/// Options of `bench optimizer`.
#[derive(Args)]
pub(crate) struct Options {
    /// Optimisers, the first being what the others are compared with; METHOD+momo sets momo's lower bound to 0.
    #[arg(long, value_delimiter = ',', default_value = "muonadam,muonmax,muonmax+momo,adamw")]
    methods: Vec<Variant>,
    /// How many runs of each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// How many ranks, with one thread each.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    ranks: u32,
    /// A change of the config, as in `lockstep run --set`; repeat it for more.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// The loads of all ranks of a world.
struct World {
    variant: Variant,
    loads: Vec<RankLoad>,
}

/// Runs the benchmark and prints its tables.
pub(crate) fn optimizer(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let bench = Bench::prepare(workspace)?;
    let sets = |variant: &Variant| [variant.sets(), options.sets.clone()].concat();
    // First, since it is over at once and refuses a method that does not exist.
    let mut worlds = Vec::new();
    for variant in &options.methods {
        for ranks in WORLDS {
            // There are as many lanes as ranks at least; how many has no part in the loads.
            let lanes = WORLDS.into_iter().fold(options.ranks, u32::max);
            let sets = [sets(variant), vec![format!("run.lanes={lanes}")]].concat();
            let text = bench.inspect(ranks, &sets)?;
            let loads = rank_loads(&text).filter(|loads| loads.len() == ranks as usize);
            worlds.push(World {
                variant: variant.clone(),
                loads: loads.ok_or_else(|| {
                    Failure::work(format!(
                        "`lockstep inspect -n {ranks}` printed no table with a polar cost and a state for each of {ranks} ranks:\n{text}"
                    ))
                })?,
            });
        }
    }
    let mut columns: Vec<Column> = options
        .methods
        .iter()
        .map(|variant| Column {
            name: variant.to_string(),
            runs: Vec::new(),
        })
        .collect();
    for round in 1..=options.runs {
        for (column, variant) in columns.iter_mut().zip(&options.methods) {
            println!("\n== round {round} of {}: {}", options.runs, column.name);
            column.runs.push(bench.run(options.ranks, &sets(variant))?);
        }
    }
    println!("\n{}", machine());
    println!(
        "{} runs each, turn about, {} ranks × 1 thread: median of the runs' medians (range)\n\n{}",
        options.runs,
        options.ranks,
        times(&columns)
    );
    if let [first, _, ..] = &columns[..] {
        println!(
            "\nRatio to {} in the same round, median (range); below 1 is faster or smaller\n\n{}",
            first.name,
            ratios(&columns)
        );
    }
    println!(
        "\nLoads: polar cost is Σ max(m, n)·min(m, n)² over the hidden matrices m × n of a rank\n\n{}",
        loads(&worlds)
    );
    Ok(())
}

fn loads(worlds: &[World]) -> String {
    let header = [
        "method",
        "ranks",
        "busiest rank's polar cost, 10⁶",
        "÷ mean",
        "largest master + state, MiB",
        "÷ mean",
    ]
    .map(str::to_owned);
    let rows: Vec<Vec<String>> = worlds
        .iter()
        .map(|world| {
            let (cost, cost_imbalance) = busiest(&world.loads, |load| load.polar_cost / 1e6);
            let (state, state_imbalance) = busiest(&world.loads, |load| load.state_mib);
            vec![
                world.variant.to_string(),
                world.loads.len().to_string(),
                cost,
                cost_imbalance,
                state,
                state_imbalance,
            ]
        })
        .collect();
    markdown::table(&header, &rows)
}

/// The largest load, and how many times the mean it is; nothing to say of an imbalance where there is no load.
fn busiest(loads: &[RankLoad], of: impl Fn(&RankLoad) -> f64) -> (String, String) {
    let largest = loads.iter().map(&of).fold(0.0, f64::max);
    let mean = loads.iter().map(&of).sum::<f64>() / loads.len() as f64;
    let imbalance = match mean > 0.0 {
        true => format!("{:.3}", largest / mean),
        false => "–".to_owned(),
    };
    (format!("{largest:.1}"), imbalance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::columns::cells;

    #[test]
    fn the_busiest_rank_is_compared_with_the_mean() {
        let load = |polar_cost, state_mib| RankLoad { polar_cost, state_mib };
        let world = |variant: &str, loads: &[RankLoad]| World {
            variant: variant.parse().unwrap(),
            loads: loads.to_vec(),
        };
        let text = loads(&[
            world("muonadam", &[load(3e6, 10.0), load(1e6, 30.0)]),
            world("adamw", &[load(0.0, 10.0), load(0.0, 10.0)]),
        ]);
        assert_eq!(
            cells(&text, "muonadam"),
            ["muonadam", "2", "3.0", "1.500", "30.0", "1.500"]
        );
        assert_eq!(cells(&text, "adamw"), ["adamw", "2", "0.0", "–", "10.0", "1.000"]);
    }
}

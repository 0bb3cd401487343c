//! `bench optimizer`: what a step costs with one optimiser and another. The step of `bench train` runs with each of
//! them, turn about; the first one listed is what the others are compared with, round by round. Beside the times stand
//! the polar cost and the state of the busiest rank, which `lockstep inspect` works out for 1, 2 and 4 ranks.

use clap::Args;

use super::inspected::{RankLoad, rank_loads};
use super::markdown;
use super::step::{Bench, Measured, Spread, machine};
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

/// An optimiser and what its runs gave, one for each round.
struct Column {
    variant: Variant,
    runs: Vec<Measured>,
}

/// Something measured of a run.
enum Quantity {
    Step,
    /// Milliseconds of a phase, by its name in the metrics.
    Phase(String),
    Memory,
}

impl Quantity {
    fn name(&self) -> String {
        match self {
            Quantity::Step => "step, ms".to_owned(),
            Quantity::Phase(name) => name.replace("_ms", ", ms"),
            Quantity::Memory => "memory per rank, MiB".to_owned(),
        }
    }

    fn of(&self, run: &Measured) -> Option<f64> {
        match self {
            Quantity::Step => Some(run.step_ms),
            Quantity::Phase(name) => run.phases.get(name).copied(),
            Quantity::Memory => Some(run.memory_mib),
        }
    }
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
            variant: variant.clone(),
            runs: Vec::new(),
        })
        .collect();
    for round in 1..=options.runs {
        for column in &mut columns {
            println!("\n== round {round} of {}: {}", options.runs, column.variant);
            column.runs.push(bench.run(options.ranks, &sets(&column.variant))?);
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
            first.variant,
            ratios(&columns)
        );
    }
    println!(
        "\nLoads: polar cost is Σ max(m, n)·min(m, n)² over the hidden matrices m × n of a rank\n\n{}",
        loads(&worlds)
    );
    Ok(())
}

/// Step, phases and memory; a phase that only some of the optimisers have is among them.
fn quantities(columns: &[Column]) -> Vec<Quantity> {
    let mut names: Vec<&String> = Vec::new();
    for name in columns
        .iter()
        .flat_map(|column| &column.runs)
        .flat_map(|run| run.phases.keys())
    {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let phases = names.into_iter().cloned().map(Quantity::Phase);
    [Quantity::Step]
        .into_iter()
        .chain(phases)
        .chain([Quantity::Memory])
        .collect()
}

/// One row for each quantity, one column for each optimiser.
fn by_optimiser(columns: &[Column], first_cell: &str, cell: impl Fn(&Quantity, &Column) -> String) -> String {
    let mut header = vec![first_cell.to_owned()];
    header.extend(columns.iter().map(|column| column.variant.to_string()));
    let rows: Vec<Vec<String>> = quantities(columns)
        .iter()
        .map(|quantity| {
            let cells = columns.iter().map(|column| cell(quantity, column));
            [quantity.name()].into_iter().chain(cells).collect()
        })
        .collect();
    markdown::table(&header, &rows)
}

fn times(columns: &[Column]) -> String {
    by_optimiser(columns, "median (range)", |quantity, column| {
        let values: Vec<f64> = column.runs.iter().filter_map(|run| quantity.of(run)).collect();
        Spread::of(&values).map_or_else(String::new, |spread| spread.shown(1))
    })
}

/// Ratios of runs of one round, so that what slows a whole round down does not show. Where the first optimiser spends
/// nothing there is none.
fn ratios(columns: &[Column]) -> String {
    by_optimiser(columns, "ratio (range)", |quantity, column| {
        let base = columns.first().map_or(&[][..], |first| &first.runs);
        let values: Vec<f64> = column
            .runs
            .iter()
            .zip(base)
            .filter_map(|(run, base)| Some(quantity.of(run)? / quantity.of(base)?))
            .filter(|ratio| ratio.is_finite())
            .collect();
        Spread::of(&values).map_or_else(String::new, |spread| spread.shown(3))
    })
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

    fn column(variant: &str, steps: &[f64], phases: &[(&str, f64)]) -> Column {
        let runs = steps.iter().map(|step_ms| Measured {
            tokens_per_second: 2048.0 / step_ms * 1e3,
            step_ms: *step_ms,
            phases: phases.iter().map(|(name, ms)| ((*name).to_owned(), *ms)).collect(),
            memory_mib: 700.0,
        });
        Column {
            variant: variant.parse().unwrap(),
            runs: runs.collect(),
        }
    }

    fn cells<'a>(table: &'a str, row: &str) -> Vec<&'a str> {
        let line = table
            .lines()
            .find(|line| line.starts_with(&format!("| {row} ")))
            .unwrap();
        line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect()
    }

    #[test]
    fn ratios_are_of_the_same_round_and_their_median_is_taken() {
        // Each round is slower than the one before by more than the optimisers differ.
        let columns = [
            column("muonadam", &[100.0, 200.0, 400.0], &[("polar_ms", 10.0)]),
            column("muonmax+momo", &[110.0, 210.0, 480.0], &[("polar_ms", 10.0)]),
        ];
        assert_eq!(
            cells(&ratios(&columns), "step, ms"),
            ["step, ms", "1.000 (1.000–1.000)", "1.100 (1.050–1.200)"]
        );
        assert_eq!(
            cells(&times(&columns), "step, ms"),
            ["step, ms", "200.0 (100.0–400.0)", "210.0 (110.0–480.0)"]
        );
    }

    #[test]
    fn a_phase_that_one_optimiser_lacks_is_shown_for_the_others() {
        let columns = [
            column("adamw", &[100.0], &[("apply_ms", 5.0), ("polar_ms", 0.0)]),
            column(
                "muonmax",
                &[120.0],
                &[("norms_ms", 2.0), ("apply_ms", 5.0), ("polar_ms", 9.0)],
            ),
        ];
        assert_eq!(cells(&times(&columns), "norms, ms"), ["norms, ms", "2.0 (2.0–2.0)"]);
        // Nothing can be compared with no milliseconds.
        assert_eq!(cells(&ratios(&columns), "polar, ms"), ["polar, ms"]);
    }

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

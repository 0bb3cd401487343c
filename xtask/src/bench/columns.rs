//! Several ways to make the same step, measured turn about: one column each, the first being what the others are compared
//! with, round by round, so that what slows a whole round down does not show.

use super::markdown;
use super::step::{Measured, Spread};

/// A way to make the step, and what its runs gave, one for each round.
pub(super) struct Column {
    pub(super) name: String,
    pub(super) runs: Vec<Measured>,
}

/// Something measured of a run.
pub(super) enum Quantity {
    Step,
    MeanStep,
    /// Milliseconds of a phase, by its name in the metrics.
    Phase(String),
    Memory,
}

impl Quantity {
    fn name(&self) -> String {
        match self {
            Quantity::Step => "step, ms".to_owned(),
            Quantity::MeanStep => "step, mean, ms".to_owned(),
            Quantity::Phase(name) => name.replace("_ms", ", ms"),
            Quantity::Memory => "memory per rank, MiB".to_owned(),
        }
    }

    fn of(&self, run: &Measured) -> Option<f64> {
        match self {
            Quantity::Step => Some(run.step_ms),
            Quantity::MeanStep => Some(run.mean_ms),
            Quantity::Phase(name) => run.phases.get(name).copied(),
            Quantity::Memory => Some(run.memory_mib),
        }
    }
}

/// Step, phases and memory; a phase that only some of the columns have is among them.
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
    [Quantity::Step, Quantity::MeanStep]
        .into_iter()
        .chain(phases)
        .chain([Quantity::Memory])
        .collect()
}

/// One row for each quantity.
fn by_quantity(columns: &[Column], first_cell: &str, cell: impl Fn(&Quantity, &Column) -> String) -> String {
    let mut header = vec![first_cell.to_owned()];
    header.extend(columns.iter().map(|column| column.name.clone()));
    let rows: Vec<Vec<String>> = quantities(columns)
        .iter()
        .map(|quantity| {
            let cells = columns.iter().map(|column| cell(quantity, column));
            [quantity.name()].into_iter().chain(cells).collect()
        })
        .collect();
    markdown::table(&header, &rows)
}

/// Medians and ranges.
pub(super) fn times(columns: &[Column]) -> String {
    by_quantity(columns, "median (range)", |quantity, column| {
        let values: Vec<f64> = column.runs.iter().filter_map(|run| quantity.of(run)).collect();
        Spread::of(&values).map_or_else(String::new, |spread| spread.shown(1))
    })
}

/// Ratios of runs of one round to the first column's. Where that spends nothing there is none.
pub(super) fn ratios(columns: &[Column]) -> String {
    by_quantity(columns, "ratio (range)", |quantity, column| {
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

/// The cells of a row of such a table.
#[cfg(test)]
pub(super) fn cells<'a>(table: &'a str, row: &str) -> Vec<&'a str> {
    let line = table
        .lines()
        .find(|line| line.starts_with(&format!("| {row} ")))
        .unwrap();
    line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, steps: &[f64], phases: &[(&str, f64)]) -> Column {
        let runs = steps.iter().map(|step_ms| Measured {
            tokens_per_second: 2048.0 / step_ms * 1e3,
            step_ms: *step_ms,
            mean_ms: *step_ms,
            phases: phases.iter().map(|(name, ms)| ((*name).to_owned(), *ms)).collect(),
            memory_mib: 700.0,
        });
        Column {
            name: name.to_owned(),
            runs: runs.collect(),
        }
    }

    #[test]
    fn ratios_are_of_the_same_round_and_their_median_is_taken() {
        // Each round is slower than the one before by more than the columns differ.
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
    fn a_phase_that_one_column_lacks_is_shown_for_the_others() {
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
}

//! The table of a sweep: the best loss of each optimiser, where it is, and how wide the basin around it.

use super::curve::{Curve, Width, best_of_all};
use crate::bench::markdown;

/// How far above the best loss the basin reaches, in nats.
const TOLERANCE: f64 = 0.05;

/// A Markdown table, and below it how many seeds it speaks for.
pub(super) fn table(curves: &[Curve]) -> String {
    let header = [
        "method".to_owned(),
        "best loss (range)".to_owned(),
        "at rate".to_owned(),
        format!("octaves within {TOLERANCE} of its best"),
        format!("octaves within {TOLERANCE} of the best of all"),
        "diverged".to_owned(),
    ];
    let best_of_all = best_of_all(curves);
    let rows: Vec<Vec<String>> = curves
        .iter()
        .map(|curve| {
            let runs: usize = curve.points.iter().map(|point| point.runs()).sum();
            let diverged: usize = curve.points.iter().map(|point| point.diverged).sum();
            let width = |best: Option<f64>| best.map_or_else(String::new, |best| shown(curve.width(best + TOLERANCE)));
            let best = curve.best();
            let loss = best.map(|point| {
                let low = point.losses.iter().copied().fold(f64::INFINITY, f64::min);
                let high = point.losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                format!("{:.3} ({low:.3}–{high:.3})", point.mean)
            });
            vec![
                curve.variant.to_string(),
                loss.unwrap_or_else(|| "none".to_owned()),
                best.map_or_else(String::new, |point| format!("{:e}", significant(point.rate))),
                width(best.map(|point| point.mean)),
                width(best_of_all),
                format!("{diverged} of {runs}"),
            ]
        })
        .collect();
    format!("{}\n\n{}", markdown::table(&header, &rows), seeds(curves))
}

/// Three digits are enough for people.
fn significant(rate: f64) -> f64 {
    format!("{rate:.2e}").parse().unwrap_or(rate)
}

fn shown(width: Width) -> String {
    format!("{}{:.1}", if width.open { "> " } else { "" }, width.octaves)
}

fn seeds(curves: &[Curve]) -> String {
    let runs = || curves.iter().flat_map(|curve| &curve.points).map(|point| point.runs());
    let (fewest, most) = (runs().min().unwrap_or(0), runs().max().unwrap_or(0));
    let count = match fewest == most {
        true if most == 1 => "One run at each rate".to_owned(),
        true => format!("Means over {most} runs at each rate"),
        false => format!("Means over {fewest} to {most} runs at a rate, since some are missing"),
    };
    format!("{count}; `>`: the basin goes on beyond the rates that were tried.")
}

#[cfg(test)]
mod tests {
    use super::super::curve::Point;
    use super::*;

    fn curve(variant: &str, points: &[(f64, &[f64], usize)]) -> Curve {
        let point = |&(rate, losses, diverged): &(f64, &[f64], usize)| Point {
            rate,
            mean: match diverged {
                0 => losses.iter().sum::<f64>() / losses.len() as f64,
                _ => f64::INFINITY,
            },
            losses: losses.to_vec(),
            diverged,
        };
        Curve {
            variant: variant.parse().unwrap(),
            points: points.iter().map(point).collect(),
        }
    }

    fn cells<'a>(table: &'a str, row: &str) -> Vec<&'a str> {
        let line = table
            .lines()
            .find(|line| line.starts_with(&format!("| {row} ")))
            .unwrap();
        line.trim_matches('|').split('|').map(str::trim).collect()
    }

    #[test]
    fn each_method_is_measured_by_its_own_best_and_by_that_of_all() {
        let text = table(&[
            curve(
                "muonadam",
                &[
                    (1e-3, &[2.2, 2.2], 0),
                    (2e-3, &[2.0, 2.02], 0),
                    (4e-3, &[2.05], 1),
                    (8e-3, &[], 2),
                ],
            ),
            curve("adamw", &[(1e-3, &[2.3, 2.3], 0), (2e-3, &[2.3, 2.32], 0)]),
        ]);
        let best = cells(&text, "muonadam");
        assert_eq!(
            best,
            ["muonadam", "2.010 (2.000–2.020)", "2e-3", "0.3", "0.3", "3 of 8"]
        );
        let other = cells(&text, "adamw");
        assert_eq!(
            other,
            ["adamw", "2.300 (2.300–2.300)", "1e-3", "> 1.0", "0.0", "0 of 4"]
        );
        assert!(text.contains("Means over 2 runs at each rate"), "{text}");
    }

    #[test]
    fn a_method_that_always_diverged_and_a_sweep_with_missing_runs_are_shown_as_such() {
        let text = table(&[
            curve("scion", &[(1e-3, &[], 1)]),
            curve("muon", &[(0.006 / 8.0, &[2.5, 2.5], 0)]),
        ]);
        assert_eq!(cells(&text, "scion"), ["scion", "none", "", "", "0.0", "1 of 1"]);
        assert_eq!(cells(&text, "muon")[2], "7.5e-4");
        assert!(text.contains("over 1 to 2 runs"), "{text}");
    }
}

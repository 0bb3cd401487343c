//! `lockstep schedule`: what a run will do, before it is paid for.
//!
//! The coordinator's own [`Planner`] is asked, so the preview cannot differ from the run. The data is looked at only
//! to count epochs, and need not be there.

use std::fmt::Write;
use std::path::Path;

use lockstep_config::RunConfig;
use lockstep_coordinator::plan::{PlanRow, Planner};
use lockstep_data::Manifest;
use plotters::prelude::*;

use crate::cli::ScheduleArguments;
use crate::ending::Ending;

/// The header of the CSV file.
const CSV_HEADER: &str = "step,samples,tokens,learning_rate,batch";
/// Lines of the printed table.
const TABLE_ROWS: u64 = 12;
/// Points of a drawn line.
const DRAWN_POINTS: u64 = 1000;
/// More steps than this are drawn and tabled, but not written out one by one.
const CSV_STEPS: u64 = 50_000_000;

/// Prints a schedule, and writes it as CSV and SVG where asked for.
pub(crate) fn schedule(arguments: &ScheduleArguments) -> Result<(), Ending> {
    let config = RunConfig::read(&arguments.config, &arguments.sets).map_err(Ending::bad_input)?;
    let training_samples = Manifest::read(&config.data.path).map_or(0, |(manifest, _)| {
        manifest.train.tokens.saturating_sub(1) / u64::from(config.data.sequence_length)
    });
    let planner = Planner::new(&config, training_samples);
    if arguments.csv.is_some() && planner.total_steps() > CSV_STEPS {
        return Err(Ending::BadInput(format!(
            "the run has {} steps, too many to write one by one; leave --csv out",
            planner.total_steps()
        )));
    }
    print!("{}", table(&planner, training_samples));
    if let Some(path) = &arguments.csv {
        write(path, &csv(&planner))?;
    }
    if let Some(path) = &arguments.svg {
        let drawing =
            svg(&planner).map_err(|error| Ending::Failed(format!("the schedule cannot be drawn: {error}")))?;
        write(path, &drawing)?;
    }
    Ok(())
}

fn write(path: &Path, content: &str) -> Result<(), Ending> {
    std::fs::write(path, content)
        .map_err(|error| Ending::BadInput(format!("cannot write {}: {error}; choose another file", path.display())))?;
    println!("written: {}", path.display());
    Ok(())
}

/// The row of a step, without going through those before it.
fn row(planner: &Planner, step: u64) -> (u64, f64, u64, u64) {
    let plan = planner.plan(step, planner.cursor_after(step - 1));
    (step, plan.learning_rate, plan.samples, planner.cursor_after(step))
}

/// At most `count` steps from the first to the last, evenly spread.
fn spread(total: u64, count: u64) -> Vec<u64> {
    if total <= count {
        return (1..=total).collect();
    }
    let last = u128::from(count - 1);
    (0..count)
        .map(|index| 1 + u64::try_from(u128::from(index) * u128::from(total - 1) / last).unwrap_or(total))
        .collect()
}

fn table(planner: &Planner, training_samples: u64) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |content: String| {
        let _ = writeln!(text, "{content}");
    };
    line(format!(
        "{:>12} {:>14} {:>14} {:>8}",
        "step", "samples", "learning rate", "batch"
    ));
    for step in spread(planner.total_steps(), TABLE_ROWS) {
        let (step, learning_rate, batch, samples) = row(planner, step);
        line(format!("{step:>12} {samples:>14} {learning_rate:>14.6e} {batch:>8}"));
    }
    for rounding in planner.roundings() {
        line(rounding);
    }
    let epochs = if training_samples == 0 {
        String::new()
    } else {
        format!(
            ", {:.2} epochs",
            planner.total_samples() as f64 / training_samples as f64
        )
    };
    line(format!(
        "{} steps, {} samples{}",
        planner.total_steps(),
        planner.total_samples(),
        epochs
    ));
    text
}

fn csv(planner: &Planner) -> String {
    let mut text = format!("{CSV_HEADER}\n");
    for PlanRow {
        plan, samples, tokens, ..
    } in planner.rows()
    {
        let _ = writeln!(
            text,
            "{},{samples},{tokens},{},{}",
            plan.step, plan.learning_rate, plan.samples
        );
    }
    text
}

fn svg(planner: &Planner) -> Result<String, Box<dyn std::error::Error>> {
    let rows: Vec<(u64, f64, u64, u64)> = spread(planner.total_steps(), DRAWN_POINTS)
        .into_iter()
        .map(|step| row(planner, step))
        .collect();
    let rates: Vec<(f64, f64)> = rows.iter().map(|row| (row.0 as f64, row.1)).collect();
    let batches: Vec<(f64, f64)> = rows.iter().map(|row| (row.0 as f64, row.2 as f64)).collect();
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (800, 600)).into_drawing_area();
        area.fill(&WHITE)?;
        let (upper, lower) = area.split_vertically(300);
        draw(&upper, "learning rate", &rates, BLUE)?;
        draw(&lower, "batch (samples)", &batches, RED)?;
        area.present()?;
    }
    Ok(text)
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    points: &[(f64, f64)],
    colour: RGBColor,
) -> Result<(), Box<dyn std::error::Error>> {
    let last = points.last().map_or(1.0, |point| point.0).max(2.0);
    let highest = points.iter().map(|point| point.1).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(72)
        .build_cartesian_2d(1.0..last, 0.0..highest * 1.05)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|value| {
            if highest < 1.0 {
                format!("{value:.1e}")
            } else {
                format!("{value:.0}")
            }
        })
        .light_line_style(WHITE)
        .draw()?;
    // Between two points the value of the earlier step holds: batch sizes change in steps, not along a slope.
    let steps = points
        .iter()
        .zip(points.iter().skip(1))
        .flat_map(|(from, to)| [*from, (to.0, from.1), *to]);
    let line: Vec<(f64, f64)> = if points.len() > 1 {
        steps.collect()
    } else {
        points.to_vec()
    };
    chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_spread_from_the_first_to_the_last() {
        assert_eq!(spread(3, 12), [1, 2, 3]);
        let many = spread(u64::MAX, 12);
        assert_eq!((many.len(), many[0], many[11]), (12, 1, u64::MAX));
        assert!(many.windows(2).all(|two| two[0] < two[1]));
    }
}

//! A schedule as SVG: one chart for each value that changes, over the samples of the run, which two runs share whatever their
//! batches are.

use lockstep_coordinator::plan::Planner;
use lockstep_proto::domain::Plan;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::{plan_of, spread};

/// Points of a drawn line.
const POINTS: u64 = 1000;
/// Pixels of a chart.
const SIZE: (u32, u32) = (800, 300);
/// The run's own line, and that of the one to compare: apart for every kind of eye, and in grey.
const COLOURS: [RGBColor; 2] = [RGBColor(0, 90, 181), RGBColor(220, 50, 32)];

type Failure = Box<dyn std::error::Error>;
/// Points of a line: samples and value.
type Line = Vec<(f64, f64)>;

/// A chart: its title and the value of a plan.
struct Chart {
    title: &'static str,
    value: fn(&Plan) -> Option<f64>,
}

const CHARTS: [Chart; 4] = [
    Chart {
        title: "learning rate",
        value: |plan| Some(plan.learning_rate),
    },
    Chart {
        title: "batch (samples)",
        value: |plan| Some(plan.samples as f64),
    },
    Chart {
        title: "momentum",
        value: |plan| plan.momentum,
    },
    Chart {
        title: "weight decay",
        value: |plan| plan.weight_decay,
    },
];

/// The charts of one run, or of two on the same axes.
pub(super) fn svg(planners: &[&Planner]) -> Result<String, Failure> {
    let plans: Vec<Vec<Plan>> = planners
        .iter()
        .map(|planner| {
            let steps = spread(planner.total_steps(), POINTS);
            steps.into_iter().map(|step| plan_of(planner, step)).collect()
        })
        .collect();
    let charts: Vec<(&Chart, Vec<Line>)> = CHARTS
        .iter()
        .map(|chart| {
            let line = |plans: &Vec<Plan>| {
                let point = |plan: &Plan| Some((plan.first_sample as f64, (chart.value)(plan)?));
                plans.iter().filter_map(point).collect::<Vec<_>>()
            };
            (chart, plans.iter().map(line).collect::<Vec<_>>())
        })
        .filter(|(_, lines)| lines.iter().any(|line| !line.is_empty()))
        .collect();
    let mut text = String::new();
    {
        let size = (SIZE.0, SIZE.1 * charts.len() as u32);
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        area.fill(&WHITE)?;
        for (area, (chart, lines)) in area.split_evenly((charts.len(), 1)).iter().zip(&charts) {
            draw(area, chart.title, lines)?;
        }
        area.present()?;
    }
    Ok(text)
}

fn draw(area: &DrawingArea<SVGBackend<'_>, Shift>, title: &str, lines: &[Line]) -> Result<(), Failure> {
    let all = || lines.iter().flatten();
    let last = all().map(|point| point.0).fold(1.0, f64::max);
    let highest = all().map(|point| point.1).fold(f64::MIN_POSITIVE, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..last, 0.0..highest * 1.05)?;
    chart
        .configure_mesh()
        .x_desc("samples")
        .x_label_formatter(&|samples| format!("{samples:.0}"))
        .y_label_formatter(&|value| match highest {
            high if high < 0.1 => format!("{value:.1e}"),
            high if high < 10.0 => format!("{value:.2}"),
            _ => format!("{value:.0}"),
        })
        .light_line_style(WHITE)
        .draw()?;
    for (points, colour) in lines.iter().zip(COLOURS) {
        // Between two points the value of the earlier step holds: batch sizes change in steps, not along a slope.
        let steps = points
            .iter()
            .zip(points.iter().skip(1))
            .flat_map(|(from, to)| [*from, (to.0, from.1), *to]);
        let line: Vec<(f64, f64)> = if points.len() > 1 {
            steps.collect()
        } else {
            points.clone()
        };
        chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
    }
    Ok(())
}

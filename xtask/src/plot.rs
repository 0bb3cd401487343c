//! `loss.svg`: training and validation loss of a run over its steps.

use std::path::Path;

use plotters::prelude::*;

use crate::failure::Failure;
use crate::metrics::Metrics;

const TRAINING: RGBColor = RGBColor(120, 144, 180);
const VALIDATION: RGBColor = RGBColor(200, 60, 30);

/// Draws `metrics` into the file `svg`.
pub(crate) fn draw_loss(metrics: &Metrics, title: &str, svg: &Path) -> Result<(), Failure> {
    draw(metrics, title, svg).map_err(|why| Failure::work(format!("{} cannot be drawn: {why}", svg.display())))
}

fn draw(metrics: &Metrics, title: &str, svg: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let training: Vec<(f64, f64)> = metrics.steps.iter().map(|row| (row.step as f64, row.loss)).collect();
    let validation: Vec<(f64, f64)> = metrics
        .validations
        .iter()
        .map(|row| (row.step as f64, row.validation_loss))
        .collect();
    let points = || training.iter().chain(&validation).filter(|(_, loss)| loss.is_finite());
    let last = points().map(|(step, _)| *step).fold(1.0, f64::max);
    let low = points().map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
    let high = points().map(|(_, loss)| *loss).fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return Err("the run has no finite loss".into());
    }

    let root = SVGBackend::new(svg, (900, 520)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(54)
        .build_cartesian_2d(0.0..last, (low - 0.1)..(high + 0.1))?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("loss, nats a token")
        .light_line_style(WHITE)
        .draw()?;
    let finite = |rows: &[(f64, f64)]| {
        rows.iter()
            .copied()
            .filter(|(_, loss)| loss.is_finite())
            .collect::<Vec<_>>()
    };
    chart
        .draw_series(LineSeries::new(finite(&training), TRAINING.stroke_width(1)))?
        .label("training")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], TRAINING));
    chart
        .draw_series(LineSeries::new(finite(&validation), VALIDATION.stroke_width(2)).point_size(3))?
        .label("validation")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], VALIDATION.stroke_width(2)));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Step, Validation};

    #[test]
    fn both_curves_are_in_the_picture_and_a_loss_that_is_not_finite_does_not_spoil_it() {
        let step = |step, loss| Step {
            step,
            samples: step,
            batch: 1,
            lr: 0.5,
            tokens: step,
            loss,
            step_ms: 1.0,
            phases: Default::default(),
        };
        let metrics = Metrics {
            steps: vec![step(1, 5.0), step(2, f64::NAN), step(3, 3.0)],
            validations: vec![Validation {
                step: 3,
                validation_loss: 3.5,
            }],
        };
        let folder = tempfile::tempdir().unwrap();
        let svg = folder.path().join("loss.svg");
        draw_loss(&metrics, "a run", &svg).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
        assert!(text.contains("training") && text.contains("validation") && text.contains("a run"));
        assert!(!text.contains("NaN"));
    }

    #[test]
    fn a_run_without_steps_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let sentence = draw_loss(&Metrics::default(), "none", &folder.path().join("loss.svg"))
            .unwrap_err()
            .to_string();
        assert!(sentence.contains("no finite loss"), "{sentence}");
    }
}

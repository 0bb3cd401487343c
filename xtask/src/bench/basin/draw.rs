//! `basin.svg`: the final loss of every optimiser against its peak learning rate. Momo's curves are dashed, in a lighter
//! tone of their method's colour.

use std::path::Path;

use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::curve::{Curve, Point, best_of_all};
use crate::failure::Failure;

/// One for each method; they begin anew where there are more methods.
const COLOURS: [RGBColor; 7] = [
    RGBColor(200, 60, 30),
    RGBColor(30, 100, 190),
    RGBColor(30, 140, 80),
    RGBColor(110, 110, 110),
    RGBColor(140, 70, 170),
    RGBColor(190, 130, 20),
    RGBColor(0, 140, 150),
];
/// Losses up to so much above the best of all are shown, in nats.
const SHOWN: f64 = 0.6;
/// Room above the highest loss that is shown, for the marks of those that are higher.
const MARGIN: f64 = 0.04;
/// Width of the legend's place, as a part of that of the curves.
const LEGEND: f64 = 0.25;
/// Dashes and the gaps between them, in pixels.
const DASH: i32 = 6;
const GAP: i32 = 4;

/// Draws the curves into the file `svg`.
pub(super) fn draw_basin(curves: &[Curve], svg: &Path) -> Result<(), Failure> {
    draw(curves, svg).map_err(|why| Failure::work(format!("{} cannot be drawn: {why}", svg.display())))
}

fn draw(curves: &[Curve], svg: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let best = best_of_all(curves).ok_or("no optimiser has a rate at which every run ended with a finite loss")?;
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let left = points().map(Point::octave).fold(f64::INFINITY, f64::min);
    let right = points().map(Point::octave).fold(f64::NEG_INFINITY, f64::max);
    let highest = points().map(|point| point.mean).filter(|mean| mean.is_finite());
    let top = highest.fold(best, f64::max).min(best + SHOWN);

    // The legend has a place of its own on the right, where no curve passes.
    let (left, right) = (left - 0.4, right + 0.4);
    let legend = (right - left) * LEGEND;

    let root = SVGBackend::new(svg, (900, 560)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(
            "Final validation loss against the peak learning rate",
            ("sans-serif", 20),
        )
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(54)
        .build_cartesian_2d(left..(right + legend), (best - MARGIN)..(top + MARGIN))?;
    chart
        .configure_mesh()
        .x_desc("peak learning rate; a mark at the top: a higher loss (▲) or a run that diverged (×)")
        .y_desc("validation loss, nats a byte")
        .x_label_formatter(&|octave| format!("{:.1e}", octave.exp2()))
        .light_line_style(WHITE)
        .draw()?;
    let mark = top + MARGIN / 2.0;
    for curve in curves {
        let colour = colour_of(curve, curves);
        let momo = curve.variant.momo;
        let means: Vec<(f64, f64)> = curve.points.iter().map(|point| (point.octave(), point.mean)).collect();
        let line = colour.stroke_width(2);
        // The legend's entry belongs to a series of its own: a curve may be in several pieces, or in none.
        let entry = chart.draw_series(std::iter::empty::<Circle<(f64, f64), i32>>())?;
        entry.label(curve.variant.to_string());
        match momo {
            true => entry.legend(move |(x, y)| DashedPathElement::new([(x, y), (x + 20, y)], DASH, GAP, line)),
            false => entry.legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], line)),
        };
        for piece in below(&means, top) {
            match momo {
                true => chart.draw_series(DashedLineSeries::new(piece, DASH, GAP, line))?,
                false => chart.draw_series(LineSeries::new(piece, line))?,
            };
        }
        for point in &curve.points {
            let x = point.octave();
            let low = point.losses.iter().copied().fold(f64::INFINITY, f64::min);
            let high = point.losses.iter().copied().fold(f64::NEG_INFINITY, f64::max).min(top);
            if low < high {
                chart.draw_series([PathElement::new([(x, low), (x, high)], colour.stroke_width(1))])?;
            }
            if point.diverged > 0 {
                chart.draw_series([Cross::new((x, mark), 4, line)])?;
            } else if point.mean > top {
                chart.draw_series([TriangleMarker::new((x, mark), 5, colour.stroke_width(1))])?;
            } else {
                chart.draw_series([Circle::new((x, point.mean), 3, colour.filled())])?;
            }
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}

/// A method's colour, or a lighter tone of it for its Momo variant.
fn colour_of(curve: &Curve, curves: &[Curve]) -> RGBColor {
    let mut methods: Vec<&str> = Vec::new();
    for method in curves.iter().map(|curve| curve.variant.method.as_str()) {
        if !methods.contains(&method) {
            methods.push(method);
        }
    }
    let place = methods.iter().position(|method| *method == curve.variant.method);
    let RGBColor(red, green, blue) = COLOURS[place.unwrap_or(0) % COLOURS.len()];
    let lighter = |part: u8| part + (255 - part) / 3;
    match curve.variant.momo {
        true => RGBColor(lighter(red), lighter(green), lighter(blue)),
        false => RGBColor(red, green, blue),
    }
}

/// The pieces of a line through `points` that are not above `top`. A point that is not finite parts the line.
fn below(points: &[(f64, f64)], top: f64) -> Vec<Vec<(f64, f64)>> {
    let mut pieces = Vec::new();
    let mut piece: Vec<(f64, f64)> = Vec::new();
    let mut last: Option<(f64, f64)> = None;
    for &(x, y) in points {
        // Where the line from the last point crosses the top, if it does.
        let crossing = last
            .filter(|(_, before)| before.is_finite() && y.is_finite() && (*before > top) != (y > top))
            .map(|(x0, y0)| (x0 + (top - y0) / (y - y0) * (x - x0), top));
        piece.extend(crossing);
        if y <= top {
            piece.push((x, y));
        } else {
            pieces.push(std::mem::take(&mut piece));
        }
        last = Some((x, y));
    }
    pieces.push(piece);
    pieces.retain(|piece| piece.len() > 1);
    pieces
}

#[cfg(test)]
mod tests {
    use super::super::curve::curves;
    use super::super::record::Row;
    use super::*;

    #[test]
    fn a_line_is_cut_where_it_leaves_the_picture_and_parted_where_a_run_diverged() {
        let points = [
            (0.0, 4.0),
            (1.0, 2.0),
            (2.0, 1.0),
            (3.0, 5.0),
            (4.0, f64::INFINITY),
            (5.0, 1.0),
            (6.0, 1.5),
        ];
        assert_eq!(
            below(&points, 3.0),
            [
                vec![(0.5, 3.0), (1.0, 2.0), (2.0, 1.0), (2.5, 3.0)],
                vec![(5.0, 1.0), (6.0, 1.5)]
            ]
        );
        assert!(below(&[(0.0, f64::INFINITY), (1.0, 1.0), (2.0, f64::INFINITY)], 3.0).is_empty());
    }

    fn rows(variant: &str, losses: &[Option<f64>]) -> Vec<Row> {
        let row = |(octave, loss): (i32, &Option<f64>)| Row {
            variant: variant.parse().unwrap(),
            rate: 2f64.powi(octave),
            seed: 1,
            loss: *loss,
        };
        (0..).zip(losses).map(row).collect()
    }

    #[test]
    fn every_optimiser_is_in_the_picture_and_what_diverged_is_marked() {
        let all = [
            rows("muonmax", &[Some(2.5), Some(2.0), Some(9.0)]),
            rows("muonmax+momo", &[Some(2.4), Some(2.1), None]),
            rows("scion", &[None, None, None]),
        ]
        .concat();
        let curves = curves(&all);
        let folder = tempfile::tempdir().unwrap();
        let svg = folder.path().join("basin.svg");
        draw_basin(&curves, &svg).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
        for name in ["muonmax", "muonmax+momo", "scion"] {
            assert!(text.lines().any(|line| line.trim() == name), "{name}");
        }
        for (curve, hex) in curves.iter().zip(["#C83C1E", "#DA7D69", "#1E64BE"]) {
            let RGBColor(red, green, blue) = colour_of(curve, &curves);
            assert_eq!(format!("#{red:02X}{green:02X}{blue:02X}"), hex);
            assert!(text.contains(hex), "{hex}");
        }
        assert_eq!(text.matches("<polygon").count(), 1, "one loss is above the picture");
        assert!(!text.contains("NaN") && !text.contains("inf"));
    }

    #[test]
    fn a_picture_of_nothing_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let svg = folder.path().join("basin.svg");
        let refused = draw_basin(&curves(&rows("scion", &[None])), &svg)
            .unwrap_err()
            .to_string();
        assert!(refused.contains("finite loss"), "{refused}");
        assert!(!svg.exists());
    }
}

//! From rows to curves: the mean loss over the seeds at each rate, the best rate, and the width of the basin around it.

use super::record::Row;
use crate::bench::variant::Variant;

/// All runs of one optimiser at one rate.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Point {
    /// Peak learning rate.
    pub(super) rate: f64,
    /// Mean of the losses; infinite where a run diverged.
    pub(super) mean: f64,
    /// The losses of the runs that did not diverge.
    pub(super) losses: Vec<f64>,
    /// How many runs diverged.
    pub(super) diverged: usize,
}

impl Point {
    /// How many runs there are.
    pub(super) fn runs(&self) -> usize {
        self.losses.len() + self.diverged
    }

    /// The octave in which the rate lies: log₂.
    pub(super) fn octave(&self) -> f64 {
        self.rate.log2()
    }
}

/// All runs of one optimiser.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve {
    pub(super) variant: Variant,
    /// By rising rate.
    pub(super) points: Vec<Point>,
}

/// A width in octaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Width {
    pub(super) octaves: f64,
    /// The basin goes on beyond the grid on one side or both: it is wider than that.
    pub(super) open: bool,
}

impl Curve {
    /// The point with the lowest mean; none if every rate has a run that diverged.
    pub(super) fn best(&self) -> Option<&Point> {
        let finite = self.points.iter().filter(|point| point.mean.is_finite());
        finite.min_by(|a, b| a.mean.total_cmp(&b.mean))
    }

    /// The width of the piece around the best rate in which the mean is at most `limit`. Between two rates the mean is a
    /// straight line over log₂ of the rate; next to a rate where a run diverged the piece ends at the last good rate.
    pub(super) fn width(&self, limit: f64) -> Width {
        let none = Width {
            octaves: 0.0,
            open: false,
        };
        let Some(best) = self.points.iter().position(|point| Some(point) == self.best()) else {
            return none;
        };
        if self.points[best].mean > limit {
            return none;
        }
        let (left, right) = self.points.split_at(best);
        let below = reach(&self.points[best], left.iter().rev(), limit);
        let above = reach(&self.points[best], right.iter().skip(1), limit);
        Width {
            octaves: below.octaves + above.octaves,
            open: below.open || above.open,
        }
    }
}

/// How far from `start` along `further` the mean stays at most `limit`.
fn reach<'a>(start: &'a Point, further: impl Iterator<Item = &'a Point>, limit: f64) -> Width {
    let mut last = start;
    for next in further {
        if next.mean > limit {
            let share = match next.mean.is_finite() {
                true => (limit - last.mean) / (next.mean - last.mean),
                false => 0.0,
            };
            let end = last.octave() + share * (next.octave() - last.octave());
            return Width {
                octaves: (end - start.octave()).abs(),
                open: false,
            };
        }
        last = next;
    }
    Width {
        octaves: (last.octave() - start.octave()).abs(),
        open: true,
    }
}

/// One curve for each optimiser, in the order of their first rows.
pub(super) fn curves(rows: &[Row]) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for row in rows {
        let known = curves.iter().position(|curve| curve.variant == row.variant);
        let index = known.unwrap_or(curves.len());
        if known.is_none() {
            curves.push(Curve {
                variant: row.variant.clone(),
                points: Vec::new(),
            });
        }
        let points = &mut curves[index].points;
        let place = points.partition_point(|point| point.rate < row.rate);
        if points.get(place).is_none_or(|point| point.rate != row.rate) {
            points.insert(
                place,
                Point {
                    rate: row.rate,
                    mean: f64::NAN,
                    losses: Vec::new(),
                    diverged: 0,
                },
            );
        }
        match row.loss {
            Some(loss) => points[place].losses.push(loss),
            None => points[place].diverged += 1,
        }
    }
    for point in curves.iter_mut().flat_map(|curve| &mut curve.points) {
        point.mean = match point.diverged {
            0 => point.losses.iter().sum::<f64>() / point.losses.len() as f64,
            _ => f64::INFINITY,
        };
    }
    curves
}

/// The lowest mean of all optimisers.
pub(super) fn best_of_all(curves: &[Curve]) -> Option<f64> {
    let bests = curves.iter().filter_map(|curve| Some(curve.best()?.mean));
    bests.min_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(variant: &str, seed: u64, losses: &[(f64, Option<f64>)]) -> Vec<Row> {
        let row = |&(rate, loss): &(f64, Option<f64>)| Row {
            variant: variant.parse().unwrap(),
            rate,
            seed,
            loss,
        };
        losses.iter().map(row).collect()
    }

    /// Rates 1, 2, 4, … with these means; infinite: diverged.
    fn curve(means: &[f64]) -> Curve {
        let rates = (0..).map(|octave| f64::from(1u32 << octave));
        let losses: Vec<_> = rates
            .zip(means)
            .map(|(rate, mean)| (rate, mean.is_finite().then_some(*mean)))
            .collect();
        curves(&rows("muon", 1, &losses)).remove(0)
    }

    fn closed(octaves: f64) -> Width {
        Width { octaves, open: false }
    }

    #[test]
    fn means_are_over_the_seeds_and_one_that_diverged_spoils_its_rate() {
        let both = [
            rows("muon", 1, &[(4.0, Some(2.0)), (1.0, Some(3.0)), (2.0, Some(2.5))]),
            rows("adamw", 1, &[(1.0, Some(4.0))]),
            rows("muon", 2, &[(2.0, None), (1.0, Some(4.0)), (4.0, Some(2.5))]),
        ]
        .concat();
        let curves = curves(&both);
        assert_eq!(curves.len(), 2);
        let means: Vec<(f64, f64)> = curves[0].points.iter().map(|point| (point.rate, point.mean)).collect();
        assert_eq!(means, [(1.0, 3.5), (2.0, f64::INFINITY), (4.0, 2.25)]);
        assert_eq!(
            (curves[0].points[1].losses.as_slice(), curves[0].points[1].diverged),
            (&[2.5][..], 1)
        );
        assert_eq!(best_of_all(&curves), Some(2.25));
    }

    #[test]
    fn the_width_ends_where_the_straight_line_crosses_the_limit() {
        // Left: from 2 up to 3, the limit a quarter of an octave away. Right: to 2.5, half of one.
        assert_eq!(curve(&[3.0, 2.0, 2.5]).width(2.25), closed(0.25 + 0.5));
        assert_eq!(curve(&[3.0, 2.1, 2.0, 2.1, 3.0]).width(2.1), closed(2.0));
    }

    #[test]
    fn the_width_is_of_the_piece_around_the_best_rate() {
        let both_sides = curve(&[2.125, 3.0, 2.0, 2.5, 2.125]);
        assert_eq!(both_sides.width(2.25), closed(0.25 + 0.5));
    }

    #[test]
    fn a_basin_that_leaves_the_grid_is_open() {
        assert_eq!(
            curve(&[2.0, 2.2]).width(2.1),
            Width {
                octaves: 0.5,
                open: true
            }
        );
        assert_eq!(
            curve(&[2.2, 2.0, 2.0]).width(2.1),
            Width {
                octaves: 1.5,
                open: true
            }
        );
    }

    #[test]
    fn nothing_is_guessed_next_to_a_rate_that_diverged() {
        assert_eq!(curve(&[2.2, 2.0, 2.05, f64::INFINITY]).width(2.1), closed(1.5));
        assert_eq!(curve(&[f64::INFINITY, f64::INFINITY]).width(2.1), closed(0.0));
    }

    #[test]
    fn there_is_no_width_under_a_limit_that_the_method_never_reaches() {
        assert_eq!(curve(&[2.4, 2.2, 2.4]).width(2.1), closed(0.0));
    }
}

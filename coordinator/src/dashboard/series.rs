//! One number of every step, as columns: what it was, and over what span where steps were merged.

use serde::Serialize;
use serde::ser::SerializeMap;

/// The smallest, the mean and the largest value of each row. No number stands where a row has none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    least: Vec<f32>,
    mean: Vec<f32>,
    most: Vec<f32>,
}

impl Series {
    /// Rows without a number.
    pub(crate) fn absent(rows: usize) -> Series {
        let none = vec![f32::NAN; rows];
        Series {
            least: none.clone(),
            mean: none.clone(),
            most: none,
        }
    }

    pub(crate) fn push(&mut self, value: f64) {
        let value = value as f32;
        for column in [&mut self.least, &mut self.mean, &mut self.most] {
            column.push(value);
        }
    }

    pub(crate) fn truncate(&mut self, rows: usize) {
        for column in [&mut self.least, &mut self.mean, &mut self.most] {
            column.truncate(rows);
        }
    }

    /// The means.
    pub(crate) fn means(&self) -> &[f32] {
        &self.mean
    }

    /// Whether any row has a number.
    pub(crate) fn has_numbers(&self) -> bool {
        self.mean.iter().any(|value| !value.is_nan())
    }

    /// The rows of each range as one, `weights` being the steps that a row stands for.
    pub(crate) fn merged(&self, ranges: &[std::ops::Range<usize>], weights: &[u32]) -> Series {
        let mut merged = Series::default();
        for range in ranges {
            let (mut sum, mut steps) = (0.0, 0.0);
            let (mut least, mut most) = (f32::NAN, f32::NAN);
            for row in range.clone() {
                if self.mean[row].is_nan() {
                    continue;
                }
                let weight = f64::from(weights[row]);
                sum += f64::from(self.mean[row]) * weight;
                steps += weight;
                // `min` and `max` of a number and of none give the number.
                least = least.min(self.least[row]);
                most = most.max(self.most[row]);
            }
            merged.least.push(least);
            merged.most.push(most);
            merged
                .mean
                .push(if steps > 0.0 { (sum / steps) as f32 } else { f32::NAN });
        }
        merged
    }
}

impl Serialize for Series {
    /// `mean`; `least` and `most` where a row stands for different values.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let same = |one: &[f32], other: &[f32]| one.iter().zip(other).all(|(a, b)| a == b || a.is_nan());
        let is_plain = same(&self.least, &self.most);
        let mut map = serializer.serialize_map(Some(if is_plain { 1 } else { 3 }))?;
        map.serialize_entry("mean", &self.mean)?;
        if !is_plain {
            map.serialize_entry("least", &self.least)?;
            map.serialize_entry("most", &self.most)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_the_smallest_and_the_largest_and_weighs_the_mean() {
        let mut series = Series::default();
        for value in [1.0, 9.0, f64::NAN, 2.0, f64::NAN] {
            series.push(value);
        }
        let merged = series.merged(&[0..2, 2..4, 4..5], &[1, 3, 1, 1, 1]);
        assert_eq!(merged.mean[..2], [7.0, 2.0]);
        assert_eq!((merged.least[0], merged.most[0]), (1.0, 9.0));
        assert!(merged.mean[2].is_nan() && merged.least[2].is_nan());
        let again = merged.merged(std::slice::from_ref(&(0..3)), &[4, 2, 1]);
        assert_eq!((again.least[0], again.most[0]), (1.0, 9.0));
        assert_eq!(again.mean[0], (7.0 * 4.0 + 2.0 * 2.0) / 6.0);
    }

    #[test]
    fn a_row_without_a_number_is_null_and_spans_are_written_only_where_there_are_some() {
        let mut series = Series::absent(1);
        series.push(0.1);
        assert_eq!(serde_json::to_string(&series).unwrap(), r#"{"mean":[null,0.1]}"#);
        let merged = series.merged(std::slice::from_ref(&(0..2)), &[1, 1]);
        assert_eq!(serde_json::to_string(&merged).unwrap(), r#"{"mean":[0.1]}"#);
        series.push(0.5);
        let merged = series.merged(std::slice::from_ref(&(0..3)), &[1, 1, 1]);
        assert_eq!(
            serde_json::to_string(&merged).unwrap(),
            r#"{"mean":[0.3],"least":[0.1],"most":[0.5]}"#
        );
    }
}

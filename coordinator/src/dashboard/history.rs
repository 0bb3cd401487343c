//! What a run has measured so far, in columns, so that a hundred thousand steps are a few megabytes and are shown at once.
//!
//! Way of data: committed steps, validations and rewinds go in, from the ledger at the start and one by one afterwards →
//! [`History::view`] gives a span of steps in so many points, [`History::after`] what is newer than what a page has. Pure.
//!
//! It is bounded: beyond [`MOST_ROWS`] the older half is merged, pair by pair, and keeps its smallest and largest values. A
//! rewind takes the steps that it leaves behind out of the live rows; their losses are kept beside them.

use lockstep_proto::domain::{CommittedStep, Validation};
use serde::Serialize;

use crate::branches::Rewind;
use crate::dashboard::series::Series;

/// More rows than that are never held.
const MOST_ROWS: usize = 200_000;
/// Points that are kept of a branch that was left behind.
const LEFT_POINTS: usize = 500;
/// Branches left behind that are kept.
const MOST_LEFT: usize = 50;
/// Validations that are kept; a run has one in a hundred steps.
const MOST_VALIDATIONS: usize = 20_000;

/// A number of a step: its name, which is that of `metrics.jsonl`, and where it is found.
type Column = (&'static str, fn(&CommittedStep) -> Option<f64>);

/// Every number that the page draws. One that a run does not have is left out.
const COLUMNS: [Column; 13] = [
    ("loss", |step| step.skipped.is_none().then_some(step.loss)),
    ("lr", |step| Some(step.learning_rate)),
    ("effective_lr", |step| {
        step.skipped.is_none().then_some(step.effective_learning_rate)
    }),
    ("batch", |step| Some(step.batch as f64)),
    ("grad_norm", |step| Some(step.grad_norm)),
    ("update_norm", |step| Some(step.update_norm)),
    ("tokens_per_second", |step| Some(step.tokens_per_second)),
    ("step_ms", |step| Some(step.step_ms)),
    ("model_value", |step| step.model_value),
    ("dual_norm", |step| step.dual_norm),
    ("lower_bound", |step| step.lower_bound),
    ("noise_scale", |step| step.noise_scale),
    ("orthogonality_error", |step| {
        step.orthogonality.as_ref().map(|orthogonality| orthogonality.error)
    }),
];

/// Steps that a rewind left behind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Left {
    number: u64,
    /// The step that could not be used.
    unusable: u64,
    /// The step that the run went back to.
    to: u64,
    reason: String,
    step: Vec<u64>,
    loss: Vec<f32>,
}

/// The steps of the live branch, and what was left behind.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// Rises when rows that were there are gone.
    epoch: u64,
    /// Steps that a row stands for, the last of them at `step`.
    weight: Vec<u32>,
    step: Vec<u64>,
    samples: Vec<u64>,
    tokens: Vec<u64>,
    generation: Vec<u64>,
    ranks: Vec<u32>,
    columns: [Series; COLUMNS.len()],
    phases: Vec<(String, Series)>,
    validations: Vec<(u64, f64)>,
    left: Vec<Left>,
    last: Option<CommittedStep>,
    most_rows: usize,
}

/// A span of a history, ready to be sent.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct View {
    epoch: u64,
    /// The first step that is held, and the last.
    first: u64,
    last: u64,
    /// Steps of the span.
    steps: u64,
    step: Vec<u64>,
    samples: Vec<u64>,
    tokens: Vec<u64>,
    generation: Vec<u64>,
    ranks: Vec<u32>,
    columns: std::collections::BTreeMap<&'static str, Series>,
    /// In the order of the step.
    phases: Vec<(String, Series)>,
    validations: Vec<(u64, f64)>,
    left: Vec<Left>,
}

impl History {
    pub(crate) fn new() -> History {
        History {
            most_rows: MOST_ROWS,
            ..History::default()
        }
    }

    /// The next step of the live branch. One that is there already changes nothing.
    pub(crate) fn push(&mut self, step: &CommittedStep) {
        if self.step.last().is_some_and(|last| *last >= step.step) {
            return;
        }
        self.weight.push(1);
        self.step.push(step.step);
        self.samples.push(step.samples);
        self.tokens.push(step.tokens);
        self.generation.push(step.generation);
        self.ranks.push(step.ranks);
        for (series, (_, value)) in self.columns.iter_mut().zip(COLUMNS) {
            series.push(value(step).unwrap_or(f64::NAN));
        }
        let before = self.step.len() - 1;
        for (name, _) in &step.phases {
            let name = name.strip_suffix("_ms").unwrap_or(name);
            if !self.phases.iter().any(|(known, _)| known == name) {
                self.phases.push((name.to_owned(), Series::absent(before)));
            }
        }
        for (name, series) in &mut self.phases {
            let of = |(phase, _): &&(String, f64)| phase.strip_suffix("_ms").unwrap_or(phase) == name;
            series.push(step.phases.iter().find(of).map_or(f64::NAN, |(_, ms)| *ms));
        }
        self.last = Some(step.clone());
        if self.step.len() > self.most_rows {
            self.merge_older_half();
        }
    }

    /// A step was validated.
    pub(crate) fn validated(&mut self, step: u64, validation: Validation) {
        if self.validations.last().is_none_or(|(last, _)| *last < step) {
            self.validations.push((step, validation.loss));
        }
        if self.validations.len() > MOST_VALIDATIONS {
            let mut number = 0;
            self.validations.retain(|_| {
                number += 1;
                number % 2 == 0
            });
        }
    }

    /// The run went back. The steps after the one that it went back to are of no live branch any more.
    pub(crate) fn rewound(&mut self, rewind: &Rewind) {
        let keep = self.step.partition_point(|step| *step <= rewind.to);
        let behind = keep..self.step.len();
        let ranges = buckets(&behind, LEFT_POINTS);
        let loss = self.columns[0].merged(&ranges, &self.weight);
        self.left.push(Left {
            number: rewind.number,
            unusable: rewind.unusable,
            to: rewind.to,
            reason: rewind.reason.clone(),
            step: ranges.iter().map(|range| self.step[range.end - 1]).collect(),
            loss: loss.means().to_vec(),
        });
        if self.left.len() > MOST_LEFT {
            self.left.remove(0);
        }
        self.validations.retain(|(step, _)| *step <= rewind.to);
        self.weight.truncate(keep);
        for column in [
            &mut self.step,
            &mut self.samples,
            &mut self.tokens,
            &mut self.generation,
        ] {
            column.truncate(keep);
        }
        self.ranks.truncate(keep);
        let phases = self.phases.iter_mut().map(|(_, series)| series);
        self.columns
            .iter_mut()
            .chain(phases)
            .for_each(|series| series.truncate(keep));
        self.last = self.last.take().filter(|last| last.step <= rewind.to);
        self.epoch += 1;
    }

    /// The newest step of the live branch.
    pub(crate) fn last(&self) -> Option<&CommittedStep> {
        self.last.as_ref()
    }

    /// The newest validation: its step and loss.
    pub(crate) fn newest_validation(&self) -> Option<(u64, f64)> {
        self.validations.last().copied()
    }

    /// Where a page stands that has everything: what [`History::after`] takes.
    pub(crate) fn place(&self) -> (u64, u64) {
        (self.epoch, self.step.last().copied().unwrap_or(0))
    }

    /// The steps from `from` to `to`, both included, in at most `points` points (and one).
    pub(crate) fn view(&self, from: u64, to: u64, points: usize) -> View {
        let begin = self.step.partition_point(|step| *step < from);
        let end = self.step.partition_point(|step| *step <= to);
        let rows = begin.min(end)..end;
        let mut view = self.rows(&rows, points);
        // All of them: they are few, and a page wants them whatever it shows.
        view.left = self.left.clone();
        view.validations = self.validations.clone();
        view
    }

    /// What is newer than `step`, where the page knows this epoch and is not too far behind; else it must take a whole view.
    pub(crate) fn after(&self, (epoch, step): (u64, u64), most: usize) -> Option<View> {
        let begin = self.step.partition_point(|known| *known <= step);
        let rows = begin..self.step.len();
        if epoch != self.epoch || rows.len() > most {
            return None;
        }
        let mut view = self.rows(&rows, most);
        // A validation comes after its step, which may have been sent.
        let recent = self.validations.len().saturating_sub(2);
        view.validations = self.validations[recent..].to_vec();
        Some(view)
    }

    /// The losses of the whole run, in at most `points` points.
    pub(crate) fn losses(&self, points: usize) -> Vec<f64> {
        let ranges = buckets(&(0..self.step.len()), points);
        let loss = self.columns[0].merged(&ranges, &self.weight);
        loss.means().iter().map(|loss| f64::from(*loss)).collect()
    }

    fn rows(&self, rows: &std::ops::Range<usize>, points: usize) -> View {
        let ranges = buckets(rows, points);
        let ends = |column: &[u64]| ranges.iter().map(|range| column[range.end - 1]).collect();
        let named = COLUMNS.iter().zip(&self.columns);
        View {
            epoch: self.epoch,
            first: self.step.first().copied().unwrap_or(0),
            last: self.step.last().copied().unwrap_or(0),
            steps: self.weight[rows.clone()].iter().map(|weight| u64::from(*weight)).sum(),
            step: ends(&self.step),
            samples: ends(&self.samples),
            tokens: ends(&self.tokens),
            generation: ends(&self.generation),
            ranks: ranges.iter().map(|range| self.ranks[range.end - 1]).collect(),
            columns: named
                .filter(|(_, series)| series.has_numbers())
                .map(|((name, _), series)| (*name, series.merged(&ranges, &self.weight)))
                .collect(),
            phases: self
                .phases
                .iter()
                .map(|(name, series)| (name.clone(), series.merged(&ranges, &self.weight)))
                .collect(),
            validations: Vec::new(),
            left: Vec::new(),
        }
    }

    fn merge_older_half(&mut self) {
        let rows = self.step.len();
        let half = rows / 4 * 2;
        let mut ranges: Vec<_> = (0..half / 2).map(|pair| pair * 2..pair * 2 + 2).collect();
        ranges.extend((half..rows).map(|row| row..row + 1));
        for (_, series) in &mut self.phases {
            *series = series.merged(&ranges, &self.weight);
        }
        for series in &mut self.columns {
            *series = series.merged(&ranges, &self.weight);
        }
        for column in [
            &mut self.step,
            &mut self.samples,
            &mut self.tokens,
            &mut self.generation,
        ] {
            *column = ranges.iter().map(|range| column[range.end - 1]).collect();
        }
        self.ranks = ranges.iter().map(|range| self.ranks[range.end - 1]).collect();
        self.weight = ranges
            .iter()
            .map(|range| self.weight[range.clone()].iter().sum())
            .collect();
    }
}

/// Cuts rows into at most `points` ranges of the same length, the last one perhaps shorter.
fn buckets(rows: &std::ops::Range<usize>, points: usize) -> Vec<std::ops::Range<usize>> {
    let width = rows.len().div_ceil(points.max(1)).max(1);
    rows.clone()
        .step_by(width)
        .map(|begin| begin..(begin + width).min(rows.end))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dashboard::tests::step;

    fn of(steps: std::ops::RangeInclusive<u64>, most_rows: usize) -> History {
        let mut history = History {
            most_rows,
            ..History::new()
        };
        for number in steps {
            history.push(&step(number));
        }
        history
    }

    fn loss(view: &View) -> serde_json::Value {
        serde_json::to_value(&view.columns["loss"]).unwrap()
    }

    #[test]
    fn a_span_in_few_points_keeps_its_smallest_and_its_largest_value() {
        let mut history = of(1..=699, MOST_ROWS);
        history.push(&CommittedStep {
            loss: 1000.0,
            ..step(700)
        });
        for number in 701..=1000 {
            history.push(&step(number));
        }
        let view = history.view(1, u64::MAX, 10);
        assert_eq!((view.steps, view.step.len()), (1000, 10));
        assert_eq!(view.step.last(), Some(&1000));
        let loss = loss(&view);
        let largest = loss["most"]
            .as_array()
            .unwrap()
            .iter()
            .map(|most| most.as_f64().unwrap());
        assert_eq!(largest.fold(0.0, f64::max), 1000.0);
        let least = f64::from(step(1000).loss as f32);
        assert_eq!(loss["least"][9].as_f64().unwrap() as f32, least as f32);
        let few = history.view(698, 702, 100);
        assert_eq!(few.step, [698, 699, 700, 701, 702]);
        assert_eq!(self::loss(&few)["mean"][2], 1000.0);
    }

    #[test]
    fn beyond_so_many_rows_the_oldest_are_merged_and_no_extreme_is_lost() {
        let mut history = of(1..=9, 100);
        history.push(&CommittedStep {
            loss: 1000.0,
            ..step(10)
        });
        for number in 11..=1000 {
            history.push(&step(number));
            assert!(history.step.len() <= 100, "{}", history.step.len());
        }
        let view = history.view(0, u64::MAX, 1000);
        assert_eq!((view.steps, view.last), (1000, 1000));
        let loss = loss(&view);
        let largest = loss["most"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(serde_json::Value::as_f64);
        assert_eq!(largest.fold(0.0, f64::max), 1000.0);
        assert_eq!(
            view.step[view.step.len() - 10..],
            (991..=1000).collect::<Vec<u64>>()[..],
            "new ones are whole"
        );
    }

    #[test]
    fn a_rewind_leaves_steps_behind_and_what_follows_is_of_the_live_branch() {
        let mut history = of(1..=20, MOST_ROWS);
        let place = history.place();
        history.validated(20, Validation { loss: 2.0, tokens: 9 });
        history.rewound(&crate::dashboard::tests::rewind(1, 12));
        assert_eq!(history.view(0, u64::MAX, 100).step, (1..=12).collect::<Vec<u64>>());
        assert!(history.after(place, 100).is_none(), "rows that a page has are gone");
        history.push(&step(13));
        let view = history.view(0, u64::MAX, 100);
        assert_eq!(view.left[0].step, (13..=20).collect::<Vec<u64>>());
        assert!(view.validations.is_empty());
        assert_eq!(view.step.last(), Some(&13));
    }

    #[test]
    fn a_page_that_lags_gets_every_row_or_is_told_to_take_a_whole_view() {
        let mut history = of(1..=20, MOST_ROWS);
        let place = history.place();
        for number in 21..=30 {
            history.push(&step(number));
        }
        assert_eq!(history.after(place, 10).unwrap().step, (21..=30).collect::<Vec<u64>>());
        assert!(history.after(place, 9).is_none());
        assert!(history.after(history.place(), 9).unwrap().step.is_empty());
    }

    #[test]
    fn a_phase_that_comes_later_has_no_number_before_and_a_skipped_step_no_loss() {
        let mut history = of(1..=2, MOST_ROWS);
        let mut third = step(3);
        third.phases.push(("data_ms".to_owned(), 5.0));
        third.skipped = Some("a spike".to_owned());
        history.push(&third);
        let view = serde_json::to_value(history.view(0, 9, 100)).unwrap();
        let data = view["phases"]
            .as_array()
            .unwrap()
            .iter()
            .find(|phase| phase[0] == "data");
        assert_eq!(data.unwrap()[1]["mean"], serde_json::json!([null, null, 5.0]));
        assert_eq!(view["columns"]["loss"]["mean"][2], serde_json::Value::Null);
        assert!(view["columns"].get("dual_norm").is_none(), "no step has one");
    }

    #[test]
    fn a_step_that_is_there_is_not_taken_twice() {
        let mut history = of(1..=3, MOST_ROWS);
        history.push(&step(2));
        history.push(&step(3));
        assert_eq!(history.view(0, 9, 9).step, [1, 2, 3]);
    }
}

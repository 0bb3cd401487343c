//! What came of the faults: a row a fault, a table by kind, and a file for programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::chaos::kind::Kind;
use crate::failure::{Failure, on_path};

/// How the run came out of one fault.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Outcome {
    pub(super) kind: Kind,
    /// From the fault to the next step that was committed for the first time.
    recovery_seconds: f64,
    /// Committed steps that were made again.
    replayed: u64,
    /// Generations that it took.
    generations: u64,
    /// What the coordinator said of it first.
    reason: String,
}

/// What one seed gave.
#[derive(Debug, Serialize)]
pub(super) struct Played {
    pub(super) seed: u64,
    /// Committed steps of the run.
    pub(super) steps: u64,
    pub(super) seconds: f64,
    pub(super) outcomes: Vec<Outcome>,
}

impl Outcome {
    /// `log` is what the coordinator said meanwhile, and `committed` the steps there were when the last generation began.
    pub(super) fn new(kind: Kind, recovery_seconds: f64, generations: u64, committed: u64, log: &str) -> Outcome {
        Outcome {
            kind,
            recovery_seconds,
            replayed: loaded(log).map_or(0, |step| committed.saturating_sub(step)),
            generations,
            reason: reason(log).unwrap_or_default().to_owned(),
        }
    }

    /// As a line for people.
    pub(super) fn line(&self, number: usize, step: u64) -> String {
        format!(
            "{number:>4}  {:<19} {:>7.2} s  {:>5} again  step {step:>6}  {}",
            self.kind.name(),
            self.recovery_seconds,
            self.replayed,
            self.reason
        )
    }
}

/// The step that the newest generation of this log has loaded, if it has formed one.
pub(super) fn loaded(log: &str) -> Option<u64> {
    log.lines().rev().find_map(|line| {
        let (_, what) = line.split_once("waiting for the ranks to connect and ")?;
        let Some((_, number)) = what.split_once("load step ") else {
            return Some(0);
        };
        number.split(':').next()?.parse().ok()
    })
}

/// The first sentence that says why something ended.
fn reason(log: &str) -> Option<&str> {
    let because = log.lines().find_map(|line| Some(line.split_once(", because ")?.1));
    let fenced = || log.lines().find(|line| line.contains(" WARN "));
    because.or_else(fenced)
}

/// The value below which that part of sorted `values` lies, by nearest rank.
fn quantile(values: &[f64], part: f64) -> f64 {
    let rank = (part * values.len() as f64).ceil() as usize;
    values.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// A line a kind.
pub(super) fn table(played: &[Played]) -> String {
    let mut by_kind: BTreeMap<Kind, Vec<&Outcome>> = BTreeMap::new();
    for outcome in played.iter().flat_map(|played| &played.outcomes) {
        by_kind.entry(outcome.kind).or_default().push(outcome);
    }
    let mut lines = vec![
        "| kind | faults | recovery, median | 99 % | steps made again, median | most |".to_owned(),
        "| --- | --- | --- | --- | --- | --- |".to_owned(),
    ];
    for (kind, outcomes) in by_kind {
        let sorted = |value: &dyn Fn(&Outcome) -> f64| {
            let mut values: Vec<f64> = outcomes.iter().map(|outcome| value(outcome)).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let times = sorted(&|outcome| outcome.recovery_seconds);
        let again = sorted(&|outcome| outcome.replayed as f64);
        lines.push(format!(
            "| {} | {} | {:.2} s | {:.2} s | {} | {} |",
            kind.name(),
            outcomes.len(),
            quantile(&times, 0.5),
            quantile(&times, 0.99),
            quantile(&again, 0.5),
            quantile(&again, 1.0)
        ));
    }
    lines.join("\n")
}

/// Writes everything as JSON.
pub(super) fn write(path: &Path, played: &[Played]) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(played)
        .map_err(|error| Failure::work(format!("the report is no JSON: {error}")))?;
    fs::write(path, text + "\n").map_err(on_path("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_says_what_was_loaded_and_why() {
        let log = "INFO regrouping: waiting for rank 0 to leave the collectives, because rank 1 was lost\n\
                   INFO waiting-for-ready: waiting for the ranks to connect and load step 35: 0 of 2 are ready\n\
                   INFO training: training 100 steps on 2 ranks\n";
        assert_eq!(loaded(log), Some(35));
        assert_eq!(reason(log), Some("rank 1 was lost"));
        assert_eq!(
            loaded("waiting for the ranks to connect and initialise: 0 of 2 are ready"),
            Some(0)
        );
        assert_eq!((loaded("training"), reason("training")), (None, None));
    }

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let values = [1.0, 2.0, 3.0, 4.0];
        assert_eq!((quantile(&values, 0.5), quantile(&values, 0.99)), (2.0, 4.0));
        assert_eq!(quantile(&values[..1], 0.99), 1.0);
    }
}

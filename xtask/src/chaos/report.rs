//! What came of the faults: a row a fault, a table by kind, and a file for programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

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
    /// The generation before it, and the newest after it.
    generations: (u64, u64),
    /// What the coordinator said of it first.
    reason: String,
}

/// A generation, as `lockstep ledger show --json` has it.
#[derive(Debug, Deserialize)]
pub(super) struct Generation {
    stamp: Stamp,
    resume: Option<Resume>,
    /// The newest step that was committed when it was formed.
    replay_through: u64,
}

#[derive(Debug, Deserialize)]
struct Stamp {
    generation: u64,
}

#[derive(Debug, Deserialize)]
struct Resume {
    step: u64,
}

impl Generation {
    /// Committed steps that it was to make again.
    fn replayed(&self) -> u64 {
        let from = self.resume.as_ref().map_or(0, |resume| resume.step);
        self.replay_through.saturating_sub(from)
    }
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
    /// `generations` came after the first of these and up to the second; `log` is what the coordinator said meanwhile.
    pub(super) fn new(kind: Kind, recovery_seconds: f64, generations: (u64, u64), log: &str) -> Outcome {
        Outcome {
            kind,
            recovery_seconds,
            replayed: 0,
            generations,
            reason: reason(log).unwrap_or_default().to_owned(),
        }
    }

    /// Adds up what its generations made again.
    pub(super) fn count_replayed(&mut self, generations: &[Generation]) {
        let (after, last) = self.generations;
        self.replayed = generations
            .iter()
            .filter(|generation| generation.stamp.generation > after && generation.stamp.generation <= last)
            .map(Generation::replayed)
            .sum();
    }

    /// As a line for people.
    pub(super) fn line(&self, number: usize, step: u64) -> String {
        format!(
            "{number:>4}  {:<19} {:>7.2} s  step {step:>6}  {}",
            self.kind.name(),
            self.recovery_seconds,
            self.reason
        )
    }
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
    fn a_log_says_why() {
        let log = "INFO regrouping: waiting for rank 0 to leave the collectives, because rank 1 was lost\n\
                   INFO training: training 100 steps on 2 ranks\n";
        assert_eq!(reason(log), Some("rank 1 was lost"));
        assert_eq!(reason("INFO training"), None);
    }

    #[test]
    fn a_fault_counts_what_its_generations_made_again_and_no_others() {
        let text = r#"[{"stamp":{"term":1,"generation":1},"resume":null,"replay_through":0},
                       {"stamp":{"term":1,"generation":2},"resume":{"step":10},"replay_through":15},
                       {"stamp":{"term":2,"generation":3},"resume":null,"replay_through":17},
                       {"stamp":{"term":2,"generation":4},"resume":{"step":20},"replay_through":21}]"#;
        let generations: Vec<Generation> = serde_json::from_str(text).unwrap();
        let mut outcome = Outcome::new(Kind::Kill, 1.0, (1, 3), "");
        outcome.count_replayed(&generations);
        assert_eq!(outcome.replayed, 5 + 17);
    }

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let values = [1.0, 2.0, 3.0, 4.0];
        assert_eq!((quantile(&values, 0.5), quantile(&values, 0.99)), (2.0, 4.0));
        assert_eq!(quantile(&values[..1], 0.99), 1.0);
    }
}

//! What came of the faults: a row a fault, a table by kind, and a file for programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::chaos::kind::{Ground, Kind};
use crate::failure::{Failure, on_path};

/// How the run came out of one fault.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Outcome {
    pub(super) kind: Kind,
    /// What happened at once, if it was a pair.
    pub(super) pair: Option<[Kind; 2]>,
    #[serde(flatten)]
    times: Times,
    /// Committed steps that were made again.
    replayed: u64,
    /// The generation before it, and the newest after it.
    generations: (u64, u64),
    /// What the coordinator said of it first.
    reason: String,
}

/// Where the time of a fault went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Times {
    /// Until the run had the trainers that the fault needs, and its moment had come.
    prepare_seconds: f64,
    /// From the fault to the next step that was committed for the first time.
    recovery_seconds: f64,
    /// What the fault took besides: the time for which it lasts, and until all trainers were together again.
    rest_seconds: f64,
}

impl Times {
    pub(super) fn new(prepare: Duration, recovery: Duration, all: Duration) -> Times {
        Times {
            prepare_seconds: prepare.as_secs_f64(),
            recovery_seconds: recovery.as_secs_f64(),
            rest_seconds: all.saturating_sub(prepare + recovery).as_secs_f64(),
        }
    }
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

/// What one run gave.
#[derive(Debug, Serialize)]
pub(super) struct Played {
    pub(super) seed: u64,
    /// Where its checkpoints lay.
    pub(super) checkpoints_in: Ground,
    /// Committed steps of the run.
    pub(super) steps: u64,
    /// Checkpoints that were given up, with the reason in the ledger.
    pub(super) checkpoints_given_up: usize,
    /// All of it.
    pub(super) seconds: f64,
    /// Until the first step, and from the last fault to the end of all processes.
    pub(super) start_and_stop_seconds: f64,
    /// What its ledger and a run that nothing disturbs took to prove it.
    pub(super) proof_seconds: f64,
    pub(super) outcomes: Vec<Outcome>,
}

impl Outcome {
    /// `generations` came after the first of these and up to the second; `log` is what the coordinator said meanwhile.
    pub(super) fn new(
        (kind, pair): (Kind, Option<[Kind; 2]>),
        times: Times,
        generations: (u64, u64),
        log: &str,
    ) -> Outcome {
        Outcome {
            kind,
            pair,
            times,
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
        let halves = self.pair.map_or_else(String::new, |[one, other]| {
            format!("{} with {}: ", one.name(), other.name())
        });
        format!(
            "{number:>4}  {:<19} {:>7.2} s  step {step:>6}  {halves}{}",
            self.kind.name(),
            self.times.recovery_seconds,
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

/// A line a kind over all runs, and one for all of them.
pub(super) fn table(played: &[Played]) -> String {
    let mut by_kind: BTreeMap<Kind, Vec<&Outcome>> = BTreeMap::new();
    for outcome in played.iter().flat_map(|played| &played.outcomes) {
        by_kind.entry(outcome.kind).or_default().push(outcome);
    }
    let mut lines = vec![
        "| kind | faults | recovery, median | 99 % | steps made again, median | most |".to_owned(),
        "| --- | --- | --- | --- | --- | --- |".to_owned(),
    ];
    let all = by_kind.values().flatten().copied().collect::<Vec<&Outcome>>();
    lines.extend(
        by_kind
            .iter()
            .map(|(kind, outcomes)| row(&format!("`{}`", kind.name()), outcomes)),
    );
    lines.push(row("all", &all));
    lines.join("\n")
}

fn row(name: &str, outcomes: &[&Outcome]) -> String {
    let sorted = |value: &dyn Fn(&Outcome) -> f64| {
        let mut values: Vec<f64> = outcomes.iter().map(|outcome| value(outcome)).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let times = sorted(&|outcome| outcome.times.recovery_seconds);
    let again = sorted(&|outcome| outcome.replayed as f64);
    format!(
        "| {name} | {} | {:.2} s | {:.2} s | {} | {} |",
        outcomes.len(),
        quantile(&times, 0.5),
        quantile(&times, 0.99),
        quantile(&again, 0.5),
        quantile(&again, 1.0)
    )
}

/// All runs in a sentence, and one about where their time went.
pub(super) fn totals(played: &[Played]) -> String {
    let outcomes = || played.iter().flat_map(|run| &run.outcomes);
    let sum = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>();
    let all = sum(&mut played.iter().map(|run| run.seconds));
    let times = |part: fn(&Times) -> f64| sum(&mut outcomes().map(|outcome| part(&outcome.times)));
    let parts = [
        ("bringing trainers", times(|times| times.prepare_seconds)),
        ("recovering", times(|times| times.recovery_seconds)),
        ("what lasts longer", times(|times| times.rest_seconds)),
        (
            "starts and stops",
            sum(&mut played.iter().map(|run| run.start_and_stop_seconds)),
        ),
        ("proofs", sum(&mut played.iter().map(|run| run.proof_seconds))),
    ];
    let parts: Vec<String> = parts
        .iter()
        .map(|(name, seconds)| format!("{:.0} % {name}", 100.0 * seconds / all.max(f64::MIN_POSITIVE)))
        .collect();
    format!(
        "{} faults in {} runs, {} steps, {} checkpoints given up, {all:.0} s: {}",
        outcomes().count(),
        played.len(),
        played.iter().map(|run| run.steps).sum::<u64>(),
        played.iter().map(|run| run.checkpoints_given_up).sum::<usize>(),
        parts.join(", ")
    )
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
        let mut outcome = Outcome::new((Kind::Kill, None), Times::default(), (1, 3), "");
        outcome.count_replayed(&generations);
        assert_eq!(outcome.replayed, 5 + 17);
    }

    #[test]
    fn the_table_has_all_runs_together_and_the_totals_say_where_the_time_went() {
        let run = |seed, kinds: &[Kind], seconds: u64| {
            let second = Duration::from_secs(1);
            let times = Times::new(second, 2 * second, 4 * second);
            let outcome = |kind: &Kind| Outcome::new((*kind, None), times, (1, 1), "");
            Played {
                seed,
                checkpoints_in: Ground::Folder,
                steps: 100,
                checkpoints_given_up: 3,
                seconds: seconds as f64,
                start_and_stop_seconds: 1.0,
                proof_seconds: 1.0,
                outcomes: kinds.iter().map(outcome).collect(),
            }
        };
        let played = [run(1, &[Kind::Kill, Kind::Term], 10), run(2, &[Kind::Kill], 10)];
        let table = table(&played);
        for row in ["| `kill` | 2 | 2.00 s |", "| `term` | 1 |", "| all | 3 | 2.00 s |"] {
            assert!(table.contains(row), "{table}");
        }
        assert_eq!(
            totals(&played),
            "3 faults in 2 runs, 200 steps, 6 checkpoints given up, 20 s: 15 % bringing trainers, 30 % recovering, \
             15 % what lasts longer, 10 % starts and stops, 10 % proofs"
        );
    }

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let values = [1.0, 2.0, 3.0, 4.0];
        assert_eq!((quantile(&values, 0.5), quantile(&values, 0.99)), (2.0, 4.0));
        assert_eq!(quantile(&values[..1], 0.99), 1.0);
    }
}

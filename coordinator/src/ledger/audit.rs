//! Proofs from the ledger alone.
//!
//! Way of data: every table → [`Tables`], with a violation for each row that cannot be read → one function for each
//! claim (`steps`: what was trained; `changes`: what operators changed; `rewinds`: where the run went back; `formations`: who trained it and what was decided;
//! `reports`: what the events prove of it) → a [`Proof`] with its figures and every violation, by row.

mod changes;
mod formations;
mod reports;
mod rewinds;
mod steps;

use std::collections::BTreeMap;

use lockstep_config::RunConfig;
use lockstep_proto::domain::{Directive as Urgent, Generation, Part, Plan, RunEnd, Stamp, Validation};
use redb::TableHandle;
use serde::de::DeserializeOwned;

use crate::branches::{Branches, Rewind};
use crate::changes::{Change, Changes};
use crate::ledger::rows::{record_of, typed_record_of};
use crate::ledger::{
    CALLS, CHANGES, COMMITTED, CallRow, DECISIONS, DecisionRow, ENDS, FACTS, FactsRow, GENERATIONS, LedgerError, PLANS,
    REWINDS, RUN, Reader, RunRow, SNAPSHOTS, TABLES, TERMS, TermRow, URGENT, VALIDATIONS,
};
use crate::plan::Planner;
use crate::run::Commit;

/// Violations of one claim that are kept; the others are counted.
const NAMED: usize = 100;

/// What an audit found.
#[derive(Clone, Debug, PartialEq)]
pub struct Audit {
    /// A proof, or its failure, for each claim.
    pub proofs: Vec<Proof>,
}

impl Audit {
    /// Whether every claim holds.
    pub fn is_clean(&self) -> bool {
        self.violations() == 0
    }

    /// Violations of all claims together.
    pub fn violations(&self) -> usize {
        self.proofs
            .iter()
            .map(|proof| proof.violations.len() + proof.unnamed)
            .sum()
    }
}

/// A claim, with what holds or breaks it.
#[derive(Clone, Debug, PartialEq)]
pub struct Proof {
    /// What is claimed.
    pub claim: &'static str,
    /// How much of it there is, in figures.
    pub figures: String,
    /// One sentence for each row that breaks it, at most a hundred.
    pub violations: Vec<String>,
    /// Violations beyond these.
    pub unnamed: usize,
}

impl Proof {
    fn of(claim: &'static str) -> Proof {
        Proof {
            claim,
            figures: String::new(),
            violations: Vec::new(),
            unnamed: 0,
        }
    }

    fn with(mut self, figures: String) -> Proof {
        self.figures = figures;
        self
    }

    fn broken(&mut self, sentence: String) {
        match self.violations.len() < NAMED {
            true => self.violations.push(sentence),
            false => self.unnamed += 1,
        }
    }

    /// A violation unless it holds.
    fn holds(&mut self, holds: bool, sentence: impl FnOnce() -> String) {
        if !holds {
            self.broken(sentence());
        }
    }
}

/// A committed step without what rank 0 measured, so that a long run fits into memory.
#[derive(Clone, Debug, PartialEq)]
struct Step {
    stamp: Stamp,
    plan: Plan,
    parameter_hash: [u8; 32],
    loss: f64,
    is_skipped: bool,
    step_tokens: u64,
    ranks: u32,
    samples: u64,
    tokens: u64,
}

impl From<Commit> for Step {
    fn from(commit: Commit) -> Step {
        Step {
            stamp: commit.stamp,
            plan: commit.plan,
            parameter_hash: commit.parameter_hash,
            loss: commit.metrics.loss,
            is_skipped: commit.metrics.skipped.is_some(),
            step_tokens: commit.metrics.tokens,
            ranks: commit.ranks,
            samples: commit.samples,
            tokens: commit.tokens,
        }
    }
}

/// The ledger, decoded. Plans, steps, validations and snapshots have the keys that [`Branches`] gives them.
struct Tables {
    run: Option<RunRow>,
    terms: BTreeMap<u64, TermRow>,
    facts: BTreeMap<u64, FactsRow>,
    generations: BTreeMap<u64, Generation>,
    plans: BTreeMap<u64, Plan>,
    committed: BTreeMap<u64, Step>,
    urgent: BTreeMap<u64, Urgent>,
    validations: BTreeMap<u64, Validation>,
    snapshots: BTreeMap<u64, Vec<Part>>,
    rewinds: BTreeMap<u64, Rewind>,
    changes: BTreeMap<u64, Change>,
    branches: Branches,
    decisions: BTreeMap<u64, DecisionRow>,
    ends: BTreeMap<u64, RunEnd>,
}

impl Tables {
    /// Where the next plan begins, if the one before ended at `cursor`: behind what operators wanted to be skipped.
    fn skip(&self, cursor: u64) -> u64 {
        self.changes
            .values()
            .fold(cursor, |cursor, change| match change.ask.skip_samples {
                Some(count) if change.cursor == cursor => cursor.saturating_add(count),
                _ => cursor,
            })
    }

    /// The last committed step.
    fn last_committed(&self) -> u64 {
        self.last_of(self.branches.newest(), |_| true)
    }

    /// The last step of a branch that some condition holds for; if there is none, the one that the branch went on from.
    fn last_of(&self, branch: u64, holds: impl Fn(&Step) -> bool) -> u64 {
        let of_branch = Branches::key_of(branch, 0)..Branches::key_of(branch + 1, 0);
        let mut steps = self.committed.range(of_branch).rev();
        let last = steps
            .find(|(_, step)| holds(step))
            .map(|(key, _)| Branches::of_key(*key).1);
        last.unwrap_or_else(|| self.branches.begins_after(branch))
    }

    /// The committed steps of the live branch, in their order.
    fn live(&self) -> BTreeMap<u64, (u64, &Step)> {
        let live = self.committed.iter().filter(|(key, _)| self.branches.has(**key));
        live.map(|(key, step)| (Branches::of_key(*key).1, (*key, step)))
            .collect()
    }
}

/// Proves what the ledger can prove.
///
/// # Errors
/// When the store fails. What is wrong with the ledger's content is a violation and no error.
pub fn audit(reader: &Reader) -> Result<Audit, LedgerError> {
    let mut readable = Proof::of("every row can be read");
    let rewinds: BTreeMap<u64, Rewind> = load(reader, REWINDS.name(), &mut readable)?;
    let tables = Tables {
        branches: Branches::of(rewinds.values().cloned().collect()),
        rewinds,
        changes: load(reader, CHANGES.name(), &mut readable)?,
        run: load::<RunRow>(reader, RUN.name(), &mut readable)?.remove(&0),
        terms: load(reader, TERMS.name(), &mut readable)?,
        facts: load(reader, FACTS.name(), &mut readable)?,
        generations: load(reader, GENERATIONS.name(), &mut readable)?,
        plans: load(reader, PLANS.name(), &mut readable)?,
        committed: load_as::<Commit, Step>(reader, COMMITTED.name(), &mut readable)?,
        urgent: load(reader, URGENT.name(), &mut readable)?,
        validations: load(reader, VALIDATIONS.name(), &mut readable)?,
        snapshots: load(reader, SNAPSHOTS.name(), &mut readable)?,
        decisions: load(reader, DECISIONS.name(), &mut readable)?,
        ends: load(reader, ENDS.name(), &mut readable)?,
    };
    let _calls: BTreeMap<u64, CallRow> = load(reader, CALLS.name(), &mut readable)?;
    let sizes = reader.tables()?;
    for table in sizes
        .iter()
        .filter(|table| !TABLES.iter().any(|known| known.name() == table.name))
    {
        reader.each(&table.name, |key, bytes| {
            if let Err(cause) = record_of(bytes) {
                readable.broken(format!("row {key} of the table {} cannot be read: {cause}", table.name));
            }
        })?;
    }
    let rows: u64 = sizes.iter().map(|table| table.rows).sum();
    let (events, events_are_readable) = reports::load(reader, &tables, readable)?;
    let readable = events_are_readable.with(format!("{rows} rows of {} tables", sizes.len()));

    let (config, run) = config(&tables);
    let mut planned = Proof::of("the config's schedules can be followed");
    let epoch = tables.run.as_ref().map_or(0, |run| run.training_samples);
    let planner = config.as_ref().and_then(|config| match Planner::new(config, epoch) {
        Ok(planner) => Some(planner),
        Err(error) => {
            planned.broken(error.to_string());
            None
        }
    });
    let changes = planner.and_then(|planner| match Changes::of(planner, tables.changes.values().cloned()) {
        Ok(changes) => Some(changes),
        Err(error) => {
            planned.broken(format!("a change that operators made cannot be made again: {error}"));
            None
        }
    });
    let mut proofs = vec![readable, run, planned];
    proofs.extend(steps::proofs(&tables, changes.as_ref()));
    proofs.push(self::changes::proof(&tables));
    proofs.push(rewinds::proof(&tables, config.as_ref()));
    proofs.extend(formations::proofs(&tables, config.as_ref(), changes.as_ref()));
    proofs.extend(reports::proofs(&tables, events));
    Ok(Audit { proofs })
}

/// The run's config, and the proof that it is the one which the run was begun with.
fn config(tables: &Tables) -> (Option<RunConfig>, Proof) {
    let mut proof = Proof::of("the config is the one that the run began with");
    let Some(run) = &tables.run else {
        proof.broken("row 0 of the table run is missing".to_owned());
        return (None, proof);
    };
    match RunConfig::parse(&run.config_toml, "row 0 of the table run", &[]) {
        Ok(config) => {
            proof.holds(config.hash() == run.config_hash, || {
                format!(
                    "row 0 of the table run has a config with the hash {}, and says that it is {}",
                    config.hash(),
                    run.config_hash
                )
            });
            for (term, facts) in &tables.facts {
                proof.holds(
                    facts.config_hash == run.config_hash && facts.data_hash == run.data_hash,
                    || {
                        format!(
                            "row {term} of the table facts has another config or data hash than row 0 of the table run"
                        )
                    },
                );
            }
            (Some(config), proof.with(format!("hash {}", run.config_hash)))
        }
        Err(error) => {
            proof.broken(format!(
                "row 0 of the table run has a config that cannot be read: {error}"
            ));
            (None, proof)
        }
    }
}

fn load<T: DeserializeOwned>(
    reader: &Reader,
    table: &str,
    readable: &mut Proof,
) -> Result<BTreeMap<u64, T>, LedgerError> {
    load_as::<T, T>(reader, table, readable)
}

/// The rows of a table, each turned into what is kept of it.
fn load_as<T: DeserializeOwned, K: From<T>>(
    reader: &Reader,
    table: &str,
    readable: &mut Proof,
) -> Result<BTreeMap<u64, K>, LedgerError> {
    let mut rows = BTreeMap::new();
    reader.each(table, |key, bytes| match typed_record_of::<T>(bytes) {
        Ok(record) => {
            rows.insert(key, record.into());
        }
        Err(cause) => readable.broken(format!("row {key} of the table {table} cannot be read: {cause}")),
    })?;
    Ok(rows)
}

/// A row of a table whose keys tell branch and step, for sentences.
fn row(key: u64) -> String {
    match Branches::of_key(key) {
        (0, step) => format!("row {step}"),
        (branch, step) => format!("row {step} of branch {branch}"),
    }
}

/// Checks that the steps of each branch follow each other without a gap from where it begins.
fn branches_without_gaps(proof: &mut Proof, table: &str, tables: &Tables, keys: impl Iterator<Item = u64>) {
    let mut of_branch: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for key in keys {
        let (branch, step) = Branches::of_key(key);
        of_branch.entry(branch).or_default().push(step);
    }
    for (branch, steps) in of_branch {
        proof.holds(branch <= tables.branches.newest(), || {
            format!("the table {table} has steps of branch {branch}, which no rewind began")
        });
        without_gaps(
            proof,
            table,
            tables.branches.begins_after(branch) + 1,
            steps.into_iter(),
        );
    }
}

/// Checks that keys are `first`, `first + 1` … and names those that are missing.
fn without_gaps(proof: &mut Proof, table: &str, first: u64, keys: impl Iterator<Item = u64>) {
    let mut next = first;
    for key in keys {
        match key.checked_sub(next) {
            None => proof.broken(format!(
                "row {key} of the table {table} comes before the first, {first}"
            )),
            Some(0) => {}
            Some(1) => proof.broken(format!("row {next} of the table {table} is missing")),
            Some(_) => proof.broken(format!("rows {next} to {} of the table {table} are missing", key - 1)),
        }
        next = next.max(key.saturating_add(1));
    }
}

//! The durable record of a run: terms, generations, plans, directives, committed steps, validations, and decisions
//! with their reasons, in `ledger.redb` of the run's folder.
//!
//! Way of data: [`Ledger::open`] takes the folder's lock (`lock`), checks the version and claims the next term;
//! [`Ledger::append`] makes a list of [`Record`]s durable in one transaction; the readers give them back. Every row
//! carries a version (`rows`), and an unknown one is refused by name. Rows are only ever added: one that is there is not
//! written again with another content. Steps have keys that tell their branch too ([`Branches`]). The events that led to the
//! records are rows too (`events`). Others read a ledger, also a live one, with a [`Reader`].

mod audit;
mod events;
mod lock;
mod past;
mod reader;
mod replay;
mod rows;
mod secret;
#[cfg(test)]
mod shadow;
mod show;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_proto::domain::{Checkpoint, Directive as Urgent, Generation, Part, Plan, RunEnd, Validation};
use redb::{ConcurrencyMode, Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};

use crate::branches::{Branches, Rewind};
pub use crate::ledger::audit::{Audit, Proof, audit};
pub use crate::ledger::events::{EVENTS_VERSION, FactsRow, Heard};
pub(crate) use crate::ledger::events::{Recorder, event_of_member};
use crate::ledger::lock::Lock;
pub(crate) use crate::ledger::past::{Past, past};
pub use crate::ledger::reader::{Reader, TableSize};
pub use crate::ledger::replay::{Difference, Replay, Unreplayed, replay};
pub use crate::ledger::rows::{CallRow, DecisionRow, LEDGER_VERSION, RunRow, TermRow};
use crate::ledger::rows::{CheckpointRow, FarewellRow, WishRow, decode, encode};
#[cfg(test)]
pub(crate) use crate::ledger::shadow::Shadow;
pub use crate::ledger::show::{Committed, Contents, Keyed, Size, rows_of, show};
use crate::run::{Begun, Commit, Record, Recorded, Wish};

type Rows = TableDefinition<'static, u64, &'static [u8]>;
/// A row that is to be written: table, key, bytes.
type Row = (Rows, u64, Vec<u8>);

const RUN: Rows = TableDefinition::new("run");
const TERMS: Rows = TableDefinition::new("terms");
const GENERATIONS: Rows = TableDefinition::new("generations");
const BEGUN: Rows = TableDefinition::new("begun");
const WISHES: Rows = TableDefinition::new("wishes");
const FAREWELLS: Rows = TableDefinition::new("farewells");
const PLANS: Rows = TableDefinition::new("plans");
const URGENT: Rows = TableDefinition::new("directives");
const COMMITTED: Rows = TableDefinition::new("committed");
const VALIDATIONS: Rows = TableDefinition::new("validations");
const SNAPSHOTS: Rows = TableDefinition::new("snapshots");
const CHECKPOINTS: Rows = TableDefinition::new("checkpoints");
const REWINDS: Rows = TableDefinition::new("rewinds");
const CHANGES: Rows = TableDefinition::new("changes");
const ANSWERS: Rows = TableDefinition::new("answers");
const DECISIONS: Rows = TableDefinition::new("decisions");
const ENDS: Rows = TableDefinition::new("ends");
const FACTS: Rows = TableDefinition::new("facts");
const EVENTS: Rows = TableDefinition::new("events");
const CALLS: Rows = TableDefinition::new("calls");

/// Every table.
const TABLES: [Rows; 20] = [
    RUN,
    TERMS,
    GENERATIONS,
    BEGUN,
    WISHES,
    FAREWELLS,
    PLANS,
    URGENT,
    COMMITTED,
    VALIDATIONS,
    SNAPSHOTS,
    CHECKPOINTS,
    REWINDS,
    CHANGES,
    ANSWERS,
    DECISIONS,
    ENDS,
    FACTS,
    EVENTS,
    CALLS,
];

/// Memory that the store may use to cache pages; its own default is 1 GiB.
const CACHE: usize = 8 << 20;

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another run has the folder.
    #[error("the run folder {} is in use by the process {holder}: wait for that run to end, or choose another run.name", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// Its pid, or what is known of it.
        holder: String,
    },
    /// The folder holds another run.
    #[error("the run folder {} holds the run {run_id}, which has another {what} ({theirs}, this one has {ours}): choose another run.name", folder.display())]
    OtherRun {
        /// The folder.
        folder: PathBuf,
        /// The run in it.
        run_id: String,
        /// What differs.
        what: &'static str,
        /// In the folder.
        theirs: String,
        /// Of the run that was to begin.
        ours: String,
    },
    /// Written by another version.
    #[error("{}: a row of the table {table} has version {found}, and this build knows version {} only", file.display(), LEDGER_VERSION)]
    UnknownVersion {
        /// The ledger.
        file: PathBuf,
        /// The table.
        table: &'static str,
        /// The version.
        found: u64,
    },
    /// A row that cannot be read.
    #[error("{}: row {key} of the table {table} cannot be read: {cause}", file.display())]
    Row {
        /// The ledger.
        file: PathBuf,
        /// The table.
        table: &'static str,
        /// The row.
        key: u64,
        /// Of the parser.
        cause: String,
    },
    /// A row was to be written again with another content.
    #[error("{}: row {key} of the table {table} is there already and says something else: what is recorded is never changed. This is a bug of the coordinator, and nothing of the transaction was kept", file.display())]
    Rewritten {
        /// The ledger.
        file: PathBuf,
        /// The table.
        table: String,
        /// The row.
        key: u64,
    },
    /// The system or the store failed.
    #[error("cannot {what} {}: {cause}", path.display())]
    Store {
        /// What was tried.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        cause: String,
    },
}

/// Something that was committed on some branch.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A step.
    Step(Box<Commit>),
    /// The validation of a step.
    Validation(u64, Validation),
    /// The branch was closed, and another one began.
    Rewound(Rewind),
}

/// The open ledger of a run. While it lives, nobody else can open the folder.
#[derive(Debug)]
pub struct Ledger {
    database: Database,
    file: PathBuf,
    run: RunRow,
    term: u64,
    secret: [u8; 32],
    /// The branches of the run, from which the keys of steps are made.
    branches: Branches,
    next_decision: u64,
    next_wish: u64,
    next_checkpoint: u64,
    next_answer: u64,
    next_event: u64,
    next_call: u64,
    _lock: Option<Lock>,
}

impl Ledger {
    /// Opens or makes the ledger in `folder` (made if it is not there) and claims the next term. `run` is kept where
    /// the folder is new; otherwise config and data must be those of the run that is there, whose id stands.
    ///
    /// # Errors
    /// When the folder is in use, holds another run, or was written by another version; when the store fails.
    pub fn open(folder: &Path, run: RunRow) -> Result<Ledger, LedgerError> {
        std::fs::create_dir_all(folder).map_err(|error| store("make the folder", folder, error))?;
        let lock = Lock::take(folder)?;
        let file = folder.join("ledger.redb");
        let database = Database::builder()
            .set_cache_size(CACHE)
            // Others may look while the run goes on.
            .set_concurrency_mode(ConcurrencyMode::SingleWriter)
            .create(&file)
            .map_err(|error| match error {
                redb::DatabaseError::DatabaseAlreadyOpen => LedgerError::InUse {
                    folder: folder.to_owned(),
                    holder: "that has its ledger open".to_owned(),
                },
                other => store("open", &file, other),
            })?;
        let mut ledger = Ledger {
            database,
            file,
            run,
            term: 0,
            secret: secret::of(folder)?,
            branches: Branches::default(),
            next_decision: 0,
            next_wish: 0,
            next_checkpoint: 0,
            next_answer: 0,
            next_event: 1,
            next_call: 0,
            _lock: Some(lock),
        };
        ledger.claim(folder)?;
        Ok(ledger)
    }

    fn claim(&mut self, folder: &Path) -> Result<(), LedgerError> {
        self.make_tables()?;
        match self.last::<RunRow>(RUN, "run")? {
            Some((_, there)) => {
                let different = |what, theirs: &str, ours: &str| LedgerError::OtherRun {
                    folder: folder.to_owned(),
                    run_id: there.run_id.clone(),
                    what,
                    theirs: theirs.to_owned(),
                    ours: ours.to_owned(),
                };
                if there.config_hash != self.run.config_hash {
                    return Err(different("config", &there.config_hash, &self.run.config_hash));
                }
                if there.data_hash != self.run.data_hash {
                    return Err(different("data hash", &there.data_hash, &self.run.data_hash));
                }
                self.run = there;
            }
            None => self.write(&[self.row(RUN, 0, &self.run)?])?,
        }
        self.term = self.last::<TermRow>(TERMS, "terms")?.map_or(1, |(term, _)| term + 1);
        self.next_decision = self
            .last::<DecisionRow>(DECISIONS, "decisions")?
            .map_or(0, |(number, _)| number + 1);
        self.next_wish = self
            .last::<WishRow>(WISHES, "wishes")?
            .map_or(0, |(number, _)| number + 1);
        self.next_checkpoint = self
            .last::<CheckpointRow>(CHECKPOINTS, "checkpoints")?
            .map_or(0, |(number, _)| number + 1);
        self.next_answer = self.last_key(ANSWERS)?.map_or(0, |number| number + 1);
        self.branches = Branches::of(self.all(REWINDS, "rewinds")?);
        self.next_event = self.last_key(EVENTS)?.map_or(1, |number| number + 1);
        self.next_call = self.last_key(CALLS)?.map_or(0, |number| number + 1);
        let row = TermRow {
            pid: std::process::id(),
            began: unix_seconds(),
        };
        self.write(&[self.row(TERMS, self.term, &row)?])
    }

    /// Makes every table, so that readers find them.
    fn make_tables(&self) -> Result<(), LedgerError> {
        let failed = |error: redb::Error| store("write", &self.file, error);
        let began = self.database.begin_write().map_err(|error| failed(error.into()))?;
        for table in TABLES {
            began.open_table(table).map_err(|error| failed(error.into()))?;
        }
        began.commit().map_err(|error| failed(error.into()))
    }

    /// The run of this folder.
    pub fn run(&self) -> &RunRow {
        &self.run
    }

    /// What the secrets of the run's generations are derived from: made with the folder, and kept beside the ledger.
    pub fn secret(&self) -> [u8; 32] {
        self.secret
    }

    /// The term that this opening claimed.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Makes the records durable, all of them or none, in one transaction. Returns when they are on the disk.
    ///
    /// # Errors
    /// When the store fails; then nothing was kept.
    pub fn append(&mut self, records: &[Record]) -> Result<(), LedgerError> {
        self.append_with_events(records, Vec::new()).map(|_rows| ())
    }

    /// As [`Ledger::append`], together with the rows of the events that led to these records. Returns the rows of the
    /// records.
    pub(crate) fn append_with_events(
        &mut self,
        records: &[Record],
        events: Vec<Vec<u8>>,
    ) -> Result<Vec<Row>, LedgerError> {
        self.append_with_calls(records, events, &[])
    }

    /// As [`Ledger::append_with_events`], together with who gave the orders, and whose calls were refused.
    pub(crate) fn append_with_calls(
        &mut self,
        records: &[Record],
        events: Vec<Vec<u8>>,
        calls: &[CallRow],
    ) -> Result<Vec<Row>, LedgerError> {
        let mut rows = Vec::with_capacity(records.len());
        let (mut next_decision, mut next_wish) = (self.next_decision, self.next_wish);
        let (mut next_checkpoint, mut next_answer) = (self.next_checkpoint, self.next_answer);
        let mut branches = self.branches.clone();
        for record in records {
            match record {
                Record::Generation(generation) => {
                    rows.push(self.row(GENERATIONS, generation.stamp.generation, generation)?);
                }
                Record::Begun(begun) => rows.push(self.row(BEGUN, begun.generation, begun)?),
                Record::Wish(wish) => {
                    let row = WishRow {
                        term: self.term,
                        wish: *wish,
                    };
                    rows.push(self.row(WISHES, next_wish, &row)?);
                    next_wish += 1;
                }
                Record::Farewell {
                    generation,
                    rank,
                    farewell: (outcome, step),
                } => {
                    let row = FarewellRow {
                        generation: *generation,
                        rank: *rank,
                        outcome: outcome.clone(),
                        step: *step,
                    };
                    rows.push(self.row(FAREWELLS, row.key(), &row)?);
                }
                Record::Plans(plans) => {
                    for plan in plans {
                        rows.push(self.row(PLANS, branches.key(plan.step), plan)?);
                    }
                }
                Record::Urgent(urgent) => rows.push(self.row(URGENT, urgent.sequence, urgent)?),
                Record::Committed(commit) => {
                    rows.push(self.row(COMMITTED, branches.key(commit.plan.step), commit.as_ref())?);
                }
                Record::Validation { step, validation } => {
                    rows.push(self.row(VALIDATIONS, branches.key(*step), validation)?);
                }
                Record::Snapshot { step, parts } => rows.push(self.row(SNAPSHOTS, branches.key(*step), parts)?),
                Record::Rewound(rewind) => {
                    rows.push(self.row(REWINDS, rewind.number, rewind)?);
                    branches.close(rewind.clone());
                }
                Record::Changed(change) => rows.push(self.row(CHANGES, change.number, change.as_ref())?),
                Record::Answered(answered) => {
                    rows.push(self.row(ANSWERS, next_answer, answered.as_ref())?);
                    next_answer += 1;
                }
                Record::Checkpoint(checkpoint) => {
                    let row = CheckpointRow {
                        checkpoint: *checkpoint,
                        refused: None,
                    };
                    rows.push(self.row(CHECKPOINTS, next_checkpoint, &row)?);
                    next_checkpoint += 1;
                }
                Record::CheckpointRefused { checkpoint, reason } => {
                    let row = CheckpointRow {
                        checkpoint: *checkpoint,
                        refused: Some(reason.clone()),
                    };
                    rows.push(self.row(CHECKPOINTS, next_checkpoint, &row)?);
                    next_checkpoint += 1;
                }
                Record::Decision { reason } => {
                    let row = DecisionRow {
                        term: self.term,
                        at: unix_seconds(),
                        reason: reason.clone(),
                    };
                    rows.push(self.row(DECISIONS, next_decision, &row)?);
                    next_decision += 1;
                }
                Record::End(end) => rows.push(self.row(ENDS, self.term, end)?),
            }
        }
        let (records, next_event) = (rows.len(), self.next_event + events.len() as u64);
        rows.extend(
            (self.next_event..)
                .zip(events)
                .map(|(number, event)| (EVENTS, number, event)),
        );
        let next_call = self.next_call + calls.len() as u64;
        for (number, call) in (self.next_call..).zip(calls) {
            rows.push(self.row(CALLS, number, call)?);
        }
        self.write(&rows)?;
        self.next_call = next_call;
        (self.next_decision, self.next_wish) = (next_decision, next_wish);
        (self.next_checkpoint, self.next_answer) = (next_checkpoint, next_answer);
        self.next_event = next_event;
        self.branches = branches;
        rows.truncate(records);
        Ok(rows)
    }

    /// Keeps what the machine of this term is made with, which says that the term's events are recorded.
    ///
    /// # Errors
    /// When the store fails.
    pub fn record_facts(&mut self, facts: &FactsRow) -> Result<(), LedgerError> {
        self.write(&[self.row(FACTS, self.term, facts)?])
    }

    fn row<T: serde::Serialize>(&self, table: Rows, key: u64, record: &T) -> Result<Row, LedgerError> {
        let bytes = encode(record).map_err(|error| store("make a row for", &self.file, error))?;
        Ok((table, key, bytes))
    }

    fn write(&self, rows: &[Row]) -> Result<(), LedgerError> {
        let failed = |error: redb::Error| store("write", &self.file, error);
        let transaction = self.database.begin_write().map_err(|error| failed(error.into()))?;
        for (table, key, bytes) in rows {
            let mut open = transaction.open_table(*table).map_err(|error| failed(error.into()))?;
            let before = open
                .insert(key, bytes.as_slice())
                .map_err(|error| failed(error.into()))?;
            if let Some(before) = before
                && before.value() != bytes
                && !may_replace(table, before.value(), bytes)
            {
                // The transaction is dropped, and with it all of its rows.
                return Err(LedgerError::Rewritten {
                    file: self.file.clone(),
                    table: table.name().to_owned(),
                    key: *key,
                });
            }
        }
        transaction.commit().map_err(|error| failed(error.into()))
    }

    /// Number of the newest generation; 0 for none.
    ///
    /// # Errors
    /// When the store fails or the row is of another version.
    pub fn last_generation(&self) -> Result<u64, LedgerError> {
        Ok(self
            .last::<Generation>(GENERATIONS, "generations")?
            .map_or(0, |(number, _)| number))
    }

    /// Everything that a run goes on from.
    ///
    /// # Errors
    /// When the store fails or a row is of another version.
    pub fn recorded(&self) -> Result<Recorded, LedgerError> {
        let generations = self.generations()?;
        let newest = generations.last().map_or(0, |generation| generation.stamp.term);
        let ended = self.last::<RunEnd>(ENDS, "ends")?.map(|(term, _)| term);
        let wish = self.last::<WishRow>(WISHES, "wishes")?.map(|(_, row)| row);
        let wish = wish.filter(|row| ended.is_none_or(|ended| row.term > ended));
        let farewells: Vec<FarewellRow> = self.all(FAREWELLS, "farewells")?;
        Ok(Recorded {
            is_ended: ended.is_some_and(|ended| ended >= newest),
            begun: self.all::<Begun>(BEGUN, "begun")?,
            rewinds: self.branches.rewinds().to_vec(),
            changes: self.all(CHANGES, "changes")?,
            answers: self.all(ANSWERS, "answers")?,
            plans: self.plans()?,
            committed: self.committed()?,
            urgent: self
                .last::<Urgent>(URGENT, "directives")?
                .map_or_else(Urgent::default, |(_, urgent)| urgent),
            wish: wish.map_or(Wish::Train, |row| row.wish),
            snapshots: self.snapshots()?,
            checkpoints: self.checkpoints()?,
            stored: self.stored_checkpoints()?,
            newest_validation: self.validations()?.last().map_or(0, |(step, _)| *step),
            farewells: farewells.into_iter().map(FarewellRow::into_parts).collect(),
            generations,
        })
    }

    /// The newest end that a term came to.
    ///
    /// # Errors
    /// When the store fails or a row is of another version.
    pub fn last_end(&self) -> Result<Option<RunEnd>, LedgerError> {
        Ok(self.last(ENDS, "ends")?.map(|(_, end)| end))
    }

    /// Every generation, in order; without their secrets, which are never written.
    ///
    /// # Errors
    /// When the store fails or a row is of another version.
    pub fn generations(&self) -> Result<Vec<Generation>, LedgerError> {
        self.all(GENERATIONS, "generations")
    }

    /// Every issued plan of the live branch, by step.
    ///
    /// # Errors
    /// When the store fails or a row is of another version.
    pub fn plans(&self) -> Result<Vec<Plan>, LedgerError> {
        let plans = self.of_the_live_branch(PLANS, "plans")?;
        Ok(plans.into_iter().map(|(_, plan)| plan).collect())
    }

    /// Every committed step of the live branch, in order.
    ///
    /// # Errors
    /// When the store fails or a row is of another version.
    pub fn committed(&self) -> Result<Vec<Commit>, LedgerError> {
        let committed = self.of_the_live_branch(COMMITTED, "committed")?;
        Ok(committed.into_iter().map(|(_, commit)| commit).collect())
    }

    /// What was committed on any branch, in the order in which it was.
    ///
    /// # Errors
    /// When the store fails or a row is of another version.
    pub fn history(&self) -> Result<Vec<Entry>, LedgerError> {
        let mut entries = Vec::new();
        let mut rewinds = self.branches.rewinds().iter().cloned().peekable();
        let mut validations = self
            .all_with_keys::<Validation>(VALIDATIONS, "validations")?
            .into_iter()
            .peekable();
        for (key, commit) in self.all_with_keys::<Commit>(COMMITTED, "committed")? {
            let (branch, _) = Branches::of_key(key);
            while let Some(rewind) = rewinds.next_if(|rewind| rewind.number <= branch) {
                entries.push(Entry::Rewound(rewind));
            }
            entries.push(Entry::Step(Box::new(commit)));
            while let Some((of, validation)) = validations.next_if(|(of, _)| *of <= key) {
                let (_, step) = Branches::of_key(of);
                entries.push(Entry::Validation(step, validation));
            }
        }
        entries.extend(rewinds.map(Entry::Rewound));
        Ok(entries)
    }

    /// Every validation of the live branch with its step, in order.
    ///
    /// # Errors
    /// When the store fails or a row is of another version.
    pub fn validations(&self) -> Result<Vec<(u64, Validation)>, LedgerError> {
        self.of_the_live_branch(VALIDATIONS, "validations")
    }

    /// The parts of every snapshot that stood, by step.
    ///
    /// # Errors
    /// When the store fails or a row is of another version.
    pub fn snapshots(&self) -> Result<Vec<Vec<Part>>, LedgerError> {
        self.all(SNAPSHOTS, "snapshots")
    }

    /// Every checkpoint of the live branch that was committed and not refused since, in the order of their commits.
    ///
    /// # Errors
    /// When the store fails or a row is of another version.
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>, LedgerError> {
        let mut live = self.stored_checkpoints()?;
        live.retain(|checkpoint| self.branches.is_live(checkpoint.step, checkpoint.generation));
        Ok(live)
    }

    /// Every checkpoint of any branch that was committed and not refused since, in the order of their commits.
    fn stored_checkpoints(&self) -> Result<Vec<Checkpoint>, LedgerError> {
        let mut good: Vec<Checkpoint> = Vec::new();
        for row in self.all::<CheckpointRow>(CHECKPOINTS, "checkpoints")? {
            match row.refused {
                None => good.push(row.checkpoint),
                Some(_) => good.retain(|known| *known != row.checkpoint),
            }
        }
        Ok(good)
    }

    /// Every decision with its reason, in order.
    ///
    /// # Errors
    /// When the store fails or a row is of another version.
    pub fn decisions(&self) -> Result<Vec<DecisionRow>, LedgerError> {
        self.all(DECISIONS, "decisions")
    }

    /// The end of every term that came to one.
    ///
    /// # Errors
    /// When the store fails or a row is of another version.
    pub fn ends(&self) -> Result<Vec<RunEnd>, LedgerError> {
        self.all(ENDS, "ends")
    }

    fn last_key(&self, rows: Rows) -> Result<Option<u64>, LedgerError> {
        let failed = |error: redb::Error| store("read", &self.file, error);
        let transaction = self.database.begin_read().map_err(|error| failed(error.into()))?;
        let open = transaction.open_table(rows).map_err(|error| failed(error.into()))?;
        let last = open.last().map_err(|error| failed(error.into()))?;
        Ok(last.map(|(key, _)| key.value()))
    }

    fn last<T: serde::de::DeserializeOwned>(
        &self,
        rows: Rows,
        table: &'static str,
    ) -> Result<Option<(u64, T)>, LedgerError> {
        let failed = |error: redb::Error| store("read", &self.file, error);
        let transaction = self.database.begin_read().map_err(|error| failed(error.into()))?;
        let open = transaction.open_table(rows).map_err(|error| failed(error.into()))?;
        let Some((key, value)) = open.last().map_err(|error| failed(error.into()))? else {
            return Ok(None);
        };
        Ok(Some((
            key.value(),
            decode(&self.file, table, key.value(), value.value())?,
        )))
    }

    /// The rows of a table of steps that are of the live branch, by step.
    fn of_the_live_branch<T: serde::de::DeserializeOwned>(
        &self,
        rows: Rows,
        table: &'static str,
    ) -> Result<Vec<(u64, T)>, LedgerError> {
        let rows = self.all_with_keys(rows, table)?.into_iter();
        let live = rows.filter(|(key, _)| self.branches.has(*key));
        let mut live: Vec<(u64, T)> = live.map(|(key, value)| (Branches::of_key(key).1, value)).collect();
        live.sort_by_key(|(step, _)| *step);
        Ok(live)
    }

    fn all<T: serde::de::DeserializeOwned>(&self, rows: Rows, table: &'static str) -> Result<Vec<T>, LedgerError> {
        let with_keys = self.all_with_keys(rows, table)?;
        Ok(with_keys.into_iter().map(|(_, value)| value).collect())
    }

    fn all_with_keys<T: serde::de::DeserializeOwned>(
        &self,
        rows: Rows,
        table: &'static str,
    ) -> Result<Vec<(u64, T)>, LedgerError> {
        let failed = |error: redb::Error| store("read", &self.file, error);
        let transaction = self.database.begin_read().map_err(|error| failed(error.into()))?;
        let open = transaction.open_table(rows).map_err(|error| failed(error.into()))?;
        let mut values = Vec::new();
        for row in open.iter().map_err(|error| failed(error.into()))? {
            let (key, value) = row.map_err(|error| failed(error.into()))?;
            values.push((key.value(), decode(&self.file, table, key.value(), value.value())?));
        }
        Ok(values)
    }
}

/// Whether a row may take the place of another one. Only a snapshot may: that of the same step which a later generation
/// made.
fn may_replace(table: &Rows, before: &[u8], after: &[u8]) -> bool {
    let generation = |bytes: &[u8]| rows::parts_of(bytes)?.first().map(|part| part.generation);
    table.name() == SNAPSHOTS.name() && generation(before) < generation(after)
}

fn store(what: &'static str, path: &Path, cause: impl std::fmt::Display) -> LedgerError {
    LedgerError::Store {
        what,
        path: path.to_owned(),
        cause: cause.to_string(),
    }
}

pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |time| time.as_secs_f64())
}

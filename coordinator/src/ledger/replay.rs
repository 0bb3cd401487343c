//! The decisions of a run made again, from the events in its ledger.
//!
//! Way of data: for each term, [`FactsRow`] → a machine ([`machine_of`]) → every event of the term in its order, at its
//! time → the records that the machine wants to be durable → a ledger in memory, written by the same code as the one
//! on disk → each row is compared with that on disk, byte for byte. Two things are taken from the disk: when a
//! decision was written down, which the machine does not know, and which process a term was. Who called is no decision of
//! the machine, and is not compared.

use lockstep_config::RunConfig;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, TableHandle};

use crate::branches::Branches;
use crate::ledger::rows::{encode, record_of, typed_record_of};
use crate::ledger::{
    CALLS, DECISIONS, DecisionRow, EVENTS, FACTS, FactsRow, Heard, Ledger, LedgerError, RUN, Reader, Row, RunRow,
    SNAPSHOTS, TABLES, TERMS, TermRow, rows, store,
};
use crate::plan::Planner;
use crate::run::{Directive, Record, Run, RunFacts};

/// How much of a record a sentence shows.
const SHOWN: usize = 400;

/// What came of a replay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replay {
    /// The terms whose decisions were made again.
    pub terms: Vec<u64>,
    /// Events that were fed to the machine.
    pub events: u64,
    /// Rows that came out of it and are the same in the ledger.
    pub rows: u64,
    /// The first term that could not be replayed, if there is one; nothing after it was.
    pub unreplayed: Option<Unreplayed>,
    /// The first difference, if there is one.
    pub difference: Option<Difference>,
}

/// A term that was not replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreplayed {
    /// The term.
    pub term: u64,
    /// One sentence.
    pub reason: String,
}

/// Where ledger and replay part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The number of the event; none for a row that no event leads to.
    pub event: Option<u64>,
    /// One sentence.
    pub reason: String,
}

/// Makes every decision of a ledger again.
///
/// # Errors
/// When the store fails or the ledger holds no run that can be read.
pub fn replay(reader: &Reader) -> Result<Replay, LedgerError> {
    let failed = |cause: String| store("replay", reader.file(), cause);
    let row = reader.row(RUN.name(), 0)?;
    let row = row.ok_or_else(|| failed("the table run is empty".to_owned()))?;
    let run: RunRow = typed_record_of(&row).map_err(failed)?;
    let config =
        RunConfig::parse(&run.config_toml, "the ledger's config", &[]).map_err(|error| failed(error.to_string()))?;
    let planner = Planner::new(&config, run.training_samples).map_err(|error| failed(error.to_string()))?;
    let mut terms = Vec::new();
    reader.each(TERMS.name(), |term, _| terms.push(term))?;
    let mut replaying = Replaying {
        reader,
        planner,
        produced: Ledger::in_memory(run)?,
        machine: None,
        terms: terms.into_iter().peekable(),
        result: Replay::default(),
    };
    let mut error = None;
    reader.each(EVENTS.name(), |number, bytes| {
        if error.is_none()
            && !replaying.is_over()
            && let Err(cause) = replaying.event(number, bytes)
        {
            error = Some(cause);
        }
    })?;
    if let Some(error) = error {
        return Err(error);
    }
    while !replaying.is_over() && replaying.next_term()?.is_some() {}
    if !replaying.is_over() {
        replaying.find_surplus()?;
    }
    Ok(replaying.result)
}

/// The machine as it was when a term began. `before`: the ledger as the replay of the terms before has made it.
fn machine_of(facts: RunFacts, before: &Ledger) -> Result<Run, String> {
    let recorded = before.recorded().map_err(|error| error.to_string())?;
    Run::recovered(facts, recorded).map_err(|refusal| refusal.reason)
}

struct Replaying<'a> {
    reader: &'a Reader,
    planner: Planner,
    produced: Ledger,
    machine: Option<Run>,
    terms: std::iter::Peekable<std::vec::IntoIter<u64>>,
    result: Replay,
}

impl Replaying<'_> {
    fn is_over(&self) -> bool {
        self.result.difference.is_some() || self.result.unreplayed.is_some()
    }

    fn differs(&mut self, event: Option<u64>, reason: String) {
        self.result.difference.get_or_insert(Difference { event, reason });
    }

    /// Begins the next term, if there is one.
    fn next_term(&mut self) -> Result<Option<u64>, LedgerError> {
        let Some(term) = self.terms.next() else { return Ok(None) };
        let reader = self.reader;
        let row = |table: &str| reader.row(table, term);
        let machine = match (row(FACTS.name())?, row(TERMS.name())?) {
            (Some(facts), Some(row)) => typed_record_of::<TermRow>(&row).and_then(|row| {
                let facts = typed_record_of::<FactsRow>(&facts)?.facts(term, self.planner.clone());
                let machine = machine_of(facts, &self.produced)?;
                self.produced
                    .begin_term(term, &row)
                    .map_err(|error| error.to_string())?;
                Ok(machine)
            }),
            _ => Err(
                "its events were not recorded: coordinator.record_events was false, or an older build made it"
                    .to_owned(),
            ),
        };
        match machine {
            Ok(machine) => {
                self.machine = Some(machine);
                self.result.terms.push(term);
            }
            Err(reason) => self.result.unreplayed = Some(Unreplayed { term, reason }),
        }
        Ok(Some(term))
    }

    fn event(&mut self, number: u64, bytes: &[u8]) -> Result<(), LedgerError> {
        let heard = match Heard::of_row(bytes) {
            Ok(heard) => heard,
            Err(cause) => {
                self.differs(Some(number), format!("the event cannot be read: {cause}"));
                return Ok(());
            }
        };
        while self.result.terms.last() != Some(&heard.term) {
            let later = self.terms.peek().is_some_and(|term| *term <= heard.term);
            if !later {
                let reason = format!("the event is of term {}, which is not the one that goes on", heard.term);
                self.differs(Some(number), reason);
                return Ok(());
            }
            self.next_term()?;
            if self.is_over() {
                return Ok(());
            }
        }
        let Some(machine) = &mut self.machine else {
            return Ok(());
        };
        let what = heard.sentence();
        let decision = machine.step(heard.event, heard.at);
        self.result.events += 1;
        let records: Vec<Record> = decision
            .directives
            .into_iter()
            .filter_map(|directive| match directive {
                Directive::Persist(record) => Some(record),
                _ => None,
            })
            .collect();
        if records.is_empty() {
            return Ok(());
        }
        let produced = match self.produced.append_with_events(&records, Vec::new()) {
            Ok(produced) => produced,
            Err(LedgerError::Rewritten { table, key, .. }) => {
                let reason =
                    format!("after {what}, the replay changes row {key} of the table {table}, which it had made");
                self.differs(Some(number), reason);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for row in produced {
            self.compare(number, &what, row)?;
        }
        Ok(())
    }

    /// Compares a row of the replay with that in the ledger.
    fn compare(&mut self, number: u64, what: &str, (table, key, bytes): Row) -> Result<(), LedgerError> {
        let name = table.name();
        let Some(there) = self.reader.row(name, key)? else {
            let reason = format!(
                "after {what}, the replay makes row {key} of the table {name}, which the ledger lacks: {}",
                shown(&bytes)
            );
            self.differs(Some(number), reason);
            return Ok(());
        };
        let bytes = match name == DECISIONS.name() {
            true => at_the_time_of(&bytes, &there).unwrap_or(bytes),
            false => bytes,
        };
        // The snapshot of a later generation may have taken its place; what is there in the end is compared in the end.
        let is_replaced = name == SNAPSHOTS.name() && rows_generation(&there) > rows_generation(&bytes);
        if bytes != there && !is_replaced {
            let (ours, theirs) = (shown(&bytes), shown(&there));
            let reason = format!(
                "after {what}, row {key} of the table {name} is {ours} in the replay, and {theirs} in the ledger"
            );
            self.differs(Some(number), reason);
            return Ok(());
        }
        self.result.rows += 1;
        Ok(())
    }

    /// Looks for rows that no event leads to, once every term was replayed.
    fn find_surplus(&mut self) -> Result<(), LedgerError> {
        for table in self.reader.tables()?.into_iter().map(|table| table.name) {
            if [RUN, TERMS, FACTS, EVENTS, CALLS]
                .iter()
                .any(|kept| kept.name() == table)
            {
                continue;
            }
            let mut difference = None;
            let produced = &self.produced;
            self.reader.each(&table, |key, there| {
                if difference.is_some() {
                    return;
                }
                match produced.raw_row(&table, key) {
                    None => {
                        difference = Some(format!(
                            "no event leads to row {key} of the table {table}: {}",
                            shown(there)
                        ));
                    }
                    Some(ours) if table == SNAPSHOTS.name() && ours != there => {
                        let (ours, theirs) = (shown(&ours), shown(there));
                        difference = Some(format!(
                            "row {key} of the table {table} is {ours} in the replay, and {theirs} in the ledger"
                        ));
                    }
                    Some(_) => {}
                }
            })?;
            if let Some(reason) = difference {
                self.differs(None, reason);
                return Ok(());
            }
        }
        Ok(())
    }
}

fn rows_generation(snapshot: &[u8]) -> Option<u64> {
    rows::parts_of(snapshot)?.first().map(|part| part.generation)
}

/// The row of a decision with the time that the ledger has for it.
fn at_the_time_of(decision: &[u8], there: &[u8]) -> Option<Vec<u8>> {
    let decision: DecisionRow = typed_record_of(decision).ok()?;
    let there: DecisionRow = typed_record_of(there).ok()?;
    encode(&DecisionRow {
        at: there.at,
        ..decision
    })
    .ok()
}

/// The record of a row, for a sentence.
fn shown(bytes: &[u8]) -> String {
    let text = match record_of(bytes) {
        Ok(record) => record.to_string(),
        Err(cause) => format!("a row that cannot be read ({cause})"),
    };
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

impl Ledger {
    /// A ledger that is nowhere but in memory, before its first term.
    fn in_memory(run: RunRow) -> Result<Ledger, LedgerError> {
        let file = std::path::PathBuf::from("the replay's own ledger");
        let database = Database::builder()
            .create_with_backend(InMemoryBackend::new())
            .map_err(|error| store("make", &file, error))?;
        let ledger = Ledger {
            database,
            file,
            run,
            term: 0,
            secret: [0; 32],
            branches: Branches::default(),
            next_decision: 0,
            next_wish: 0,
            next_checkpoint: 0,
            next_answer: 0,
            next_event: 1,
            next_call: 0,
            _lock: None,
        };
        ledger.make_tables()?;
        Ok(ledger)
    }

    fn begin_term(&mut self, term: u64, row: &TermRow) -> Result<(), LedgerError> {
        self.term = term;
        self.write(&[self.row(TERMS, term, row)?])
    }

    fn raw_row(&self, table: &str, key: u64) -> Option<Vec<u8>> {
        let table = TABLES.into_iter().find(|known| known.name() == table)?;
        let read = self.database.begin_read().ok()?;
        let open = read.open_table(table).ok()?;
        Some(open.get(key).ok()??.value().to_vec())
    }
}

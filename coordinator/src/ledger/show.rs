//! What a ledger holds, for people and programs.
//!
//! Way of data: [`show`] reads the tables that have few rows whole, and of plans and committed steps the first and the
//! last → [`Contents`], which is printed or written as JSON; [`rows_of`] gives every row of one table, as JSON.

use lockstep_proto::domain::{Generation, RunEnd, Validation};
use redb::TableHandle;
use serde::Serialize;
use serde_json::{Value, json};

use crate::branches::{Branches, Rewind};
use crate::changes::Change;
use crate::ledger::rows::{parts_of, record_of, typed_record_of};
use crate::ledger::{
    CALLS, CHANGES, COMMITTED, DECISIONS, ENDS, EVENTS, FACTS, GENERATIONS, PLANS, REWINDS, RUN, SNAPSHOTS, TERMS,
    VALIDATIONS,
};
use crate::ledger::{CallRow, DecisionRow, Heard, LedgerError, Reader, RunRow, TableSize, TermRow, store};
use crate::run::Commit;

/// What a ledger holds.
#[derive(Clone, Debug, Serialize)]
pub struct Contents {
    /// Whose it is.
    pub run: RunRow,
    /// Every life of the coordinator, by term.
    pub terms: Vec<Keyed<TermRow>>,
    /// The terms whose events are recorded.
    pub recorded_terms: Vec<u64>,
    /// Every formation of members into ranks.
    pub generations: Vec<Generation>,
    /// Every branch that was closed. What follows is of the live one.
    pub rewinds: Vec<Rewind>,
    /// What operators have changed, in order.
    pub changes: Vec<Change>,
    /// The steps for which plans were issued: the first, and the last.
    pub issued: Option<(u64, u64)>,
    /// The first committed step and the last.
    pub committed: Option<Committed>,
    /// Every snapshot that stood: its step, and the generation whose ranks made its parts.
    pub snapshots: Vec<(u64, u64)>,
    /// Every validation, by step.
    pub validations: Vec<Keyed<Validation>>,
    /// Every decision with its reason, in order.
    pub decisions: Vec<DecisionRow>,
    /// Every order, and the calls that were refused, in order.
    pub calls: Vec<CallRow>,
    /// The end of every term that came to one, by term.
    pub ends: Vec<Keyed<RunEnd>>,
    /// How large it is.
    pub size: Size,
}

/// A row with its key.
#[derive(Clone, Debug, Serialize)]
pub struct Keyed<T> {
    /// The key: a term or a step.
    pub key: u64,
    /// The record.
    pub record: T,
}

/// The committed steps, in short.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Committed {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// Loss of the last one, nats a token.
    pub loss: f64,
    /// Hash of the parameters after it, in hex.
    pub parameter_hash: String,
    /// Samples that all of them consumed.
    pub samples: u64,
    /// Counted tokens of all of them.
    pub tokens: u64,
}

/// How large a ledger is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Size {
    /// Bytes of the file. The store keeps free pages in it, at least a MiB.
    pub file_bytes: u64,
    /// Bytes of keys and values.
    pub row_bytes: u64,
    /// Bytes of keys and values by committed step, one-off rows included; none before the first.
    pub row_bytes_per_step: Option<f64>,
    /// Of these, bytes of events.
    pub event_bytes_per_step: Option<f64>,
    /// The tables.
    pub tables: Vec<TableSize>,
}

/// What the ledger holds.
///
/// # Errors
/// When the store fails or a row cannot be read; the row is named.
pub fn show(reader: &Reader) -> Result<Contents, LedgerError> {
    let run = all::<RunRow>(reader, RUN.name())?.into_iter().next();
    let run = run.ok_or_else(|| store("read", reader.file(), "the table run is empty"))?;
    let records = |keyed: Vec<Keyed<DecisionRow>>| keyed.into_iter().map(|row| row.record).collect();
    let (mut recorded_terms, mut snapshots) = (Vec::new(), Vec::new());
    reader.each(FACTS.name(), |term, _| recorded_terms.push(term))?;
    reader.each(SNAPSHOTS.name(), |step, bytes| {
        let generation = parts_of(bytes).and_then(|parts| parts.first().map(|part| part.generation));
        snapshots.push((Branches::of_key(step).1, generation.unwrap_or(0)));
    })?;
    let rewinds: Vec<Rewind> = all(reader, REWINDS.name())?.into_iter().map(|row| row.record).collect();
    let branches = Branches::of(rewinds);
    let committed = match live_steps(reader, COMMITTED.name(), &branches)? {
        Some((first, last)) => {
            let commit: Commit = one(reader, COMMITTED.name(), branches.key(last))?;
            Some(Committed {
                first,
                last,
                loss: commit.metrics.loss,
                parameter_hash: blake3::Hash::from_bytes(commit.parameter_hash).to_hex().to_string(),
                samples: commit.samples,
                tokens: commit.tokens,
            })
        }
        None => None,
    };
    let mut validations = all(reader, VALIDATIONS.name())?;
    validations.retain(|row| branches.has(row.key));
    for row in &mut validations {
        row.key = Branches::of_key(row.key).1;
    }
    validations.sort_by_key(|row| row.key);
    Ok(Contents {
        rewinds: branches.rewinds().to_vec(),
        changes: all(reader, CHANGES.name())?.into_iter().map(|row| row.record).collect(),
        run: run.record,
        terms: all(reader, TERMS.name())?,
        recorded_terms,
        generations: all(reader, GENERATIONS.name())?
            .into_iter()
            .map(|row| row.record)
            .collect(),
        issued: live_steps(reader, PLANS.name(), &branches)?,
        committed,
        snapshots,
        validations,
        decisions: records(all(reader, DECISIONS.name())?),
        calls: all(reader, CALLS.name())?.into_iter().map(|row| row.record).collect(),
        ends: all(reader, ENDS.name())?,
        size: size(reader)?,
    })
}

/// The first and the last step of the live branch in a table of steps.
fn live_steps(reader: &Reader, table: &str, branches: &Branches) -> Result<Option<(u64, u64)>, LedgerError> {
    let Some((first, last)) = reader.ends_of(table)? else {
        return Ok(None);
    };
    let (branch, step) = Branches::of_key(last);
    // Nothing may have come since the last rewind.
    let last = match branch == branches.newest() {
        true => step,
        false => branches.begins_after(branches.newest()),
    };
    Ok((last > 0).then(|| (Branches::of_key(first).1, last)))
}

fn size(reader: &Reader) -> Result<Size, LedgerError> {
    let tables = reader.tables()?;
    let of = |name: &str| tables.iter().find(|table| table.name == name);
    let row_bytes = tables.iter().map(|table| table.bytes).sum();
    let steps = of(COMMITTED.name()).map_or(0, |table| table.rows);
    let per_step = |bytes: u64| (steps > 0).then(|| bytes as f64 / steps as f64);
    Ok(Size {
        file_bytes: reader.file_bytes(),
        row_bytes,
        row_bytes_per_step: per_step(row_bytes),
        event_bytes_per_step: per_step(of(EVENTS.name()).map_or(0, |table| table.bytes)),
        tables,
    })
}

/// Shows every row of a table as JSON, hashes in hex, in the order of keys.
///
/// # Errors
/// When there is no such table (those that are there are named), the store fails, or a row cannot be read.
pub fn rows_of(reader: &Reader, table: &str, mut show: impl FnMut(u64, Value)) -> Result<(), LedgerError> {
    let names: Vec<String> = reader.tables()?.into_iter().map(|table| table.name).collect();
    if !names.iter().any(|name| name == table) {
        let cause = format!("it has no table {table}; its tables are {}", names.join(", "));
        return Err(store("show a table of", reader.file(), cause));
    }
    let mut broken = None;
    reader.each(table, |key, bytes| {
        let record = match table == EVENTS.name() {
            true => Heard::of_row(bytes).map(|heard| {
                let at = heard.at.as_secs_f64();
                json!({ "term": heard.term, "at": at, "event": heard.name(), "what": heard.sentence() })
            }),
            false => record_of(bytes),
        };
        match record {
            Ok(mut record) => {
                hashes_in_hex(&mut record);
                show(key, record);
            }
            Err(cause) => {
                broken.get_or_insert_with(|| unreadable(reader, table, key, &cause));
            }
        }
    })?;
    broken.map_or(Ok(()), Err)
}

/// Arrays of 32 bytes are hashes; people and programs compare them as hex.
fn hashes_in_hex(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(hashes_in_hex),
        Value::Array(values) => {
            let bytes: Option<Vec<u8>> = values
                .iter()
                .map(|value| value.as_u64().and_then(|number| u8::try_from(number).ok()))
                .collect();
            match bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) {
                Some(hash) => *value = Value::String(blake3::Hash::from_bytes(hash).to_hex().to_string()),
                None => values.iter_mut().for_each(hashes_in_hex),
            }
        }
        _ => {}
    }
}

pub(super) fn all<T: serde::de::DeserializeOwned>(reader: &Reader, table: &str) -> Result<Vec<Keyed<T>>, LedgerError> {
    let (mut rows, mut broken) = (Vec::new(), None);
    reader.each(table, |key, bytes| match typed_record_of(bytes) {
        Ok(record) => rows.push(Keyed { key, record }),
        Err(cause) => {
            broken.get_or_insert_with(|| unreadable(reader, table, key, &cause));
        }
    })?;
    broken.map_or(Ok(rows), Err)
}

fn one<T: serde::de::DeserializeOwned>(reader: &Reader, table: &str, key: u64) -> Result<T, LedgerError> {
    let row = reader.row(table, key)?.unwrap_or_default();
    typed_record_of(&row).map_err(|cause| unreadable(reader, table, key, &cause))
}

pub(super) fn unreadable(reader: &Reader, table: &str, key: u64, cause: &str) -> LedgerError {
    let cause = format!("row {key} of the table {table} cannot be read: {cause}");
    store("show", reader.file(), cause)
}

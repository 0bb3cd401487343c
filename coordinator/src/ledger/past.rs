//! What a run has recorded, as a page shows it, from a ledger that is read.

use lockstep_proto::domain::{Generation, Plan, RunEnd, Validation};
use redb::TableHandle;

use crate::branches::{Branches, Rewind};
use crate::ledger::rows::typed_record_of;
use crate::ledger::show::{all, unreadable};
use crate::ledger::{
    COMMITTED, DECISIONS, DecisionRow, ENDS, Entry, GENERATIONS, LedgerError, PLANS, REWINDS, RUN, Reader, RunRow,
    TERMS, TermRow, VALIDATIONS, store,
};
use crate::run::Commit;

/// A run so far.
#[derive(Clone, Debug)]
pub(crate) struct Past {
    pub(crate) run: RunRow,
    /// What was committed on any branch, in order.
    pub(crate) entries: Vec<Entry>,
    pub(crate) generations: Vec<Generation>,
    pub(crate) decisions: Vec<DecisionRow>,
    /// How the newest term ended, if it has.
    pub(crate) end: Option<RunEnd>,
    /// The last step of the run, where its plan was issued.
    pub(crate) last_planned: Option<u64>,
}

/// Reads it.
///
/// # Errors
/// When the store fails or a row cannot be read; the row is named.
pub(crate) fn past(reader: &Reader) -> Result<Past, LedgerError> {
    let run = all::<RunRow>(reader, RUN.name())?.into_iter().next();
    let run = run.ok_or_else(|| store("read", reader.file(), "the table run is empty"))?;
    let rewinds: Vec<Rewind> = all(reader, REWINDS.name())?.into_iter().map(|row| row.record).collect();
    let newest_term = all::<TermRow>(reader, TERMS.name())?.last().map(|row| row.key);
    let ends = all::<RunEnd>(reader, ENDS.name())?;
    let last_planned = match reader.ends_of(PLANS.name())? {
        Some((_, key)) => reader
            .row(PLANS.name(), key)?
            .and_then(|bytes| typed_record_of::<Plan>(&bytes).ok())
            .filter(|plan| plan.last)
            .map(|plan| plan.step),
        None => None,
    };
    Ok(Past {
        run: run.record,
        entries: entries(reader, rewinds)?,
        generations: all(reader, GENERATIONS.name())?
            .into_iter()
            .map(|row| row.record)
            .collect(),
        decisions: all(reader, DECISIONS.name())?
            .into_iter()
            .map(|row| row.record)
            .collect(),
        end: ends
            .into_iter()
            .rfind(|row| Some(row.key) == newest_term)
            .map(|row| row.record),
        last_planned,
    })
}

/// In the order of [`Ledger::history`](crate::ledger::Ledger::history).
fn entries(reader: &Reader, rewinds: Vec<Rewind>) -> Result<Vec<Entry>, LedgerError> {
    let mut entries = Vec::new();
    let mut rewinds = rewinds.into_iter().peekable();
    let mut validations = all::<Validation>(reader, VALIDATIONS.name())?.into_iter().peekable();
    let mut broken = None;
    reader.each(COMMITTED.name(), |key, bytes| {
        let commit: Commit = match typed_record_of(bytes) {
            Ok(commit) => commit,
            Err(cause) => {
                broken.get_or_insert_with(|| unreadable(reader, COMMITTED.name(), key, &cause));
                return;
            }
        };
        let (branch, _) = Branches::of_key(key);
        while let Some(rewind) = rewinds.next_if(|rewind| rewind.number <= branch) {
            entries.push(Entry::Rewound(rewind));
        }
        entries.push(Entry::Step(Box::new(commit)));
        while let Some(row) = validations.next_if(|row| row.key <= key) {
            entries.push(Entry::Validation(Branches::of_key(row.key).1, row.record));
        }
    })?;
    if let Some(broken) = broken {
        return Err(broken);
    }
    entries.extend(rewinds.map(Entry::Rewound));
    Ok(entries)
}

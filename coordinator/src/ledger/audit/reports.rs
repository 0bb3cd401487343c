//! What the events prove of the steps: that every rank had reported one equal hash.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_proto::domain::{Outcome, StepReport};
use redb::TableHandle;

use super::{Proof, Tables, row};
use crate::branches::Branches;
use crate::ledger::{EVENTS, Heard, LedgerError, Reader};
use crate::run::Event;

/// The events, in short.
pub(super) struct Events {
    order: Proof,
    count: u64,
    /// Ranks that reported a committed step, by its key, with its hash, in the generation that committed it.
    reported: BTreeMap<u64, BTreeSet<u32>>,
    /// Reports with the committed hash by later generations, which made the step again.
    again: u64,
    /// Events, with the key of their step, that reported another hash than the committed one.
    differing: Vec<(u64, u64)>,
}

/// Where the reading of events stands.
struct Place {
    number: u64,
    term: u64,
    at: Duration,
}

/// Reads the events. `readable` gets what cannot be read.
pub(super) fn load(reader: &Reader, tables: &Tables, mut readable: Proof) -> Result<(Events, Proof), LedgerError> {
    let mut events = Events {
        order: Proof::of("events are whole and in order"),
        count: 0,
        reported: BTreeMap::new(),
        again: 0,
        differing: Vec::new(),
    };
    let mut place = Place {
        number: 0,
        term: 0,
        at: Duration::ZERO,
    };
    reader.each(EVENTS.name(), |number, bytes| {
        events.count += 1;
        events.order.holds(number == place.number + 1, || {
            format!(
                "row {number} of the table events comes after row {}: what was between them is missing",
                place.number
            )
        });
        place.number = number;
        match Heard::of_row(bytes) {
            Ok(heard) => events.note(&mut place, &heard, tables),
            Err(cause) => readable.broken(format!("row {number} of the table events cannot be read: {cause}")),
        }
    })?;
    Ok((events, readable))
}

impl Events {
    fn note(&mut self, place: &mut Place, heard: &Heard, tables: &Tables) {
        let number = place.number;
        if heard.term > place.term {
            (place.term, place.at) = (heard.term, Duration::ZERO);
        }
        self.order.holds(
            heard.term == place.term && tables.facts.contains_key(&heard.term),
            || {
                let term = heard.term;
                format!(
                    "row {number} of the table events is of term {term}, whose events are not recorded, or are over"
                )
            },
        );
        self.order.holds(heard.at >= place.at, || {
            format!("row {number} of the table events was heard before the row before it")
        });
        place.at = place.at.max(heard.at);
        if let Event::Report { report, .. } = &heard.event {
            self.report(number, report, tables);
        }
    }

    fn report(&mut self, number: u64, report: &StepReport, tables: &Tables) {
        // Whatever was closed later, it is a report of the branch that its generation made steps of.
        let key = tables.branches.at_generation(report.stamp.generation).key(report.step);
        let Some(step) = tables.committed.get(&key) else {
            return;
        };
        let has_made_it = report.stamp.generation == step.stamp.generation;
        match report.parameter_hash == step.parameter_hash {
            true if has_made_it => {
                self.reported.entry(key).or_default().insert(report.rank);
            }
            true => self.again += 1,
            false => self.differing.push((number, key)),
        }
    }
}

pub(super) fn proofs(tables: &Tables, events: Events) -> Vec<Proof> {
    let Events {
        order,
        count,
        mut reported,
        again,
        differing,
    } = events;
    let order = order.with(format!("{count} events"));
    let mut proof = Proof::of("every rank had reported each committed step with one equal hash");
    let (mut steps, mut reports) = (0_u64, 0_u64);
    for (key, step) in &tables.committed {
        if !tables.facts.contains_key(&step.stamp.term) {
            continue;
        }
        steps += 1;
        let ranks = reported.remove(key).unwrap_or_default();
        reports += ranks.len() as u64;
        proof.holds(ranks.iter().copied().eq(0..step.ranks), || {
            format!(
                "{} of the table committed says that {} ranks reported its hash, and in the events the ranks {ranks:?} did",
                row(*key),
                step.ranks
            )
        });
    }
    // A run that ended because of such a report has done what it should.
    let failed = |end: &&lockstep_proto::domain::RunEnd| matches!(end.outcome, Outcome::Failed { .. });
    if tables.ends.values().find(failed).is_none() {
        for (number, key) in differing {
            let (_, step) = Branches::of_key(key);
            proof.broken(format!(
                "row {number} of the table events reports another hash for step {step} than {} of the table committed has",
                row(key)
            ));
        }
    }
    let unrecorded = tables.committed.len() as u64 - steps;
    let mut figures = format!("{reports} reports of {steps} steps, and {again} of steps made again");
    if unrecorded > 0 {
        figures += &format!("; {unrecorded} steps are of terms whose events are not recorded");
    }
    vec![order, proof.with(figures)]
}

//! What the schedules have reached: how often each kind of event was decided on in each phase.
//!
//! Way of data: every decision → [`Coverage::note`] → the reports of the schedules → one table of all ([`Coverage::table`]),
//! and the pairs that are still to be seen ([`Coverage::unseen`]).

use crate::run::{Event, Phase, Wanted};

/// Every phase, in the order of the enum.
const PHASES: [Phase; 11] = [
    Phase::WaitingForMembers,
    Phase::WaitingForReturn,
    Phase::WaitingForCommId,
    Phase::WaitingForReady,
    Phase::Training,
    Phase::Paused,
    Phase::Regrouping,
    Phase::Stopping,
    Phase::Finishing,
    Phase::Failing,
    Phase::Ended,
];

/// Every kind of event, in the order of the enum; of orders, two that stop or turn the run have kinds of their own.
const KINDS: [&str; 23] = [
    "join",
    "return",
    "comm-id",
    "ready",
    "progress",
    "report",
    "holds",
    "stopped",
    "wrote",
    "commissioned",
    "leaving",
    "finished",
    "lost",
    "lapsed",
    "tick",
    "pause",
    "resume",
    "checkpoint",
    "stop",
    "abandon",
    "ordered",
    "stop-after",
    "rewind",
];

/// What cannot be: only ranks in the collectives of a generation that is not waited for have leases.
const CANNOT_BE: [(Phase, &str); 3] = [
    (Phase::WaitingForMembers, "lapsed"),
    (Phase::WaitingForReturn, "lapsed"),
    (Phase::Failing, "lapsed"),
];

/// Kinds of events that must be decided on in every phase in which they can be.
pub(in crate::run) const IMPORTANT: [&str; 9] = [
    "join", "return", "ready", "report", "holds", "stopped", "finished", "lost", "tick",
];

/// How often each kind of event was decided on in each phase.
#[derive(Clone, Debug, Default)]
pub(in crate::run) struct Coverage {
    counts: [[u64; KINDS.len()]; PHASES.len()],
}

fn kind_of(event: &Event) -> usize {
    match event {
        Event::Join { .. } => 0,
        Event::Return { .. } => 1,
        Event::CommId { .. } => 2,
        Event::Ready { .. } => 3,
        Event::Progress { .. } => 4,
        Event::Report { .. } => 5,
        Event::Holds { .. } => 6,
        Event::Stopped { .. } => 7,
        Event::Wrote { .. } => 8,
        Event::Commissioned { .. } => 9,
        Event::Leaving { .. } => 10,
        Event::Finished { .. } => 11,
        Event::MemberLost { .. } => 12,
        Event::Lapsed { .. } => 13,
        Event::Tick => 14,
        Event::Pause => 15,
        Event::Resume => 16,
        Event::Checkpoint => 17,
        Event::Stop => 18,
        Event::Abandon => 19,
        Event::Ordered(order) => match &order.wanted {
            Wanted::Change(ask) if ask.stop_at.is_some() => 21,
            Wanted::Rewind { .. } => 22,
            _ => 20,
        },
    }
}

impl Coverage {
    pub(super) fn note(&mut self, phase: Phase, event: &Event) {
        self.counts[phase as usize][kind_of(event)] += 1;
    }

    /// Adds what another schedule has reached.
    pub(in crate::run) fn add(&mut self, other: &Coverage) {
        let pairs = self.counts.iter_mut().flatten().zip(other.counts.iter().flatten());
        pairs.for_each(|(count, more)| *count += more);
    }

    /// A line for each kind of event, a column for each phase.
    pub(in crate::run) fn table(&self) -> String {
        let mut table = format!("{:12}", "");
        for phase in PHASES {
            let name = phase.name().trim_start_matches("waiting-for-");
            table += &format!("{name:>11}");
        }
        for (kind, name) in KINDS.iter().enumerate() {
            table += &format!("\n{name:12}");
            for phase in PHASES {
                table += &match self.counts[phase as usize][kind] {
                    0 if CANNOT_BE.contains(&(phase, *name)) => format!("{:>11}", "-"),
                    count => format!("{count:>11}"),
                };
            }
        }
        table
    }

    /// Pairs that can be and were never seen, of all kinds of events or of those that `matter`.
    pub(in crate::run) fn unseen(&self, matter: Option<&[&str]>) -> Vec<String> {
        let pairs = PHASES
            .iter()
            .flat_map(|phase| KINDS.iter().enumerate().map(move |kind| (*phase, kind)));
        pairs
            .filter(|(phase, (kind, name))| {
                let matters = matter.is_none_or(|matter| matter.contains(name));
                matters && self.counts[*phase as usize][*kind] == 0 && !CANNOT_BE.contains(&(*phase, *name))
            })
            .map(|(phase, (_, name))| format!("{name} while {}", phase.name()))
            .collect()
    }
}

#[test]
fn every_phase_has_its_own_line() {
    for (index, phase) in PHASES.iter().enumerate() {
        assert_eq!(*phase as usize, index);
    }
}

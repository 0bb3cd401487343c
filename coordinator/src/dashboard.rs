//! The page of a run, `/metrics` and the alerts: what people see without a command of ours.
//!
//! Way of data: the run's thread tells the [`Board`] what it recorded ([`Board::recorded`]) and how the run stands
//! ([`Board::observed`]); the board keeps a bounded [`history::History`] and the [`Alerts`](crate::alerts::Alerts); [`routes`]
//! answers browsers from it, [`events`] sends them what is new, [`prometheus`] writes it for scrapers, [`webhook`] posts
//! alerts, and [`export`] puts it into one file. Readers ask for what is newer than what they have, so that nobody who lags
//! loses a row. Nothing here decides anything about the run.

mod answers;
mod events;
pub(crate) mod export;
mod history;
mod orders;
mod prometheus;
mod routes;
mod series;
mod story;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod webhook;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_config::AlertsSection;
use lockstep_proto::domain::{Alert, Generation, MemberStatus, Overview, PastDecision, RunEnd, RunStatus};
use tokio::sync::watch;

use crate::alerts::{Alerts, Glance, Kind};
pub use crate::dashboard::export::{ExportError, export};
use crate::dashboard::history::History;
pub(crate) use crate::dashboard::routes::router;
pub(crate) use crate::dashboard::story::Story;
use crate::ledger::Entry;
use crate::run::{Event, Record};

/// Decisions that are shown.
const MOST_DECISIONS: usize = 2000;
/// Generations that are shown.
const MOST_GENERATIONS: usize = 2000;
/// Decisions of an overview.
const FEW_DECISIONS: usize = 50;
/// Points of the losses in an overview.
const FEW_POINTS: usize = 300;
/// How often the free space of the disk is looked up.
const DISK_EVERY: std::time::Duration = std::time::Duration::from_secs(10);

/// What is known of a run from its beginning to now, for everybody who wants to see it.
#[derive(Debug)]
pub(crate) struct Board {
    name: String,
    run_id: String,
    lanes: u32,
    total_steps: u64,
    folder: PathBuf,
    shared: Mutex<Shared>,
    /// Rises when something changed.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Shared {
    history: History,
    alerts: Alerts,
    status: Option<RunStatus>,
    members: Vec<MemberStatus>,
    generations: Vec<Formed>,
    /// The decisions, and how many came before the first of them.
    decisions: Vec<PastDecision>,
    decisions_before: usize,
    end: Option<RunEnd>,
    free_mib: Option<u64>,
    certificate_until: Option<f64>,
}

/// A generation, and when it was formed where that is known.
#[derive(Clone, Debug)]
struct Formed {
    generation: Generation,
    at: Option<f64>,
}

impl Board {
    /// A board that shows what a run has recorded so far.
    pub(crate) fn new(story: Story, rules: AlertsSection) -> Board {
        let mut history = History::new();
        let mut alerts = Alerts::new(rules, now());
        for entry in &story.entries {
            match entry {
                Entry::Step(commit) => {
                    let step = commit.to_committed_step(story.total_steps);
                    alerts.learn(&step);
                    history.push(&step);
                }
                Entry::Validation(step, validation) => history.validated(*step, *validation),
                Entry::Rewound(rewind) => {
                    history.rewound(rewind);
                    alerts.rewound();
                }
            }
        }
        let formed = |generation| Formed { generation, at: None };
        let mut shared = Shared {
            history,
            alerts,
            status: None,
            members: Vec::new(),
            generations: story.generations.into_iter().map(formed).collect(),
            decisions: story.decisions,
            decisions_before: 0,
            end: story.end,
            free_mib: None,
            certificate_until: None,
        };
        shared.forget_old();
        Board {
            name: story.name,
            run_id: story.run_id,
            lanes: story.lanes,
            total_steps: story.total_steps,
            folder: story.folder,
            shared: Mutex::new(shared),
            changed: watch::Sender::new(0),
        }
    }

    /// The run has recorded something.
    pub(crate) fn recorded(&self, record: &Record) {
        let mut shared = self.lock();
        match record {
            Record::Committed(commit) => {
                let step = commit.to_committed_step(self.total_steps);
                shared.alerts.stepped(&step, now());
                shared.history.push(&step);
            }
            Record::Validation { step, validation } => shared.history.validated(*step, *validation),
            Record::Rewound(rewind) => {
                shared.history.rewound(rewind);
                shared.alerts.rewound();
            }
            Record::Generation(generation) => shared.generations.push(Formed {
                generation: generation.clone(),
                at: Some(now()),
            }),
            Record::Decision { reason } => shared.decisions.push(PastDecision {
                at: now(),
                reason: reason.clone(),
            }),
            Record::Checkpoint(_) => shared.alerts.went_well(Kind::Checkpoint, now()),
            _ => return,
        }
        shared.forget_old();
        drop(shared);
        self.tell();
    }

    /// Something was heard of a member that people should know of.
    pub(crate) fn heard(&self, event: &Event) {
        let (kind, about, sentence) = match event {
            Event::Commissioned {
                checkpoint,
                result: Err(why),
            } => {
                let sentence = format!("there is no checkpoint of step {}: {why}", checkpoint.step);
                (Kind::Checkpoint, String::new(), sentence)
            }
            Event::Wrote {
                step,
                written: Err(why),
                ..
            } => {
                let sentence = format!("a part of the checkpoint of step {step} could not be written: {why}");
                (Kind::Checkpoint, String::new(), sentence)
            }
            Event::Stopped {
                drifted: Some(rank),
                cause,
                ..
            } => {
                let cause = cause.as_deref().unwrap_or("its copy differs from its owner's");
                let sentence = format!("the memory of rank {rank} has changed: {cause}");
                (Kind::Drift, format!("rank {rank}"), sentence)
            }
            _ => return,
        };
        self.lock().alerts.happened(kind, &about, sentence, now());
        self.tell();
    }

    /// How the run stands, looked at twice a second and whenever it changes. `waited_for` is the rank that the others wait
    /// for, and where it is.
    pub(crate) fn observed(
        &self,
        status: RunStatus,
        members: Vec<MemberStatus>,
        waited_for: Option<&(String, String)>,
    ) {
        let mut shared = self.lock();
        let (free_mib, certificate_until) = (shared.free_mib, shared.certificate_until);
        shared.alerts.look(&Glance {
            now: now(),
            phase: &status.phase,
            reason: &status.reason,
            members: &members,
            waited_for,
            free_mib,
            certificate_until,
        });
        shared.status = Some(status);
        shared.members = members;
        drop(shared);
        self.tell();
    }

    /// The run is over.
    pub(crate) fn ended(&self, end: &RunEnd) {
        let mut shared = self.lock();
        shared.alerts.ended(now());
        shared.end = Some(end.clone());
        drop(shared);
        self.tell();
    }

    /// When the certificate that is served expires; none: there is none.
    pub(crate) fn certificate_expires(&self, at: Option<SystemTime>) {
        let seconds = at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        self.lock().certificate_until = seconds.map(|seconds| seconds.as_secs_f64());
    }

    /// Alerts that are raised.
    pub(crate) fn raised(&self) -> Vec<Alert> {
        self.lock().alerts.raised()
    }

    /// All that a page shows, at one moment; none before the run was looked at for the first time.
    pub(crate) fn overview(&self) -> Option<Overview> {
        let shared = self.lock();
        let few = shared.decisions.len().saturating_sub(FEW_DECISIONS);
        Some(Overview {
            status: shared.status.clone()?,
            members: shared.members.clone(),
            losses: shared.history.losses(FEW_POINTS),
            last: shared.history.last().cloned(),
            decisions: shared.decisions[few..].to_vec(),
            alerts: shared.alerts.all(),
        })
    }

    /// Looks after the free space of the run's disk for as long as it is polled.
    pub(crate) async fn watch_disk(&self) {
        loop {
            let folder = self.folder.clone();
            // A disk that does not answer holds a thread of its own, and nobody else.
            let looked = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&folder)).await;
            let free = looked.ok().and_then(Result::ok);
            self.lock().free_mib = free.map(|free| free.f_bavail.saturating_mul(free.f_frsize) >> 20);
            tokio::time::sleep(DISK_EVERY).await;
        }
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // What a thread that panicked left is still true of the run.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn forget_old(&mut self) {
        let old = self.decisions.len().saturating_sub(MOST_DECISIONS);
        self.decisions.drain(..old);
        self.decisions_before += old;
        let old = self.generations.len().saturating_sub(MOST_GENERATIONS);
        self.generations.drain(..old);
    }
}

/// Seconds of Unix time.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

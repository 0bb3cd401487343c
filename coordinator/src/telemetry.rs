//! A run as an OpenTelemetry trace, sent to a collector (`[telemetry]`).
//!
//! Way of data: the run's thread says what it carries out, each with its moment ([`Telemetry::show`]: [`Fact`]s of directives,
//! calls, the end), once it is durable → [`timeline`] makes spans of it, purely → those that are over go into a bounded
//! [`queue`] → [`export`], a task of the services' thread, posts them by OTLP. A collector that is away or slow holds up that
//! task alone: the queue then loses its oldest spans, and counts them. Nothing here decides anything about the run, and no
//! attribute has a secret in it: they are numbers, the ledger's sentences, and who called what.

mod export;
mod fact;
mod queue;
#[cfg(test)]
mod tests;
mod timeline;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_proto::domain::{Checkpoint, RunEnd};

use crate::ledger::{CallRow, RunRow};
pub(crate) use crate::telemetry::export::Exporter;
pub use crate::telemetry::export::TelemetryError;
pub(crate) use crate::telemetry::fact::Fact;
use crate::telemetry::queue::Queue;
use crate::telemetry::timeline::Timeline;

/// What the run's thread tells. When it is dropped, nothing comes any more.
#[derive(Debug)]
pub(crate) struct Telemetry {
    timeline: Timeline,
    queue: Arc<Queue>,
}

impl Telemetry {
    fn new(run: &RunRow, term: u64, queue: Arc<Queue>) -> Telemetry {
        Telemetry {
            timeline: Timeline::new(run, term, nanoseconds(SystemTime::now())),
            queue,
        }
    }

    /// What was decided, in its order, and the calls that it answered: all of it is durable now.
    pub(crate) fn show(&mut self, facts: Vec<(SystemTime, Fact)>, calls: &[CallRow]) {
        for (at, fact) in facts {
            self.timeline.happened(nanoseconds(at), fact);
        }
        let now = nanoseconds(SystemTime::now());
        for call in calls {
            self.timeline.called(now, call);
        }
        self.queue.push(self.timeline.take());
    }

    /// A checkpoint was not committed.
    pub(crate) fn not_committed(&mut self, checkpoint: &Checkpoint, reason: &str) {
        let (step, reason) = (checkpoint.step, Some(reason.to_owned()));
        let fact = Fact::Checkpointed { step, failure: reason };
        self.timeline.happened(nanoseconds(SystemTime::now()), fact);
        self.queue.push(self.timeline.take());
    }

    /// The run is over.
    pub(crate) fn ended(&mut self, end: &RunEnd) {
        self.timeline.ended(nanoseconds(SystemTime::now()), end);
        self.queue.push(self.timeline.take());
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Of Unix time.
fn nanoseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

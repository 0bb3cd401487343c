//! Where the time of a step goes, by phase. Every lap is also a sign of life.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_collective::communication::Shares;
use lockstep_session::Activity;

/// Adds up the milliseconds between laps, by phase.
pub(super) struct Clock {
    last: Instant,
    activity: Arc<Activity>,
    /// Milliseconds, in the order in which the phases came first.
    pub(super) phases: Vec<(String, f64)>,
}

impl Clock {
    pub(super) fn new(activity: Arc<Activity>) -> Clock {
        Clock {
            last: Instant::now(),
            activity,
            phases: Vec::new(),
        }
    }

    /// What went on beside this thread: the gathers of the step before and the reductions of this one, less what this thread
    /// waited for. The waits at gates count as forward; they are told apart here.
    pub(super) fn hidden(&mut self, shares: Shares) {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        self.add("gather_wait_ms", ms(shares.gather_waits));
        self.add(
            "hidden_reduce_ms",
            ms(shares.reducing.saturating_sub(shares.reduce_waits)),
        );
        self.add(
            "hidden_gather_ms",
            ms(shares.gathering.saturating_sub(shares.gather_waits)),
        );
    }

    /// The time since the last lap was of this phase.
    pub(super) fn lap(&mut self, phase: &str) {
        let now = Instant::now();
        let ms = (now - self.last).as_secs_f64() * 1e3;
        self.last = now;
        self.activity.moves();
        self.add(phase, ms);
    }

    fn add(&mut self, phase: &str, ms: f64) {
        match self.phases.iter_mut().find(|(name, _)| name == phase) {
            Some((_, total)) => *total += ms,
            None => self.phases.push((phase.to_owned(), ms)),
        }
    }
}

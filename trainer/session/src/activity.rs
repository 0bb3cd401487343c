//! What the device thread does, as it writes it down itself and the session's thread reads it from time to time.
//!
//! The counter rises only when the device thread does something, so that a thread of the session that lives on beside a
//! device thread that hangs renews nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lockstep_proto::domain::Progress;

#[derive(Debug, Default)]
struct Now {
    step: u64,
    phase: &'static str,
    waits: bool,
    counter: u64,
    /// Since when nothing has changed.
    since: Option<Instant>,
    /// The longest that nothing changed while it computed, by phase, in milliseconds.
    longest_ms: BTreeMap<&'static str, u64>,
}

/// The step, the phase of it, and whether it waits for others. Cheap enough for every phase of every step.
#[derive(Debug, Default)]
pub struct Activity(Mutex<Now>);

impl Activity {
    /// It begins a phase of `step`, in which it computes.
    pub fn begins(&self, step: u64, phase: &'static str) {
        self.note(|now| (now.step, now.phase, now.waits) = (step, phase, false));
    }

    /// It waits, in a phase of `step`, for the coordinator, for a store, or for whoever it meets: nothing is expected of it.
    pub fn waits_in(&self, step: u64, phase: &'static str) {
        self.note(|now| (now.step, now.phase, now.waits) = (step, phase, true));
    }

    /// It begins the next phase of the same step.
    pub fn goes_on(&self, phase: &'static str) {
        self.note(|now| (now.phase, now.waits) = (phase, false));
    }

    /// It has come further in the same phase.
    pub fn moves(&self) {
        self.note(|_| {});
    }

    /// It waits for other ranks, or does no longer.
    pub fn waits(&self, waits: bool) {
        self.note(|now| now.waits = waits);
    }

    /// What it does now.
    pub fn progress(&self) -> Progress {
        let now = self.lock();
        Progress {
            step: now.step,
            phase: now.phase.to_owned(),
            counter: now.counter,
            waits: now.waits,
            longest_ms: now.longest_ms.get(now.phase).copied(),
        }
    }

    fn note(&self, change: impl FnOnce(&mut Now)) {
        let mut now = self.lock();
        if let (Some(since), false) = (now.since, now.waits) {
            let took = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
            let phase = now.phase;
            let longest = now.longest_ms.entry(phase).or_default();
            *longest = took.max(*longest);
        }
        change(&mut now);
        now.counter += 1;
        now.since = Some(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_rises_with_everything_that_the_device_thread_does_and_with_nothing_else() {
        let activity = Activity::default();
        activity.begins(7, "forward");
        activity.waits(true);
        let seen = activity.progress();
        assert_eq!(
            (seen.step, &seen.phase[..], seen.counter, seen.waits),
            (7, "forward", 2, true)
        );
        assert_eq!(activity.progress(), seen, "looking changes nothing");
        assert_eq!(seen.longest_ms, Some(0), "it began, and went on to wait");
        activity.goes_on("backward");
        activity.moves();
        let seen = activity.progress();
        assert_eq!(
            (seen.step, &seen.phase[..], seen.counter, seen.waits),
            (7, "backward", 4, false)
        );
        activity.waits_in(8, "plan");
        assert_eq!(activity.progress().longest_ms, None, "it was never there before");
        assert!(activity.progress().waits);
    }
}

//! How a wait passes the time between two tests: awake at first, then asleep, and always within reach of an abort.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Awake for so long: longer than a small message takes, shorter than what a rank that shares the core would miss.
const SPIN: Duration = Duration::from_micros(20);
/// Then it gives its core away, for so long: the ranks of a machine are seldom further apart.
const YIELD: Duration = Duration::from_micros(200);
/// Then it sleeps, for so long each time.
const SLEEP: Duration = Duration::from_micros(20);

/// A wait for progress.
pub(crate) struct Wait {
    since: Option<Instant>,
}

impl Wait {
    pub(crate) fn new() -> Wait {
        Wait { since: None }
    }

    /// There was progress: what follows is a new wait.
    pub(crate) fn progress(&mut self) {
        self.since = None;
    }

    /// How long there has been no progress.
    pub(crate) fn waited(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// There was none. Passes a moment, and says whether the wait has become a long one, in which it pays to look around.
    pub(crate) fn pause(&mut self) -> bool {
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        if waited < SPIN {
            std::hint::spin_loop();
            return false;
        }
        if waited < YIELD {
            std::thread::yield_now();
        } else {
            sleep_exactly();
            std::thread::sleep(SLEEP);
        }
        true
    }
}

thread_local! {
    static EXACT: Cell<bool> = const { Cell::new(false) };
}

/// Linux rounds a sleep up by 50 µs unless the thread asks for better.
fn sleep_exactly() {
    if !EXACT.replace(true) {
        // Refused, sleeps are longer, and that is all.
        let _ = nix::sys::prctl::set_timerslack(1000);
    }
}

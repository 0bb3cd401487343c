//! Abort: one flag that every wait of a communicator looks at, and a bell that wakes those who sleep.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::error::Error;

/// Something that wakes the sleepers of this process; held weakly, so that an aborter keeps no mapping alive.
pub(crate) trait Bell: Send + Sync {
    /// Wakes every wait of this process that is asleep.
    fn ring(&self);
}

#[derive(Default)]
struct State {
    set: AtomicBool,
    reason: OnceLock<String>,
    bells: Mutex<Vec<Weak<dyn Bell>>>,
}

/// Ends every wait of the communicators it was given to, from any thread, for good. Make it before `connect`, so that
/// the connecting can be aborted too; one generation has one aborter.
#[derive(Clone, Default)]
pub struct Aborter {
    state: Arc<State>,
}

impl Aborter {
    /// An aborter that has not been used.
    pub fn new() -> Aborter {
        Aborter::default()
    }

    /// Makes every wait return [`Error::Aborted`] at once, and every later call too. The first reason stands.
    pub fn abort(&self, reason: &str) {
        // Only the first caller's reason is kept, and it is there before anyone can see the flag.
        let _ = self.state.reason.set(reason.to_owned());
        self.state.set.store(true, Ordering::Release);
        let bells = self.state.bells.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for bell in bells.iter().filter_map(Weak::upgrade) {
            bell.ring();
        }
    }

    /// Whether somebody has aborted.
    pub fn is_aborted(&self) -> bool {
        self.state.set.load(Ordering::Relaxed)
    }

    /// # Errors
    /// [`Error::Aborted`], when somebody has aborted.
    pub fn check(&self) -> Result<(), Error> {
        if !self.state.set.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::Aborted {
            reason: self.state.reason.get().cloned().unwrap_or_default(),
        })
    }

    /// Has `bell` rung on abort, for as long as it lives.
    pub(crate) fn add_bell(&self, bell: Weak<dyn Bell>) {
        let mut bells = self.state.bells.lock().unwrap_or_else(PoisonError::into_inner);
        bells.retain(|bell| bell.strong_count() > 0);
        bells.push(bell);
    }
}

//! The signal that tells every waiting thread of the trainer that the generation is over.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Callback = Box<dyn Fn() + Send>;

/// Set once a generation, with a sentence, when the coordinator pushes an abort or the stream breaks for good.
#[derive(Clone, Default)]
pub struct AbortSignal {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    set: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    reason: Option<String>,
    callbacks: Vec<Callback>,
}

impl AbortSignal {
    /// Whether it is set. One atomic load.
    pub fn is_set(&self) -> bool {
        self.shared.set.load(Ordering::Acquire)
    }

    /// The sentence that it was set with.
    pub fn reason(&self) -> Option<String> {
        self.lock().reason.clone()
    }

    /// Calls `callback` when the signal is set, at once if it is set already. It runs on the session's thread and
    /// must not block.
    pub fn on_abort(&self, callback: Callback) {
        let mut inner = self.lock();
        if inner.reason.is_some() {
            drop(inner);
            callback();
        } else {
            inner.callbacks.push(callback);
        }
    }

    /// Sets it; the first reason stays.
    pub(crate) fn set(&self, reason: &str) {
        let callbacks = {
            let mut inner = self.lock();
            if inner.reason.is_some() {
                return;
            }
            inner.reason = Some(reason.to_owned());
            self.shared.set.store(true, Ordering::Release);
            std::mem::take(&mut inner.callbacks)
        };
        for callback in callbacks {
            callback();
        }
    }

    /// Makes it ready for the next generation. Callbacks of this one are forgotten.
    pub(crate) fn clear(&self) {
        let mut inner = self.lock();
        self.shared.set.store(false, Ordering::Release);
        *inner = Inner::default();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while holding the lock but a callback list growth; the data stays whole.
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for AbortSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortSignal").field("reason", &self.reason()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_callback_runs_once_a_generation_and_the_first_reason_stays() {
        let signal = AbortSignal::default();
        let calls = Arc::new(AtomicU32::new(0));
        let count = |calls: &Arc<AtomicU32>| {
            let calls = calls.clone();
            Box::new(move || {
                calls.fetch_add(1, Ordering::Relaxed);
            })
        };
        signal.on_abort(count(&calls));
        assert!(!signal.is_set() && signal.reason().is_none());
        signal.set("rank 1 is gone");
        signal.set("another");
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        signal.on_abort(count(&calls));
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        assert_eq!(signal.reason().as_deref(), Some("rank 1 is gone"));
        signal.clear();
        assert!(!signal.is_set() && signal.reason().is_none());
        signal.set("a third");
        assert_eq!(
            calls.load(Ordering::Relaxed),
            2,
            "callbacks of the last generation are forgotten"
        );
    }
}

//! Spans that wait to be sent: so many at most, the oldest of which give way, since the newest are those that others are in.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::sync::watch;

/// Spans that may wait.
pub(super) const MOST: usize = 4096;

/// See the module's first lines.
#[derive(Debug, Default)]
pub(super) struct Queue {
    shared: Mutex<Shared>,
    /// Rises whenever something changed.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Shared {
    spans: VecDeque<Span>,
    lost: u64,
    is_closed: bool,
}

impl Queue {
    /// Never waits.
    pub(super) fn push(&self, spans: Vec<Span>) {
        if spans.is_empty() {
            return;
        }
        let mut shared = self.lock();
        shared.spans.extend(spans);
        let old = shared.spans.len().saturating_sub(MOST);
        shared.spans.drain(..old);
        shared.lost += old as u64;
        drop(shared);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Nothing comes any more.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.send_modify(|count| *count += 1);
    }

    /// Up to so many, the oldest first.
    pub(super) fn take(&self, most: usize) -> Vec<Span> {
        let mut shared = self.lock();
        let count = shared.spans.len().min(most);
        shared.spans.drain(..count).collect()
    }

    /// Spans that wait.
    pub(super) fn waiting(&self) -> u64 {
        self.lock().spans.len() as u64
    }

    /// Spans that gave way.
    pub(super) fn lost(&self) -> u64 {
        self.lock().lost
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Waits until there are spans, or nothing comes any more.
    pub(super) async fn filled(&self) {
        self.until(|shared| shared.is_closed || !shared.spans.is_empty()).await;
    }

    /// Waits until nothing comes any more.
    pub(super) async fn closed(&self) {
        self.until(|shared| shared.is_closed).await;
    }

    async fn until(&self, is_so: impl Fn(&Shared) -> bool) {
        // Before the look, so that no change between the two is missed.
        let mut changed = self.changed.subscribe();
        while !is_so(&self.lock()) {
            // The sender lives as long as the queue.
            let _changed = changed.changed().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A thread that panicked left whole spans.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

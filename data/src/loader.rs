//! A thread that reads training micro-batches ahead of need.
//!
//! Requests go in by [`Loader::submit`], in any number; the thread works them off in order and keeps at most `depth`
//! results waiting; [`Loader::next`] hands them out in the order of the requests, errors in their places. Dropping
//! the loader ends the thread.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;

use crate::batch::{MicroBatch, micro_batch};
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::order::Order;

/// Prepares training micro-batches ahead of need.
#[derive(Debug)]
pub struct Loader {
    // Both are taken on drop, so that the thread sees closed channels before it is joined.
    requests: Option<Sender<Range<u64>>>,
    ready: Option<Receiver<Result<MicroBatch, DataError>>>,
    thread: Option<JoinHandle<()>>,
    outstanding: usize,
    /// Micro-batches that the thread has read since the start.
    prepared: Arc<AtomicUsize>,
    taken: usize,
}

impl Loader {
    /// Starts the thread. `depth` micro-batches at most wait ready.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(dataset: Arc<Dataset>, order: Order, sequence_length: u32, depth: usize) -> Result<Loader, DataError> {
        let (requests, submitted) = channel::<Range<u64>>();
        let (finished, ready) = sync_channel(depth.max(1));
        let prepared = Arc::new(AtomicUsize::new(0));
        let counter = prepared.clone();
        let work = move || {
            for samples in submitted {
                let batch = micro_batch(dataset.train(), &order, samples, sequence_length);
                counter.fetch_add(1, Ordering::Relaxed);
                if finished.send(batch).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("lockstep-loader".to_owned())
            .spawn(work)
            .map_err(|_| DataError::Loader("the system gives no thread"))?;
        Ok(Loader {
            requests: Some(requests),
            ready: Some(ready),
            thread: Some(thread),
            outstanding: 0,
            prepared,
            taken: 0,
        })
    }

    /// Asks for the micro-batch of these samples (global indices). Never waits.
    pub fn submit(&mut self, samples: Range<u64>) {
        self.outstanding += 1;
        // A thread that has ended shows in `next`.
        if let Some(requests) = &self.requests {
            let _ = requests.send(samples);
        }
    }

    /// Micro-batches that were submitted and not yet taken.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Micro-batches that were read and not yet taken: 0 before [`Loader::next`] means that it will wait.
    pub fn ready(&self) -> usize {
        self.prepared.load(Ordering::Relaxed) - self.taken
    }

    /// The next micro-batch in the order of submission; waits for it.
    ///
    /// # Errors
    /// Reading that micro-batch failed, or nothing was submitted.
    #[allow(clippy::should_implement_trait)] // It is no iterator: it can be fed again after it ran empty.
    pub fn next(&mut self) -> Result<MicroBatch, DataError> {
        if self.outstanding == 0 {
            return Err(DataError::Loader("nothing was submitted"));
        }
        self.outstanding -= 1;
        let received = self.ready.as_ref().and_then(|ready| ready.recv().ok());
        let result = received.ok_or(DataError::Loader("its thread has ended"))?;
        self.taken += 1;
        result
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.requests = None;
        self.ready = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by its own message.
            let _ = thread.join();
        }
    }
}

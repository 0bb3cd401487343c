//! What collectives need of the device whose memory they move: streams, and marks in them that others can wait for.
//!
//! Work on a device runs later than the call that asks for it, in the order of its stream. A mark is recorded in one stream
//! and waited for in another; only what [`Device::record`] has returned can be waited for, so nobody waits for a mark that was
//! never made. On the host everything has run when the call returns, and marks are empty.

use std::any::Any;
use std::sync::Arc;

use crate::error::CollectiveError;

/// A queue of work on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Forward, backward, update.
    Compute,
    /// Reductions and gathers.
    Communication,
}

/// The work that a stream had been given when the mark was recorded.
#[derive(Clone)]
pub struct Recorded {
    mark: Option<Arc<dyn Any + Send + Sync>>,
    name: &'static str,
}

impl Recorded {
    /// A mark that holds what the device needs to wait for it.
    pub fn new(mark: Arc<dyn Any + Send + Sync>) -> Recorded {
        Recorded {
            mark: Some(mark),
            name: "mark",
        }
    }

    /// A mark for work that has run already.
    pub fn done() -> Recorded {
        Recorded {
            mark: None,
            name: "mark",
        }
    }

    /// The same mark under a name, which says what it is for; for those who watch or explain a device's order.
    pub fn named(self, name: &'static str) -> Recorded {
        Recorded { name, ..self }
    }

    /// Its name; "mark" where it was given none.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What the device put in.
    pub fn mark(&self) -> Option<&Arc<dyn Any + Send + Sync>> {
        self.mark.as_ref()
    }
}

impl std::fmt::Debug for Recorded {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = if self.mark.is_some() { "recorded" } else { "done" };
        write!(formatter, "{} {state}", self.name)
    }
}

/// A device, used by several threads of one process.
pub trait Device: Send + Sync {
    /// Makes this device the calling thread's.
    ///
    /// # Errors
    /// The device refuses.
    fn enter(&self) -> Result<(), CollectiveError>;

    /// Marks what `stream` has been given so far. It does not wait.
    ///
    /// # Errors
    /// The device refuses, or an earlier work on it has failed.
    fn record(&self, stream: Stream) -> Result<Recorded, CollectiveError>;

    /// Has `stream` wait for a mark before it goes on with what it is given after this call, which does not wait itself.
    ///
    /// # Errors
    /// As [`Device::record`].
    fn wait(&self, stream: Stream, recorded: &Recorded) -> Result<(), CollectiveError>;
}

/// The host: nothing runs later.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostDevice;

impl Device for HostDevice {
    fn enter(&self) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn record(&self, _stream: Stream) -> Result<Recorded, CollectiveError> {
        Ok(Recorded::done())
    }

    fn wait(&self, _stream: Stream, _recorded: &Recorded) -> Result<(), CollectiveError> {
        Ok(())
    }
}

//! Events: marks on a stream that other streams and the host wait for.
//!
//! libtorch's wait for an event that was never recorded does nothing and says "done", and a wait for one recorded a step
//! ago means that record. So an [`Event`] cannot be waited for at all: recording it gives a [`Recorded`] token, tokens
//! travel between threads in messages, and only a token waits. A token knows which record it means, and is refused when
//! its event has been recorded again. An event is recorded by the one thread that owns it; while a thread waits for it
//! on the host, a record of it waits too.

use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::error::check;
use super::ffi::{
    RawEvent, lockstep_event_block, lockstep_event_elapsed, lockstep_event_free, lockstep_event_native,
    lockstep_event_new, lockstep_event_query, lockstep_event_record, lockstep_event_synchronise,
};
use super::{Cuda, DeviceError, StreamName};

/// The event and which record of it was the last.
struct State {
    event: NonNull<RawEvent>,
    records: u64,
    step: u64,
}

// SAFETY: a c10::Event has no thread affinity; the lock around the state lets one thread record, or several call its
// const functions (block, query, synchronise), which only read it.
unsafe impl Send for State {}
// SAFETY: as above: shared use is const functions only.
unsafe impl Sync for State {}

impl Drop for State {
    fn drop(&mut self) {
        // SAFETY: made by `lockstep_event_new`, freed once.
        unsafe { lockstep_event_free(self.event.as_ptr()) }
    }
}

struct Shared {
    name: Box<str>,
    cuda: Arc<Cuda>,
    state: RwLock<State>,
}

/// A mark that its owner records on a stream, again and again; waiting needs the token of a record.
pub struct Event {
    shared: Arc<Shared>,
}

impl Event {
    pub(super) fn new(cuda: &Arc<Cuda>, name: &str, timing: bool) -> Result<Event, DeviceError> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the out pointer is valid; on success it holds a new event that we own.
        check("Cuda::event", unsafe {
            lockstep_event_new(i32::from(timing), &mut event)
        })?;
        let event = NonNull::new(event)
            .ok_or_else(|| DeviceError::NoDevice("libtorch made an event that is nothing".to_owned()))?;
        Ok(Event {
            shared: Arc::new(Shared {
                name: name.into(),
                cuda: Arc::clone(cuda),
                state: RwLock::new(State {
                    event,
                    records: 0,
                    step: 0,
                }),
            }),
        })
    }

    /// Its name, for errors and logs.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Records the event on `stream`, behind all work that has been given to it, and returns the token of this record.
    /// `step` is the training step, for errors and logs.
    ///
    /// Allocates nothing after the first time. Waits while another thread synchronises with the previous record.
    pub fn record(&mut self, stream: StreamName, step: u64) -> Result<Recorded, DeviceError> {
        let shared = &self.shared;
        let mut state = shared.state.write().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the event is live, and the write lock keeps every other use of it away.
        check("Event::record", unsafe {
            lockstep_event_record(state.event.as_ptr(), shared.cuda.index, shared.cuda.stream(stream))
        })?;
        state.records += 1;
        state.step = step;
        Ok(Recorded {
            shared: Arc::clone(shared),
            record: state.records,
            step,
        })
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({})", self.name())
    }
}

/// The token of one record of an event: the only thing that can be waited for.
#[derive(Clone)]
pub struct Recorded {
    shared: Arc<Shared>,
    record: u64,
    step: u64,
}

impl Recorded {
    /// The event's name.
    pub fn event(&self) -> &str {
        &self.shared.name
    }

    /// The step that the record belongs to.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Which record of its event this is, from 1.
    pub fn record(&self) -> u64 {
        self.record
    }

    fn current(&self) -> Result<RwLockReadGuard<'_, State>, DeviceError> {
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        if state.records != self.record {
            return Err(DeviceError::OutOfDate {
                event: self.event().to_owned(),
                step: self.step,
                now: state.step,
            });
        }
        Ok(state)
    }

    /// Lets all later work of `stream` wait for this record; the host goes on at once.
    pub fn block(&self, stream: StreamName) -> Result<(), DeviceError> {
        let state = self.current()?;
        let cuda = &self.shared.cuda;
        // SAFETY: the event is live and not being recorded while the read lock is held.
        check("Recorded::block", unsafe {
            lockstep_event_block(state.event.as_ptr(), cuda.index, cuda.stream(stream))
        })
    }

    /// Whether all work before the record is done.
    pub fn query(&self) -> Result<bool, DeviceError> {
        let state = self.current()?;
        let mut done = 0;
        // SAFETY: as in `block`; the out pointer is valid.
        check("Recorded::query", unsafe {
            lockstep_event_query(state.event.as_ptr(), &mut done)
        })?;
        Ok(done != 0)
    }

    /// Waits on the host until all work before the record is done. Not for the step's own threads: they poll
    /// [`query`](Self::query) or let streams wait.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        let state = self.current()?;
        // SAFETY: as in `block`.
        check("Recorded::synchronize", unsafe {
            lockstep_event_synchronise(state.event.as_ptr())
        })
    }

    /// Milliseconds from the record `earlier` to this one; both of events made for timing, and both done.
    pub fn milliseconds_since(&self, earlier: &Recorded) -> Result<f64, DeviceError> {
        let (from, to) = (earlier.current()?, self.current()?);
        let mut milliseconds = 0.0;
        // SAFETY: both events are live and not being recorded while the read locks are held.
        check("Recorded::milliseconds_since", unsafe {
            lockstep_event_elapsed(from.event.as_ptr(), to.event.as_ptr(), &mut milliseconds)
        })?;
        Ok(milliseconds)
    }

    /// The accelerator's handle of the event (for CUDA: `cudaEvent_t`), for logs and for tools that name events.
    pub fn native_event(&self) -> *mut c_void {
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the event is live.
        unsafe { lockstep_event_native(state.event.as_ptr()) }
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorded({} of step {})", self.event(), self.step)
    }
}

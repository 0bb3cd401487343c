//! The device as collectives use it: marks in its streams, as tokens of events that are taken from a pool.
//!
//! A mark holds its event until nobody can wait for it any more; then the event goes back, to be recorded again. So a token
//! never goes out of date while somebody has it, and after the first steps no event is made.

use std::sync::{Arc, Mutex, PoisonError};

use lockstep_collective::{CollectiveError, Device, Pinned, Recorded, Stream};
use tch::Tensor;

use super::{Cuda, DeviceError, Event, StreamName, event};

/// Events that nobody uses now.
type Pool = Arc<Mutex<Vec<Event>>>;

/// A mark: the token, and the event to give back.
struct Mark {
    token: event::Recorded,
    event: Option<Event>,
    pool: Pool,
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            self.pool.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        }
    }
}

/// A device that the threads of a rank share, in the words of its collectives.
pub struct CollectiveDevice {
    cuda: Arc<Cuda>,
    /// As NCCL knows them: compute, communication.
    native: [nccl_rs::Stream; 2],
    pool: Pool,
    /// By stream, memory that roundings go through.
    pub(super) rounding: Mutex<[Option<Tensor>; 2]>,
    /// All pinned memory that was ever asked for: copies may be under way when their caller has gone.
    pub(super) pinned: Mutex<Vec<Arc<dyn Pinned>>>,
}

impl std::fmt::Debug for CollectiveDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CollectiveDevice({})", self.cuda.index())
    }
}

impl CollectiveDevice {
    /// The device, without an event so far.
    ///
    /// # Errors
    /// The device does not tell its streams.
    pub fn new(cuda: Arc<Cuda>) -> Result<CollectiveDevice, DeviceError> {
        let native = |name| {
            let handle = cuda.native_stream(name)?;
            // SAFETY: a stream of libtorch's for this device, which lives as long as the process.
            Ok(unsafe { nccl_rs::Stream::from_raw(handle) })
        };
        Ok(CollectiveDevice {
            native: [native(StreamName::Compute)?, native(StreamName::Communication)?],
            cuda,
            pool: Pool::default(),
            rounding: Mutex::default(),
            pinned: Mutex::default(),
        })
    }

    /// The streams as NCCL knows them: compute, communication.
    pub(super) fn native_streams(&self) -> [nccl_rs::Stream; 2] {
        self.native
    }

    /// The device itself.
    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.cuda
    }

    /// A mark of what `stream` has been given so far.
    ///
    /// # Errors
    /// The device refuses; on the compute stream also where another stream is the calling thread's: its work would not be
    /// in the mark.
    pub fn mark(&self, stream: StreamName) -> Result<Recorded, DeviceError> {
        if stream == StreamName::Compute && !self.cuda.current_stream_is_compute()? {
            return Err(DeviceError::NotCompute);
        }
        let free = self.pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut event = match free {
            Some(event) => event,
            None => self.cuda.event("mark")?,
        };
        let token = event.record(stream, 0)?;
        Ok(Recorded::new(Arc::new(Mark {
            token,
            event: Some(event),
            pool: Arc::clone(&self.pool),
        })))
    }

    /// Has `stream` wait for a mark. One of work that has run already needs no wait.
    ///
    /// # Errors
    /// The device refuses.
    pub fn block(&self, stream: StreamName, recorded: &Recorded) -> Result<(), DeviceError> {
        match token_of(recorded)? {
            Some(token) => token.block(stream),
            None => Ok(()),
        }
    }

    /// Whether all work before a mark is done.
    ///
    /// # Errors
    /// Work on the device has failed.
    pub fn is_done(&self, recorded: &Recorded) -> Result<bool, DeviceError> {
        match token_of(recorded)? {
            Some(token) => token.query(),
            None => Ok(true),
        }
    }
}

/// The token in a mark; none where the work has run already.
fn token_of(recorded: &Recorded) -> Result<Option<&event::Recorded>, DeviceError> {
    match recorded.mark() {
        None => Ok(None),
        Some(mark) => match mark.downcast_ref::<Mark>() {
            Some(mark) => Ok(Some(&mark.token)),
            None => Err(DeviceError::ForeignMark),
        },
    }
}

/// The device's stream for one of the collectives'.
pub(super) fn name_of(stream: Stream) -> StreamName {
    match stream {
        Stream::Compute => StreamName::Compute,
        Stream::Communication => StreamName::Communication,
    }
}

/// An error of the device in the collectives' words.
pub(super) fn failed(call: &'static str) -> impl Fn(DeviceError) -> CollectiveError {
    move |error| CollectiveError::Library {
        library: "the device",
        call,
        why: error.to_string(),
    }
}

impl Device for CollectiveDevice {
    fn enter(&self) -> Result<(), CollectiveError> {
        self.cuda.use_on_this_thread().map_err(failed("enter"))
    }

    fn record(&self, stream: Stream) -> Result<Recorded, CollectiveError> {
        self.mark(name_of(stream)).map_err(failed("record"))
    }

    fn wait(&self, stream: Stream, recorded: &Recorded) -> Result<(), CollectiveError> {
        self.block(name_of(stream), recorded).map_err(failed("wait"))
    }
}

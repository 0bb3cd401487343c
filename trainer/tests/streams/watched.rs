//! A rank's device in these tests: the shim's own [`CollectiveDevice`] over the recording guard, with NCCL's double beside it.
//!
//! Tensors lie on the host, so what is given to a stream runs at once. So that numbers are right, a wait for the communication
//! stream waits here until the double has moved its bytes; the log knows nothing of that, only of what the guard was told. A
//! [`Fault`] keeps one kind of edge from the guard: then the log is that of a program without it.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use accelerator_double::double;
use lockstep_autograd::device::{CollectiveDevice, Cuda};
use lockstep_collective::{Accelerator, CollectiveError, Device, DeviceMemory, Operand, Pinned, Recorded, Stream};
use lockstep_device_recorder::{Access, Pen, Range};
use nccl_double::Call;
use nccl_rs::DevicePointer;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Longer than anything here takes; only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What becomes of the edges of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Nobody waits.
    LeftOut,
    /// Whoever waits, waits for the mark of this name before.
    Stale,
}

/// Edges that one world does without; none where there is no name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// Names of marks.
    pub(crate) names: &'static [&'static str],
    pub(crate) how: How,
}

/// A world with every edge.
pub(crate) const NO_FAULT: Fault = Fault {
    names: &[],
    how: How::LeftOut,
};

/// The mark of a device, and how far the double's stream is then.
struct Mark {
    inner: Recorded,
    stream: Stream,
    place: u64,
    /// Its number in the log.
    event: u64,
}

/// The device of one rank.
pub(crate) struct Watched {
    inner: CollectiveDevice,
    pen: Pen,
    rank: u32,
    fault: Fault,
    /// By name, the last mark that was waited for, and the one before it.
    latest: Mutex<HashMap<&'static str, [Option<Recorded>; 2]>>,
    offences: AtomicU32,
    pauses: Mutex<StdRng>,
    pinned: AtomicUsize,
    /// Memory that was given away: its addresses mean what they meant until the recording has ended.
    kept: Mutex<Vec<DeviceMemory>>,
}

thread_local! {
    /// Whether the device itself looks where pinned words are.
    static IS_ENQUEUING: Cell<bool> = const { Cell::new(false) };
}

/// Pinned words whose every use by the host goes into the log, as a write: stricter than a read, and this way nobody has to
/// say which it is.
struct WatchedPinned {
    inner: Arc<dyn Pinned>,
    whole: Range,
    pen: Pen,
}

impl Pinned for WatchedPinned {
    fn words(&self) -> &[AtomicU64] {
        if !IS_ENQUEUING.get() {
            self.pen.host_write(&self.whole, "the host uses pinned words");
        }
        self.inner.words()
    }
}

fn failed(call: &'static str, why: String) -> CollectiveError {
    CollectiveError::Library {
        library: "the test's device",
        call,
        why,
    }
}

fn mark_of(recorded: &Recorded) -> Result<&Mark, CollectiveError> {
    let mark = recorded.mark().and_then(|mark| mark.downcast_ref());
    mark.ok_or_else(|| failed("wait", format!("{recorded:?} is no mark of this device")))
}

impl Watched {
    /// The device of `rank`, told about in `pen`; `pauses` is a seed.
    pub(crate) fn new(rank: u32, pen: Pen, fault: Fault, pauses: u64) -> Arc<Watched> {
        let cuda = Cuda::open_registered_guard(rank as usize).unwrap();
        Arc::new(Watched {
            inner: CollectiveDevice::new(cuda).unwrap(),
            pen,
            rank,
            fault,
            latest: Mutex::default(),
            offences: AtomicU32::new(0),
            pauses: Mutex::new(StdRng::seed_from_u64(pauses)),
            pinned: AtomicUsize::new(0),
            kept: Mutex::default(),
        })
    }

    /// How often something was put on a stream, or recorded there, before NCCL's success.
    pub(crate) fn offences(&self) -> u32 {
        self.offences.load(Ordering::Relaxed)
    }

    /// The name of a memory of this rank in the log.
    pub(crate) fn memory(rank: u32, name: &str) -> String {
        format!("{name} of rank {rank}")
    }

    /// Refuses what would come before NCCL's work, and now and then lets other threads go first.
    fn line(&self, stream: Stream, what: &'static str) -> Result<(), CollectiveError> {
        let pause = self
            .pauses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .random_range(0..12);
        match pause {
            0..4 => std::thread::yield_now(),
            4 => std::thread::sleep(Duration::from_micros(50)),
            _ => {}
        }
        match double().pending(self.inner.native(stream)) {
            0 => Ok(()),
            pending => {
                self.offences.fetch_add(1, Ordering::Relaxed);
                let why = format!("{pending} operations of NCCL are not on the {stream:?} stream yet");
                Err(failed(what, why))
            }
        }
    }

    /// Waits until the double has moved what `stream` was given up to `place`.
    fn settle(&self, stream: Stream, place: u64) -> Result<(), CollectiveError> {
        match double().wait(self.inner.native(stream), place, PATIENCE) {
            true => Ok(()),
            false => Err(failed(
                "wait",
                format!("the {stream:?} stream does not come to its place {place}"),
            )),
        }
    }

    /// Gives work to a stream, which runs now.
    fn enqueue(
        &self,
        stream: Stream,
        what: &'static str,
        work: impl FnOnce() -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        self.line(stream, what)?;
        self.settle(stream, double().launched(self.inner.native(stream)))?;
        IS_ENQUEUING.set(true);
        let done = work();
        IS_ENQUEUING.set(false);
        done
    }

    /// The mark that the guard hears of in place of this one.
    fn told(&self, recorded: &Recorded) -> Result<Option<Recorded>, CollectiveError> {
        let event = mark_of(recorded)?.event;
        self.pen.name_record(event, recorded.name());
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let [last, before] = latest.entry(recorded.name()).or_default();
        let is_last = |last: &Recorded| mark_of(last).is_ok_and(|last| last.event == event);
        if !last.as_ref().is_some_and(is_last) {
            *before = last.replace(recorded.clone());
        }
        Ok(match self.fault.how {
            _ if !self.fault.names.contains(&recorded.name()) => Some(recorded.clone()),
            How::LeftOut => None,
            How::Stale => before.clone(),
        })
    }
}

impl Device for Watched {
    fn enter(&self) -> Result<(), CollectiveError> {
        if std::thread::current().name() == Some("communication") {
            self.pen.name_thread(&format!("C of rank {}", self.rank));
        }
        self.inner.enter()
    }

    fn record(&self, stream: Stream) -> Result<Recorded, CollectiveError> {
        self.line(stream, "record")?;
        let inner = self.inner.record(stream)?;
        Ok(Recorded::new(Arc::new(Mark {
            inner,
            stream,
            place: double().launched(self.inner.native(stream)),
            event: self.pen.last_event(),
        })))
    }

    fn wait(&self, stream: Stream, recorded: &Recorded) -> Result<(), CollectiveError> {
        let mark = mark_of(recorded)?;
        self.line(stream, "wait")?;
        self.settle(mark.stream, mark.place)?;
        match self.told(recorded)? {
            Some(told) => self.inner.wait(stream, &mark_of(&told)?.inner),
            None => Ok(()),
        }
    }
}

impl Accelerator for Watched {
    fn allocate(&self, name: &str, bytes: usize) -> Result<DeviceMemory, CollectiveError> {
        let memory = self.inner.allocate(name, bytes)?;
        let address = memory.pointer().address().addr();
        self.pen.watch(&Watched::memory(self.rank, name), address, bytes);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(memory.clone());
        Ok(memory)
    }

    fn allocate_pinned(&self, words: usize) -> Result<Arc<dyn Pinned>, CollectiveError> {
        let inner = self.inner.allocate_pinned(words)?;
        let number = self.pinned.fetch_add(1, Ordering::Relaxed);
        let memory = Watched::memory(self.rank, &format!("pinned words {number}"));
        self.pen.watch(&memory, inner.words().as_ptr().addr(), 8 * words);
        Ok(Arc::new(WatchedPinned {
            inner,
            whole: Range::new(&memory, 0..8 * words),
            pen: self.pen,
        }))
    }

    fn native(&self, stream: Stream) -> nccl_rs::Stream {
        self.inner.native(stream)
    }

    fn add(
        &self,
        sum: DevicePointer,
        left: Operand,
        right: Operand,
        round: bool,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        self.enqueue(stream, "add", || self.inner.add(sum, left, right, round, stream))
    }

    fn narrow(&self, halves: DevicePointer, floats: DevicePointer, stream: Stream) -> Result<(), CollectiveError> {
        self.enqueue(stream, "narrow", || self.inner.narrow(halves, floats, stream))
    }

    fn copy_to_host(
        &self,
        from: DevicePointer,
        to: &Arc<dyn Pinned>,
        first: usize,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        self.enqueue(stream, "copy_to_host", || {
            self.inner.copy_to_host(from, to, first, stream)
        })
    }

    fn copy_to_device(
        &self,
        from: &Arc<dyn Pinned>,
        first: usize,
        to: DevicePointer,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        self.enqueue(stream, "copy_to_device", || {
            self.inner.copy_to_device(from, first, to, stream)
        })
    }

    fn is_done(&self, recorded: &Recorded) -> Result<bool, CollectiveError> {
        let mark = mark_of(recorded)?;
        if double().done(self.inner.native(mark.stream)) < mark.place {
            return Ok(false);
        }
        match self.told(recorded)? {
            Some(told) => Accelerator::is_done(&self.inner, &mark_of(&told)?.inner),
            None => Ok(true),
        }
    }
}

/// Has the double tell the log what NCCL reads and writes on its streams.
pub(crate) fn tell_of_nccl(pen: Pen) {
    double().set_stream_hook(move |operation| {
        let stream = pen.stream_of_handle(operation.stream.addr());
        let by = format!("NCCL, {:?}", operation.call);
        pen.name_thread("of NCCL");
        let is_in_place = operation.call == Call::Broadcast && operation.read.addr() == operation.written.addr();
        for (access, address, bytes) in [
            (Access::Read, operation.read.addr(), operation.read_bytes),
            (Access::Write, operation.written.addr(), operation.written_bytes),
        ] {
            // The root of a broadcast in place has it all already.
            if bytes > 0 && !(is_in_place && access == Access::Write) {
                pen.touch_address(stream, access, (address, bytes), &by);
            }
        }
    });
}

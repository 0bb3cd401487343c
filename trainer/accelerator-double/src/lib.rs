//! A device of host memory for tests: an [`Accelerator`] whose two streams are the double's, so that additions, copies, marks
//! and NCCL's own work stand in one line and run in its order.
//!
//! What it holds its user to: while NCCL has not said success for what was asked for on a stream, nothing else may be put there
//! and no mark recorded, for it would come *before* that work. Each offence is refused, and counted ([`HostAccelerator::offences`]).

mod memory;
mod work;

use std::any::Any;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use lockstep_collective::{Accelerator, CollectiveError, Device, DeviceMemory, Operand, Pinned, Recorded, Stream};
use nccl_double::Double;
use nccl_rs::{DevicePointer, Nccl};

use memory::PinnedWords;

static DOUBLE: LazyLock<Result<Double, String>> = LazyLock::new(Double::open);

/// The double of this process, to steer it.
///
/// # Panics
/// If its file is not there.
pub fn double() -> &'static Double {
    match &*DOUBLE {
        Ok(double) => double,
        Err(why) => panic!("{why}"),
    }
}

/// The double as a backend uses it.
///
/// # Panics
/// As [`double`].
pub fn nccl() -> Nccl {
    let opened = Double::path().map_err(|why| panic!("{why}")).and_then(Nccl::open);
    opened.unwrap_or_else(|why| panic!("{why}"))
}

/// A device of its own: one for each rank.
pub struct HostAccelerator {
    compute: nccl_rs::Stream,
    communication: nccl_rs::Stream,
    offences: AtomicU32,
}

/// The place in a stream's line up to which a mark reaches.
struct Mark {
    stream: nccl_rs::Stream,
    place: u64,
}

impl HostAccelerator {
    /// A device with two streams that nobody else has.
    pub fn new() -> Arc<HostAccelerator> {
        static NEXT: AtomicUsize = AtomicUsize::new(0x5000);
        let stream = || {
            let handle = std::ptr::without_provenance_mut(NEXT.fetch_add(1, Ordering::Relaxed));
            // SAFETY: the double looks behind no stream.
            unsafe { nccl_rs::Stream::from_raw(handle) }
        };
        Arc::new(HostAccelerator {
            compute: stream(),
            communication: stream(),
            offences: AtomicU32::new(0),
        })
    }

    /// How often something was put on a stream, or recorded there, before NCCL's success.
    pub fn offences(&self) -> u32 {
        self.offences.load(Ordering::Relaxed)
    }

    /// The stream's handle, where it may be used now.
    fn line(&self, stream: Stream, what: &'static str) -> Result<nccl_rs::Stream, CollectiveError> {
        let native = self.native(stream);
        match double().pending(native) {
            0 => Ok(native),
            pending => {
                self.offences.fetch_add(1, Ordering::Relaxed);
                Err(CollectiveError::Library {
                    library: "the test's device",
                    call: what,
                    why: format!(
                        "{pending} operations of NCCL are not on the {stream:?} stream yet, so this would come before them"
                    ),
                })
            }
        }
    }
}

impl Device for HostAccelerator {
    fn enter(&self) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn record(&self, stream: Stream) -> Result<Recorded, CollectiveError> {
        let stream = self.line(stream, "record")?;
        let place = double().launched(stream);
        Ok(Recorded::new(Arc::new(Mark { stream, place })))
    }

    fn wait(&self, stream: Stream, recorded: &Recorded) -> Result<(), CollectiveError> {
        let stream = self.line(stream, "wait")?;
        if let Some(mark) = mark_of(recorded) {
            double().order(stream, mark.stream, mark.place);
        }
        Ok(())
    }
}

/// Marks of another device are none of ours.
fn mark_of(recorded: &Recorded) -> Option<&Mark> {
    let mark: &(dyn Any + Send + Sync) = recorded.mark()?.as_ref();
    mark.downcast_ref()
}

impl Accelerator for HostAccelerator {
    fn allocate(&self, _name: &str, bytes: usize) -> Result<DeviceMemory, CollectiveError> {
        memory::allocate(bytes)
    }

    fn allocate_pinned(&self, words: usize) -> Result<Arc<dyn Pinned>, CollectiveError> {
        Ok(Arc::new(PinnedWords::new(words)))
    }

    fn native(&self, stream: Stream) -> nccl_rs::Stream {
        match stream {
            Stream::Compute => self.compute,
            Stream::Communication => self.communication,
        }
    }

    fn add(
        &self,
        sum: DevicePointer,
        left: Operand,
        right: Operand,
        round: bool,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        let stream = self.line(stream, "add")?;
        double().run(stream, move || work::add(sum, left, right, round));
        Ok(())
    }

    fn narrow(&self, halves: DevicePointer, floats: DevicePointer, stream: Stream) -> Result<(), CollectiveError> {
        let stream = self.line(stream, "narrow")?;
        double().run(stream, move || work::narrow(halves, floats));
        Ok(())
    }

    fn copy_to_host(
        &self,
        from: DevicePointer,
        to: &Arc<dyn Pinned>,
        first: usize,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        let stream = self.line(stream, "copy_to_host")?;
        let to = Arc::clone(to);
        double().run(stream, move || work::copy_to_host(from, &to.words()[first..]));
        Ok(())
    }

    fn copy_to_device(
        &self,
        from: &Arc<dyn Pinned>,
        first: usize,
        to: DevicePointer,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        let stream = self.line(stream, "copy_to_device")?;
        let from = Arc::clone(from);
        double().run(stream, move || work::copy_to_device(&from.words()[first..], to));
        Ok(())
    }

    fn is_done(&self, recorded: &Recorded) -> Result<bool, CollectiveError> {
        Ok(mark_of(recorded).is_none_or(|mark| double().done(mark.stream) >= mark.place))
    }
}

//! An accelerator as the run uses it: one device, three streams, events between them.
//!
//! What lives here: [`Cuda`], the opened device (streams, work on a stream, pinned memory, statistics); [`Event`] and
//! [`Recorded`] ([`event`]); the settings that decide bits ([`settings`]); typed errors ([`error`]). All of it goes
//! through libtorch's device-generic interface (`device.cpp`), never through CUDA's own: the same code runs over a guard
//! that records what it is told, in tests without a GPU. [`CollectiveDevice`] is the same device as collectives use it
//! (`collectives`), with what NCCL's backend needs of it (`accelerator`).
//!
//! Data flows: a thread calls [`Cuda::use_on_this_thread`] → gives work to a stream → records an event → sends the token
//! to the thread whose stream, or which itself, waits for it.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::cuda::{CudaLibraries, open_libraries};
use crate::memory::kind_code;
use crate::shim::raw;
use error::check;
use ffi::{
    lockstep_add_out, lockstep_allocator_reset_peaks, lockstep_allocator_statistics, lockstep_copy,
    lockstep_device_count, lockstep_device_guard_registered, lockstep_device_initialise, lockstep_device_memory,
    lockstep_device_set, lockstep_device_synchronise, lockstep_pinned, lockstep_stream_current,
    lockstep_stream_default, lockstep_stream_from_pool, lockstep_stream_native, lockstep_stream_run,
};

mod accelerator;
mod collectives;
pub mod error;
pub mod event;
mod ffi;
pub mod settings;

pub use collectives::CollectiveDevice;
pub use error::DeviceError;
pub use event::{Event, Recorded};

/// The streams of a rank, by what runs on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamName {
    /// Forward, backward and the optimiser: libtorch's default stream.
    Compute,
    /// Exchanges and the sums of what they bring.
    Communication,
    /// Copies of the state to the host.
    Snapshots,
}

/// Bytes and counts of libtorch's allocator for one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllocatorStatistics {
    /// Bytes in tensors now.
    pub allocated: u64,
    /// The most bytes in tensors since the start or the last reset.
    pub allocated_peak: u64,
    /// Bytes taken from the device now.
    pub reserved: u64,
    /// The most bytes taken from the device since the start or the last reset.
    pub reserved_peak: u64,
    /// Allocations that failed.
    pub out_of_memory: u64,
    /// Allocations that went through only after cached memory was freed, which stops the device: more than none in the
    /// middle of a run is worth a warning.
    pub retries: u64,
}

/// Bytes of a device, as its driver counts them: everything of every process is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes that nobody uses.
    pub free: u64,
    /// All bytes.
    pub total: u64,
}

/// An opened device with its streams. One for each device and process: streams of the pool are few.
#[derive(Debug)]
pub struct Cuda {
    index: i8,
    /// Where its tensors lie.
    memory: Device,
    compute: i64,
    communication: i64,
    snapshots: i64,
}

fn opened() -> &'static Mutex<Vec<Arc<Cuda>>> {
    static OPENED: Mutex<Vec<Arc<Cuda>>> = Mutex::new(Vec::new());
    &OPENED
}

/// Ends the process at once, with an exit code and without what would run at a normal end. For a thread that ends it while
/// another one computes: a normal end takes libtorch's tables away from under that one, which then fails with what nobody
/// understands. The caller has flushed what it has to say.
pub fn leave(code: u8) -> ! {
    unsafe extern "C" {
        fn _exit(code: c_int) -> !;
    }
    // SAFETY: ends the process, and runs no code of ours.
    unsafe { _exit(c_int::from(code)) }
}

/// As [`leave`], once a device was opened: CUDA's libraries have no order in which they can be taken down, and libtorch waits
/// for its threads. Does nothing where no device was opened.
pub fn leave_if_opened(code: u8) {
    if !opened().lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
        leave(code);
    }
}

impl Cuda {
    /// How many devices there are; 0 where libtorch's CUDA libraries or the driver are missing.
    pub fn count() -> Result<usize, DeviceError> {
        // SAFETY: reads libtorch's table of guards.
        if unsafe { lockstep_device_guard_registered() } == 0 {
            return Ok(0);
        }
        let mut count = 0;
        // SAFETY: the out pointer is valid.
        check("Cuda::count", unsafe { lockstep_device_count(&mut count) })?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Opens device `index` (among those visible) on this thread: initialises libtorch for it and takes its streams.
    /// A device that is open already is given again. Settings ([`settings::Settings::apply`]) come before.
    pub fn open(index: usize) -> Result<Arc<Cuda>, DeviceError> {
        if let libraries @ (CudaLibraries::Absent { .. } | CudaLibraries::TooLate) = open_libraries() {
            return Err(DeviceError::NoDevice(format!(
                "device {index} cannot be opened: {libraries}"
            )));
        }
        // SAFETY: takes nothing; libtorch initialises once.
        let initialise = || check("Cuda::open", unsafe { lockstep_device_initialise() });
        if Cuda::count()? == 0 {
            // The count does not say why; initialising does (no driver, or one that is too old).
            initialise().map_err(|error| DeviceError::NoDevice(format!("device {index} cannot be opened: {error}")))?;
        }
        Cuda::open_with(index, Device::Cuda(index), initialise)
    }

    /// Opens device `index` of the guard that is registered for CUDA, without libtorch's own initialisation: for a guard
    /// of a test, which has no allocator and no kernels. Its streams and events are the guard's; its tensors lie on the
    /// host, where work is done as soon as it is given.
    pub fn open_registered_guard(index: usize) -> Result<Arc<Cuda>, DeviceError> {
        Cuda::open_with(index, Device::Cpu, || Ok(()))
    }

    fn open_with(
        index: usize,
        memory: Device,
        initialise: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<Arc<Cuda>, DeviceError> {
        let count = Cuda::count()?;
        let Some(device) = i8::try_from(index).ok().filter(|_| index < count) else {
            return Err(DeviceError::NoDevice(format!(
                "device {index} cannot be opened: {count} devices are visible; check the driver, CUDA_VISIBLE_DEVICES and the number of ranks on this host"
            )));
        };
        let mut opened = opened().lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cuda) = opened.iter().find(|cuda| cuda.index == device) {
            cuda.use_on_this_thread()?;
            return Ok(Arc::clone(cuda));
        }
        // SAFETY: takes a number.
        check("Cuda::open", unsafe { lockstep_device_set(device) })?;
        initialise()?;
        let stream = |take: &dyn Fn(*mut i64) -> c_int| {
            let mut id = 0;
            check("Cuda::open", take(&mut id)).map(|()| id)
        };
        let cuda = Arc::new(Cuda {
            index: device,
            memory,
            // SAFETY: the out pointer is valid, here and below.
            compute: stream(&|out| unsafe { lockstep_stream_default(device, out) })?,
            // High priority: a small exchange must not wait behind a layer's worth of blocks.
            // SAFETY: as above.
            communication: stream(&|out| unsafe { lockstep_stream_from_pool(device, 1, out) })?,
            // SAFETY: as above.
            snapshots: stream(&|out| unsafe { lockstep_stream_from_pool(device, 0, out) })?,
        });
        opened.push(Arc::clone(&cuda));
        Ok(cuda)
    }

    /// The device's index among those visible.
    pub fn index(&self) -> usize {
        usize::try_from(self.index).unwrap_or(0)
    }

    /// Where its tensors lie, in tch's words.
    pub fn device(&self) -> Device {
        self.memory
    }

    /// Makes this the device of the calling thread; every thread that uses it says so once.
    pub fn use_on_this_thread(&self) -> Result<(), DeviceError> {
        // SAFETY: takes a number.
        check("Cuda::use_on_this_thread", unsafe { lockstep_device_set(self.index) })
    }

    /// libtorch's number of a stream.
    pub fn stream(&self, name: StreamName) -> i64 {
        match name {
            StreamName::Compute => self.compute,
            StreamName::Communication => self.communication,
            StreamName::Snapshots => self.snapshots,
        }
    }

    /// The accelerator's handle of a stream (for CUDA: `cudaStream_t`), which NCCL and kernel launches take. It lives as
    /// long as the process.
    pub fn native_stream(&self, name: StreamName) -> Result<*mut c_void, DeviceError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the stream is one of this device; the out pointer is valid.
        check("Cuda::native_stream", unsafe {
            lockstep_stream_native(self.index, self.stream(name), &mut handle)
        })?;
        Ok(handle)
    }

    /// Whether the calling thread's current stream is the compute stream. A gradient-ready hook asks before it records:
    /// on another stream (one that was current in forward) the event would mark the wrong work.
    pub fn current_stream_is_compute(&self) -> Result<bool, DeviceError> {
        let mut id = 0;
        // SAFETY: the out pointer is valid.
        check("Cuda::current_stream_is_compute", unsafe {
            lockstep_stream_current(self.index, &mut id)
        })?;
        Ok(id == self.compute)
    }

    /// Runs `work` with `name` as the thread's current stream and without a graph. A panic in it goes on here.
    pub fn on_stream<T>(&self, name: StreamName, work: impl FnOnce() -> T) -> Result<T, DeviceError> {
        struct Context<F, T> {
            work: Option<F>,
            result: Option<std::thread::Result<T>>,
        }
        extern "C" fn call<F: FnOnce() -> T, T>(context: *mut c_void) -> c_int {
            // SAFETY: the context is the one below, alive and unshared during the call.
            let context = unsafe { &mut *context.cast::<Context<F, T>>() };
            context.result = context.work.take().map(|work| {
                // A panic must not unwind through C++.
                catch_unwind(AssertUnwindSafe(work))
            });
            0
        }
        fn with_types<F: FnOnce() -> T, T>(_: &Context<F, T>) -> crate::shim::Call {
            call::<F, T>
        }
        let mut context = Context {
            work: Some(work),
            result: None,
        };
        let call = with_types(&context);
        // SAFETY: `call` gets the context that it was made for, which outlives the call.
        check("Cuda::on_stream", unsafe {
            lockstep_stream_run(self.index, self.stream(name), call, (&raw mut context).cast())
        })?;
        match context.result {
            Some(Ok(result)) => Ok(result),
            Some(Err(panic)) => resume_unwind(panic),
            None => Err(DeviceError::Torch {
                what: "Cuda::on_stream",
                text: "the work was not called".to_owned(),
            }),
        }
    }

    /// out = left + right on a stream; see [`add_out`].
    pub fn add_out(
        &self,
        stream: StreamName,
        out: &mut Tensor,
        left: &Tensor,
        right: &Tensor,
    ) -> Result<(), DeviceError> {
        self.on_stream(stream, || add_out(out, left, right))?
    }

    /// Copies `from` to `to` on a stream, without waiting; a side on the host must be pinned, and must not be touched
    /// before an event recorded behind the copy is done.
    pub fn copy(&self, stream: StreamName, to: &mut Tensor, from: &Tensor) -> Result<(), DeviceError> {
        if to.size() != from.size() || to.kind() != from.kind() {
            return Err(DeviceError::Shape(format!(
                "a copy needs equal tensors, not {:?} of shape {:?} from {:?} of shape {:?}",
                to.kind(),
                to.size(),
                from.kind(),
                from.size()
            )));
        }
        self.on_stream(stream, || {
            // SAFETY: both tensors are live for the call, which takes its own handles.
            check("Cuda::copy", unsafe { lockstep_copy(raw(to), raw(from)) })
        })?
    }

    /// A zeroed tensor in pinned host memory: copies to and from the device need not wait. Allocate once and keep.
    pub fn pinned(&self, sizes: &[i64], kind: Kind) -> Result<Tensor, DeviceError> {
        if self.memory == Device::Cpu {
            // Nothing copies from or to the host, so any of its memory will do.
            return Tensor::f_zeros(sizes, (kind, Device::Cpu)).map_err(|error| DeviceError::of_tch("pinned", &error));
        }
        let kind = kind_code(kind)
            .ok_or_else(|| DeviceError::Shape(format!("a pinned tensor cannot hold {kind:?}; use a flat kind")))?;
        let mut out = std::ptr::null_mut();
        // SAFETY: `sizes` is copied by the call; on success `out` is a new tensor that we own.
        check("Cuda::pinned", unsafe {
            lockstep_pinned(sizes.as_ptr(), sizes.len() as i64, kind, &mut out)
        })?;
        // SAFETY: as above.
        Ok(unsafe { Tensor::from_ptr(out) })
    }

    /// An event of this device. It can be recorded, not waited for: see [`Recorded`].
    pub fn event(self: &Arc<Self>, name: &str) -> Result<Event, DeviceError> {
        Event::new(self, name, false)
    }

    /// An event that can tell the time between two records; slower than a plain one.
    pub fn timing_event(self: &Arc<Self>, name: &str) -> Result<Event, DeviceError> {
        Event::new(self, name, true)
    }

    /// Waits on the host until the device has done all that it was given. Not in a step.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: takes a number.
        check("Cuda::synchronize", unsafe { lockstep_device_synchronise(self.index) })
    }

    /// What libtorch's allocator holds on this device.
    pub fn allocator_statistics(&self) -> Result<AllocatorStatistics, DeviceError> {
        let mut numbers = [0i64; 6];
        // SAFETY: the call writes six numbers.
        check("Cuda::allocator_statistics", unsafe {
            lockstep_allocator_statistics(self.index, numbers.as_mut_ptr())
        })?;
        let [
            allocated,
            allocated_peak,
            reserved,
            reserved_peak,
            out_of_memory,
            retries,
        ] = numbers.map(|number| u64::try_from(number).unwrap_or(0));
        Ok(AllocatorStatistics {
            allocated,
            allocated_peak,
            reserved,
            reserved_peak,
            out_of_memory,
            retries,
        })
    }

    /// Begins the peaks of the statistics anew.
    pub fn reset_peaks(&self) -> Result<(), DeviceError> {
        // SAFETY: takes a number.
        check("Cuda::reset_peaks", unsafe {
            lockstep_allocator_reset_peaks(self.index)
        })
    }

    /// The device's memory, as its driver counts it.
    pub fn memory(&self) -> Result<DeviceMemory, DeviceError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both out pointers are valid.
        check("Cuda::memory", unsafe {
            lockstep_device_memory(self.index, &mut free, &mut total)
        })?;
        Ok(DeviceMemory { free, total })
    }
}

/// out = left + right over contiguous ranges of one shape, on the current stream: float32, with `right` float32 or bf16.
///
/// One IEEE addition an element (a bf16 element is a float32 exactly), so the bits do not depend on the device. `out`
/// may be `left` or `right`.
pub fn add_out(out: &mut Tensor, left: &Tensor, right: &Tensor) -> Result<(), DeviceError> {
    let kinds = (out.kind(), left.kind(), right.kind());
    if !matches!(
        kinds,
        (Kind::Float, Kind::Float, Kind::Float) | (Kind::Float, Kind::Float, Kind::BFloat16)
    ) || ![left, right]
        .iter()
        .all(|t| t.size() == out.size() && t.is_contiguous())
        || !out.is_contiguous()
    {
        return Err(DeviceError::Shape(format!(
            "an addition needs contiguous float32 of one shape, the right side may be bf16; these are {:?} of shapes {:?}, {:?}, {:?}",
            kinds,
            out.size(),
            left.size(),
            right.size()
        )));
    }
    // SAFETY: the tensors are live for the call; shape and kind were checked, so `out` is not resized.
    check("add_out", unsafe { lockstep_add_out(raw(out), raw(left), raw(right)) })
}

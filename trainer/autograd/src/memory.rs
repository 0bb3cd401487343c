//! Flat buffers: memory that Rust owns (a heap allocation, a shared mapping of a communicator), seen as tensors and as
//! slices.
//!
//! A [`FlatBuffer`] is used by one device thread. Tensor views and slices of it alias by design (a gradient slot is
//! written by libtorch and read by our kernels); they are never used at the same moment, since both are used by that
//! one thread, and peers of a communicator only read what a collective has ordered.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use half::bf16;
use lockstep_collective::DeviceMemory;
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::AutogradError;
use crate::shim::{check, lockstep_over_memory};

/// Memory of a fixed address and length that lives as long as the value does.
///
/// # Safety
/// `start()` must stay valid for reads and writes of `bytes()` bytes, at the same address, until the value is dropped,
/// and be aligned to 256 bytes, or to its elements where it is a part that nobody lays a layout over. Where the memory is
/// a device's, all that holds for work of that device.
pub unsafe trait Memory: Send + Sync {
    /// Its first byte.
    fn start(&self) -> NonNull<u8>;
    /// Its length in bytes.
    fn bytes(&self) -> usize;
}

/// Zeroed memory on the heap, aligned to 4096 bytes.
pub struct HeapMemory {
    start: NonNull<u8>,
    layout: Layout,
}

impl HeapMemory {
    /// Allocates `bytes` bytes of zeros (at least one).
    pub fn new(bytes: usize) -> Result<HeapMemory, AutogradError> {
        let layout = Layout::from_size_align(bytes.max(1), 4096)
            .map_err(|_| AutogradError::Shape(format!("cannot allocate {bytes} bytes")))?;
        // SAFETY: the layout has a size of at least one byte.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        Ok(HeapMemory { start, layout })
    }
}

impl Drop for HeapMemory {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this very layout, freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

// SAFETY: plain memory without thread affinity; who may touch it when is the buffer's contract.
unsafe impl Send for HeapMemory {}
// SAFETY: as above.
unsafe impl Sync for HeapMemory {}
// SAFETY: the allocation is owned by the value, never moves, and is aligned to 4096 bytes.
unsafe impl Memory for HeapMemory {
    fn start(&self) -> NonNull<u8> {
        self.start
    }
    fn bytes(&self) -> usize {
        self.layout.size()
    }
}

/// An element type that a flat buffer can hold.
pub trait Element: Copy + Send + Sync + 'static {
    /// libtorch's name of it.
    const KIND: Kind;
}
impl Element for f32 {
    const KIND: Kind = Kind::Float;
}
impl Element for bf16 {
    const KIND: Kind = Kind::BFloat16;
}
impl Element for u8 {
    const KIND: Kind = Kind::Uint8;
}
impl Element for f64 {
    const KIND: Kind = Kind::Double;
}
impl Element for i64 {
    const KIND: Kind = Kind::Int64;
}

/// libtorch's number of a kind, for the kinds that flat memory holds.
pub(crate) fn kind_code(kind: Kind) -> Option<i8> {
    Some(match kind {
        Kind::Uint8 => 0,
        Kind::Int => 3,
        Kind::Int64 => 4,
        Kind::Float => 6,
        Kind::Double => 7,
        Kind::BFloat16 => 15,
        _ => return None,
    })
}

/// The first of `count` elements from `byte_offset` on, if they lie in the memory.
pub(crate) fn range_of<T: Element>(
    memory: &dyn Memory,
    byte_offset: usize,
    count: usize,
) -> Result<NonNull<T>, AutogradError> {
    let size = size_of::<T>();
    let end = count.checked_mul(size).and_then(|n| n.checked_add(byte_offset));
    if !byte_offset.is_multiple_of(size) || end.is_none_or(|end| end > memory.bytes()) {
        return Err(AutogradError::Shape(format!(
            "{count} elements of {size} bytes at byte {byte_offset} do not lie in a buffer of {} bytes",
            memory.bytes()
        )));
    }
    // SAFETY: the offset lies inside the memory, as checked above.
    Ok(unsafe { memory.start().add(byte_offset) }.cast())
}

/// A tensor of `sizes` over memory from `byte_offset` on, which lies on `device`; it keeps the memory alive.
pub(crate) fn view<T: Element>(
    memory: &Arc<dyn Memory>,
    device: Device,
    byte_offset: usize,
    sizes: &[i64],
) -> Result<Tensor, AutogradError> {
    let place = match device {
        Device::Cpu => Some(-1),
        Device::Cuda(index) => i8::try_from(index).ok(),
        _ => None,
    };
    let (Some(place), Some(kind)) = (place, kind_code(T::KIND)) else {
        return Err(AutogradError::Shape(format!(
            "flat memory lies on the CPU or on a CUDA device and holds numbers, not {:?} on {device:?}",
            T::KIND
        )));
    };
    let count = sizes.iter().product::<i64>() as usize;
    let data = range_of::<T>(memory.as_ref(), byte_offset, count)?;
    let keep = Box::into_raw(Box::new(Arc::clone(memory)));
    let mut out: *mut C_tensor = std::ptr::null_mut();
    // SAFETY: the memory outlives the tensor, whose deleter drops `keep`; the range was checked; `sizes` is copied by
    // the call.
    let code = unsafe {
        lockstep_over_memory(
            data.as_ptr().cast(),
            sizes.as_ptr(),
            sizes.len() as i64,
            kind,
            place,
            drop_memory,
            keep.cast(),
            &mut out,
        )
    };
    check("a view of flat memory", code)?;
    // SAFETY: the call succeeded and made a new tensor that we own.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// A piece of memory with views as tensors and slices. Clones share the memory.
#[derive(Clone)]
pub struct FlatBuffer {
    memory: Arc<dyn Memory>,
}

extern "C" fn drop_memory(context: *mut c_void) {
    // SAFETY: the context is an `Arc<dyn Memory>` boxed by `tensor`, dropped once by the tensor's storage.
    drop(unsafe { Box::from_raw(context.cast::<Arc<dyn Memory>>()) });
}

impl FlatBuffer {
    /// A buffer over `memory`.
    pub fn new(memory: Arc<dyn Memory>) -> FlatBuffer {
        FlatBuffer { memory }
    }

    /// A buffer of `bytes` zero bytes on the heap.
    pub fn heap(bytes: usize) -> Result<FlatBuffer, AutogradError> {
        Ok(FlatBuffer::new(Arc::new(HeapMemory::new(bytes)?)))
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    fn at<T: Element>(&self, byte_offset: usize, count: usize) -> Result<NonNull<T>, AutogradError> {
        range_of(self.memory.as_ref(), byte_offset, count)
    }

    /// A tensor of `sizes` over the memory from `byte_offset` on; it keeps the memory alive.
    pub fn tensor<T: Element>(&self, byte_offset: usize, sizes: &[i64]) -> Result<Tensor, AutogradError> {
        view::<T>(&self.memory, Device::Cpu, byte_offset, sizes)
    }

    /// The elements from `byte_offset` on.
    pub fn slice<T: Element>(&self, byte_offset: usize, count: usize) -> Result<&[T], AutogradError> {
        let data = self.at::<T>(byte_offset, count)?;
        // SAFETY: in range and aligned (`at`), initialised (zeroed or written as plain numbers), and not written while
        // borrowed: one device thread uses the buffer.
        Ok(unsafe { std::slice::from_raw_parts(data.as_ptr(), count) })
    }

    /// The elements from `byte_offset` on, to be written.
    pub fn slice_mut<T: Element>(&mut self, byte_offset: usize, count: usize) -> Result<&mut [T], AutogradError> {
        let data = self.at::<T>(byte_offset, count)?;
        // SAFETY: as in `slice`; the exclusive borrow of this handle and the one-thread rule keep others away.
        Ok(unsafe { std::slice::from_raw_parts_mut(data.as_ptr(), count) })
    }
}

fn checked<T: Element>(tensor: &Tensor) -> (*mut T, usize) {
    assert!(
        tensor.kind() == T::KIND && tensor.is_contiguous() && tensor.device() == Device::Cpu,
        "a host slice needs a contiguous {:?} tensor on the CPU, not {tensor:?}",
        T::KIND
    );
    let count = tensor.numel();
    let data = if count == 0 {
        NonNull::dangling().as_ptr()
    } else {
        tensor.data_ptr().cast()
    };
    (data, count)
}

/// The elements of a contiguous CPU tensor, row-major.
///
/// # Panics
/// If the tensor is of another kind, not contiguous, or not on the CPU: a bug of the caller.
pub fn elements<T: Element>(tensor: &Tensor) -> &[T] {
    let (data, count) = checked::<T>(tensor);
    // SAFETY: kind, contiguity and device were checked; the borrow keeps the tensor, and so its storage, alive.
    unsafe { std::slice::from_raw_parts(data, count) }
}

/// The elements of a contiguous CPU tensor, to be written.
///
/// # Panics
/// As [`elements`].
pub fn elements_mut<T: Element>(tensor: &mut Tensor) -> &mut [T] {
    let (data, count) = checked::<T>(tensor);
    // SAFETY: as in `elements`; the exclusive borrow of the handle stands for the storage, which the caller has not
    // handed out to another slice.
    unsafe { std::slice::from_raw_parts_mut(data, count) }
}

/// Tells the C allocator, for the whole process, to keep freed memory and to use one arena.
///
/// Activations of some hundred MiB are allocated and freed each step; without this each one is mapped anew and its
/// pages are faulted in and zeroed by the kernel, which costs a quarter of the product that fills it. Returns whether
/// the allocator agreed.
pub fn keep_freed_memory() -> bool {
    unsafe extern "C" {
        fn mallopt(parameter: i32, value: i32) -> i32;
    }
    const TRIM_THRESHOLD: i32 = -1;
    const TOP_PAD: i32 = -2;
    const MMAP_MAX: i32 = -4;
    const ARENA_MAX: i32 = -8;
    // SAFETY: mallopt only sets numbers of the allocator; it is called before the process has other threads that
    // allocate large blocks, and is thread-safe in glibc anyway.
    unsafe {
        mallopt(MMAP_MAX, 0) == 1
            && mallopt(TRIM_THRESHOLD, i32::MAX) == 1
            && mallopt(TOP_PAD, 16 << 20) == 1
            && mallopt(ARENA_MAX, 1) == 1
    }
}

// SAFETY: the hold keeps the mapping at its address until it is dropped; mappings are page aligned, and writable by this
// process since the hold is one of a rank's own memory.
unsafe impl Memory for nccl_host::MemoryHold {
    fn start(&self) -> NonNull<u8> {
        self.ptr()
    }
    fn bytes(&self) -> usize {
        self.len()
    }
}

// SAFETY: a device's memory keeps its address for as long as the value lives; its maker has promised the border
// (`Accelerator::allocate`).
unsafe impl Memory for DeviceMemory {
    fn start(&self) -> NonNull<u8> {
        NonNull::new(self.pointer().address().cast()).unwrap_or(NonNull::dangling())
    }
    fn bytes(&self) -> usize {
        self.pointer().bytes()
    }
}

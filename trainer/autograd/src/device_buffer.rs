//! Flat memory on a device: allocated once by libtorch's allocator, seen as tensors by byte offset and element type.
//!
//! The views are as those of a `FlatBuffer`: tensors of their own over one memory, without a common version counter, so
//! that writing a slot does not disturb what autograd saved of another. Streams order who touches what when.

use std::ptr::NonNull;
use std::sync::Arc;

use lockstep_collective::DeviceMemory;
use nccl_rs::DevicePointer;
use tch::{Device, Kind, Tensor};

use crate::device::DeviceError;
use crate::memory::view;
use crate::{AutogradError, Element, Memory};

/// Borders of tensors in every layout, in bytes.
const ALIGNMENT: usize = 256;

/// Bytes of libtorch's allocator, and the part of them that begins on a border.
struct Allocation {
    storage: Tensor,
    skipped: usize,
    bytes: usize,
}

// SAFETY: the tensor is neither read nor changed after it was made; it only keeps the memory. Who may touch the memory
// when is the buffer's contract.
unsafe impl Sync for Allocation {}
// SAFETY: the storage keeps its address until it is dropped; `new` made room for the bytes behind the border.
unsafe impl Memory for Allocation {
    fn start(&self) -> NonNull<u8> {
        let first = self.storage.data_ptr().cast::<u8>().wrapping_add(self.skipped);
        NonNull::new(first).unwrap_or(NonNull::dangling())
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A tensor that only keeps its memory.
struct Kept(#[expect(dead_code, reason = "it is there to be dropped")] Tensor);

// SAFETY: the tensor is never touched again, it only keeps the memory.
unsafe impl Sync for Kept {}

/// The memory of a contiguous tensor, wherever it lies, for transfers that take addresses. It stays for as long as the value
/// lives.
///
/// # Errors
/// The tensor has gaps.
pub fn memory_of(tensor: &Tensor) -> Result<DeviceMemory, AutogradError> {
    if !tensor.is_contiguous() {
        return Err(AutogradError::Shape(format!(
            "a transfer needs memory without gaps, and this tensor has some: {tensor:?}"
        )));
    }
    let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
    // SAFETY: a contiguous tensor has so many bytes from its first element on, and it is kept below; who touches them when is
    // ordered by streams.
    let pointer = unsafe { DevicePointer::new(tensor.data_ptr(), bytes) };
    Ok(DeviceMemory::new(pointer, Arc::new(Kept(tensor.shallow_clone()))))
}

/// Zeroed memory on one device (a GPU, or the CPU), 256-byte aligned, with views as tensors. Clones share the memory.
#[derive(Clone)]
pub struct DeviceBuffer {
    memory: Arc<dyn Memory>,
    device: Device,
}

impl DeviceBuffer {
    /// Allocates `bytes` bytes of zeros on `device`; on a GPU they are zeroed on the current stream.
    pub fn zeros(bytes: usize, device: Device) -> Result<DeviceBuffer, DeviceError> {
        let room = i64::try_from(bytes.saturating_add(ALIGNMENT))
            .map_err(|_| DeviceError::Shape(format!("a buffer of {bytes} bytes is larger than any memory")))?;
        let storage = Tensor::f_zeros([room], (Kind::Uint8, device))
            .map_err(|error| DeviceError::of_tch("DeviceBuffer::zeros", &error))?;
        let skipped = storage.data_ptr().cast::<u8>().align_offset(ALIGNMENT);
        Ok(DeviceBuffer {
            memory: Arc::new(Allocation {
                storage,
                skipped,
                bytes,
            }),
            device,
        })
    }

    /// A buffer over memory that is there already and lies on `device`.
    pub fn over(memory: Arc<dyn Memory>, device: Device) -> DeviceBuffer {
        DeviceBuffer { memory, device }
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// A tensor of `sizes` over the memory from `byte_offset` on; it keeps the memory alive.
    pub fn tensor<T: Element>(&self, byte_offset: usize, sizes: &[i64]) -> Result<Tensor, AutogradError> {
        view::<T>(&self.memory, self.device, byte_offset, sizes)
    }

    /// The address on the device of `bytes` bytes from `byte_offset` on, for transfers and kernels that take pointers.
    /// It holds as long as the buffer does; the host cannot follow it where the device is a GPU.
    pub fn address(&self, byte_offset: usize, bytes: usize) -> Result<NonNull<u8>, AutogradError> {
        crate::memory::range_of::<u8>(self.memory.as_ref(), byte_offset, bytes)
    }
}

//! What a backend needs of a device that has memory of its own: memory, streams that NCCL knows, additions and copies.
//!
//! Everything that takes a stream returns at once and is done in the order of that stream, together with what NCCL puts there.
//! So a caller asks for it only after NCCL has said that what comes before is on the stream. Addresses are
//! [`DevicePointer`]s: who made one has promised that the memory is there; a [`DeviceMemory`] keeps it there.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use nccl_rs::DevicePointer;

use crate::device::{Device, Recorded, Stream};
use crate::error::CollectiveError;

/// Memory of a device, freed when the last copy of this value is dropped.
#[derive(Clone)]
pub struct DeviceMemory {
    pointer: DevicePointer,
    _keeper: Arc<dyn Any + Send + Sync>,
}

impl DeviceMemory {
    /// The memory at `pointer`, which is good for as long as `keeper` lives.
    pub fn new(pointer: DevicePointer, keeper: Arc<dyn Any + Send + Sync>) -> DeviceMemory {
        DeviceMemory {
            pointer,
            _keeper: keeper,
        }
    }

    /// The whole of it.
    pub fn pointer(&self) -> DevicePointer {
        self.pointer
    }
}

/// Host memory that a device copies from and to by itself (page-locked), in 64-bit words. A word is read only when the copy
/// to it has ended, and written only when the copies from it have.
pub trait Pinned: Send + Sync {
    /// All words.
    fn words(&self) -> &[AtomicU64];
}

/// Elements on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// float32.
    Float32(DevicePointer),
    /// bfloat16.
    Bf16(DevicePointer),
}

/// A device with its own memory, used by several threads of one process.
pub trait Accelerator: Device {
    /// Memory of the device: zeroed, on a 256-byte border. It waits until that is done.
    ///
    /// # Errors
    /// No memory left; it says how much was asked for, and for what (`name`).
    fn allocate(&self, name: &str, bytes: usize) -> Result<DeviceMemory, CollectiveError>;

    /// Page-locked memory of the host, zeroed.
    ///
    /// # Errors
    /// No memory left.
    fn allocate_pinned(&self, words: usize) -> Result<Arc<dyn Pinned>, CollectiveError>;

    /// The handle by which NCCL knows a stream; the same for the life of the process.
    fn native(&self, stream: Stream) -> nccl_rs::Stream;

    /// `sum[i] = left[i] + right[i]` in float32, plain IEEE additions; with `round` each sum is then rounded to the nearest
    /// bfloat16 (ties to even) and stays float32. `sum` is float32; an operand may be the same memory, never overlap it
    /// otherwise. All have as many elements as `sum`.
    ///
    /// # Errors
    /// The device refuses.
    fn add(
        &self,
        sum: DevicePointer,
        left: Operand,
        right: Operand,
        round: bool,
        stream: Stream,
    ) -> Result<(), CollectiveError>;

    /// Writes float32 elements that are bfloat16 values already as bfloat16: the upper half of each.
    ///
    /// # Errors
    /// The device refuses.
    fn narrow(&self, halves: DevicePointer, floats: DevicePointer, stream: Stream) -> Result<(), CollectiveError>;

    /// Copies all bytes at `from` into `to`, from its word `first` on. Both stay until the copy has ended: the device keeps
    /// `to`, the caller the other.
    ///
    /// # Errors
    /// The device refuses.
    fn copy_to_host(
        &self,
        from: DevicePointer,
        to: &Arc<dyn Pinned>,
        first: usize,
        stream: Stream,
    ) -> Result<(), CollectiveError>;

    /// Copies from word `first` of `from` on as many bytes as `to` has. As [`Accelerator::copy_to_host`].
    ///
    /// # Errors
    /// The device refuses.
    fn copy_to_device(
        &self,
        from: &Arc<dyn Pinned>,
        first: usize,
        to: DevicePointer,
        stream: Stream,
    ) -> Result<(), CollectiveError>;

    /// Whether all work before the mark has ended. It does not wait.
    ///
    /// # Errors
    /// Work on the device has failed.
    fn is_done(&self, recorded: &Recorded) -> Result<bool, CollectiveError>;
}

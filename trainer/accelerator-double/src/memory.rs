//! The memory of the device, and the page-locked memory beside it: both are ordinary memory here.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use lockstep_collective::{CollectiveError, DeviceMemory, Pinned};
use nccl_host::HostMemory;
use nccl_rs::DevicePointer;

/// Zeroed memory on a border of pages.
pub(crate) fn allocate(bytes: usize) -> Result<DeviceMemory, CollectiveError> {
    let memory = HostMemory::anonymous(bytes)?;
    let address = memory.ptr().as_ptr().cast::<c_void>();
    // SAFETY: so many bytes, mapped for as long as the keeper below lives, which whoever uses the pointer holds; nobody has a
    // view of the memory, and who touches it does so in the order of a stream.
    let pointer = unsafe { DevicePointer::new(address, bytes) };
    Ok(DeviceMemory::new(pointer, Arc::new(memory.hold())))
}

/// Words that host and device share.
pub(crate) struct PinnedWords(Box<[AtomicU64]>);

impl PinnedWords {
    pub(crate) fn new(words: usize) -> PinnedWords {
        PinnedWords((0..words).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Pinned for PinnedWords {
    fn words(&self) -> &[AtomicU64] {
        &self.0
    }
}

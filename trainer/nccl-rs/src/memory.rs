//! Device memory from NCCL's own allocator, which allows zero-copy operations on it when it is registered.

use std::ffi::c_void;

use crate::buffer::DevicePointer;
use crate::error::Error;
use crate::library::Nccl;

/// Device memory of `ncclMemAlloc`, freed when dropped.
#[derive(Debug)]
pub struct DeviceMemory {
    nccl: Nccl,
    address: *mut c_void,
    bytes: usize,
}

// SAFETY: an allocation that no thread owns; CUDA frees it from any.
unsafe impl Send for DeviceMemory {}

impl Nccl {
    /// Allocates `bytes` bytes on this thread's current device (`ncclMemAlloc`).
    ///
    /// ```no_run
    /// # let nccl = nccl_rs::Nccl::load()?;
    /// let memory = nccl.allocate(1 << 20)?;
    /// memory.free()?;
    /// # Ok::<(), nccl_rs::Error>(())
    /// ```
    ///
    /// # Errors
    /// Out of memory and the like: [`crate::Code::UnhandledCuda`].
    pub fn allocate(&self, bytes: usize) -> Result<DeviceMemory, Error> {
        let mut address = std::ptr::null_mut();
        // SAFETY: it writes one pointer.
        let answer = unsafe { (self.api.mem_alloc)(&raw mut address, bytes) };
        self.checked("ncclMemAlloc", answer)?;
        Ok(DeviceMemory {
            nccl: *self,
            address,
            bytes,
        })
    }
}

impl DeviceMemory {
    /// The whole of it.
    ///
    /// ```no_run
    /// # let nccl = nccl_rs::Nccl::load()?;
    /// let memory = nccl.allocate(4096)?;
    /// // SAFETY: `memory` is dropped after the communicator.
    /// let pointer = unsafe { memory.pointer() };
    /// # Ok::<(), nccl_rs::Error>(())
    /// ```
    ///
    /// # Safety
    /// As for [`DevicePointer::new`]; above all, the memory must not be dropped too early.
    pub unsafe fn pointer(&self) -> DevicePointer {
        // SAFETY: the length is the allocation's; the rest is the caller's promise.
        unsafe { DevicePointer::new(self.address, self.bytes) }
    }

    /// Frees it and says whether that worked (`ncclMemFree`); dropping does the same in silence.
    ///
    /// # Errors
    /// [`crate::Code::UnhandledCuda`].
    pub fn free(mut self) -> Result<(), Error> {
        let answer = self.release();
        self.nccl.checked("ncclMemFree", answer).map(|_| ())
    }

    fn release(&mut self) -> crate::raw::ResultCode {
        let address = std::mem::replace(&mut self.address, std::ptr::null_mut());
        if address.is_null() {
            return crate::raw::SUCCESS;
        }
        // SAFETY: from `ncclMemAlloc`, and given back once, since the address is null from here on.
        unsafe { (self.nccl.api.mem_free)(address) }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.release();
    }
}

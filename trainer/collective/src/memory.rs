//! Where a buffer of a communicator lies.

use nccl_host::MemoryHold;

use crate::accelerator::DeviceMemory;
use crate::error::CollectiveError;

/// This rank's own memory of a buffer; it stays for as long as this value lives, even longer than the communicator.
#[derive(Clone)]
pub enum Memory {
    /// Memory of the host.
    Host(MemoryHold),
    /// Memory of a device.
    Device(DeviceMemory),
}

impl Memory {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Memory::Host(hold) => hold.len(),
            Memory::Device(memory) => memory.pointer().bytes(),
        }
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory of a backend that works on the host.
    ///
    /// # Errors
    /// It lies on a device.
    pub fn on_host(self) -> Result<MemoryHold, CollectiveError> {
        match self {
            Memory::Host(hold) => Ok(hold),
            Memory::Device(_) => Err(CollectiveError::misuse(
                "memory",
                "the buffer lies on a device where the caller works on the host's memory",
            )),
        }
    }

    /// The memory of a backend that works on a device.
    ///
    /// # Errors
    /// It lies on the host.
    pub fn on_device(self) -> Result<DeviceMemory, CollectiveError> {
        match self {
            Memory::Device(memory) => Ok(memory),
            Memory::Host(_) => Err(CollectiveError::misuse(
                "memory",
                "the buffer lies on the host where the caller works on a device's memory",
            )),
        }
    }
}

//! The flat memory of a rank, wherever it lies: working copies and gradient buffers.

use std::borrow::Cow;
use std::sync::Arc;

use lockstep_autograd::{AutogradError, DeviceBuffer, Element, FlatBuffer, Memory};
use tch::{Device, Tensor};

use crate::device::FlatTensors;
use crate::device::compute::Compute;
use crate::error::TrainerError;

impl FlatTensors for DeviceBuffer {
    fn view<T: Element>(&self, byte_offset: usize, sizes: &[i64]) -> Result<Tensor, AutogradError> {
        self.tensor::<T>(byte_offset, sizes)
    }
}

/// Flat memory, seen as slices and tensors or as tensors only. Clones share it.
#[derive(Clone)]
pub enum Flat {
    /// Memory of the host, for our kernels.
    Host(FlatBuffer),
    /// Memory that is used through tensors only.
    Device(DeviceBuffer),
}

impl Flat {
    /// Memory of a communicator, as `compute` uses it.
    ///
    /// # Errors
    /// It lies on a device, and our kernels are to work on it.
    pub fn of(memory: lockstep_collective::Memory, compute: &Compute) -> Result<Flat, TrainerError> {
        match (memory, compute) {
            (
                lockstep_collective::Memory::Device(memory),
                Compute::HostTensors | Compute::HostTensorsOver(_) | Compute::Gpu(_),
            ) => Ok(Flat::over(Arc::new(memory), compute)),
            (memory, _) => Ok(Flat::over(Arc::new(memory.on_host()?), compute)),
        }
    }

    /// Memory that lies where `compute` computes.
    pub fn over(memory: Arc<dyn Memory>, compute: &Compute) -> Flat {
        match compute {
            Compute::Host => Flat::Host(FlatBuffer::new(memory)),
            Compute::HostTensors | Compute::HostTensorsOver(_) | Compute::Gpu(_) => {
                Flat::Device(DeviceBuffer::over(memory, compute.device()))
            }
        }
    }

    /// Float32 elements as slices on the host. From a device they are copied, which waits for it: not in a step.
    pub fn floats(&self, byte_offset: usize, count: usize) -> Result<Cow<'_, [f32]>, TrainerError> {
        match self {
            Flat::Host(buffer) => Ok(Cow::Borrowed(buffer.slice::<f32>(byte_offset, count)?)),
            Flat::Device(buffer) => {
                let values = buffer.tensor::<f32>(byte_offset, &[count as i64])?;
                Ok(Cow::Owned(Vec::try_from(values.f_to_device(Device::Cpu)?)?))
            }
        }
    }
}

impl FlatTensors for Flat {
    fn view<T: Element>(&self, byte_offset: usize, sizes: &[i64]) -> Result<Tensor, AutogradError> {
        match self {
            Flat::Host(buffer) => buffer.view::<T>(byte_offset, sizes),
            Flat::Device(buffer) => buffer.view::<T>(byte_offset, sizes),
        }
    }
}

//! Where a rank computes, and what follows from it: the functions, the products, the memory.

use std::sync::Arc;

use lockstep_autograd::device::CollectiveDevice;
use lockstep_collective::{Accelerator, HostDevice};
use lockstep_optim::products::Products;
use tch::Device;

use crate::error::TrainerError;
use crate::model::arithmetic::Arithmetic;

/// Where a rank computes. A run stays with one kind: their bits differ.
#[derive(Clone)]
pub enum Compute {
    /// On the host, by our kernels over slices.
    Host,
    /// On the host, by libtorch's functions over tensors: everything that a GPU is given, without one.
    HostTensors,
    /// On the host as [`Compute::HostTensors`], with the streams, marks, memory and copies of a device whose tensors lie on
    /// the host: what a GPU is told, for those who watch what that is.
    HostTensorsOver(Arc<dyn Accelerator>),
    /// On a GPU, by libtorch's functions over tensors.
    Gpu(Arc<CollectiveDevice>),
}

impl std::fmt::Debug for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Compute::Host => f.write_str("Host"),
            Compute::HostTensors => f.write_str("HostTensors"),
            Compute::HostTensorsOver(_) => f.write_str("HostTensorsOver"),
            Compute::Gpu(gpu) => f.debug_tuple("Gpu").field(gpu).finish(),
        }
    }
}

impl Compute {
    /// Where tensors lie.
    pub fn device(&self) -> Device {
        match self {
            Compute::Host | Compute::HostTensors | Compute::HostTensorsOver(_) => Device::Cpu,
            Compute::Gpu(gpu) => gpu.cuda().device(),
        }
    }

    /// The functions that a model is made of.
    pub fn arithmetic(&self) -> Arithmetic {
        match self {
            Compute::Host => Arithmetic::Host,
            Compute::HostTensors | Compute::HostTensorsOver(_) | Compute::Gpu(_) => Arithmetic::Tensors,
        }
    }

    /// How products are made.
    pub fn products(&self, bf16: bool) -> Products {
        Products::for_device(bf16, self.device())
    }

    /// The device as collectives use it.
    pub fn collectives(&self) -> Arc<dyn lockstep_collective::Device> {
        match self.accelerator() {
            Some(accelerator) => accelerator,
            None => Arc::new(HostDevice),
        }
    }

    /// The device as a backend and readers of results use it, where it has streams of its own.
    pub fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        match self {
            Compute::Host | Compute::HostTensors => None,
            Compute::HostTensorsOver(device) => Some(Arc::clone(device)),
            Compute::Gpu(gpu) => Some(Arc::clone(gpu) as Arc<dyn Accelerator>),
        }
    }

    /// Waits until a device has done all that it was given. Not in a step.
    pub fn synchronize(&self) -> Result<(), TrainerError> {
        match self {
            Compute::Host | Compute::HostTensors | Compute::HostTensorsOver(_) => Ok(()),
            Compute::Gpu(gpu) => Ok(gpu.cuda().synchronize()?),
        }
    }

    /// Makes it the calling thread's device; the thread that makes steps says so once.
    pub fn enter(&self) -> Result<(), TrainerError> {
        Ok(self.collectives().enter()?)
    }
}

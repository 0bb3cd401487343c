//! Where a rank computes, and what follows from it: the functions, the products, the memory.

use std::sync::Arc;

use lockstep_autograd::device::CollectiveDevice;
use lockstep_collective::HostDevice;
use lockstep_optim::products::Products;
use tch::Device;

use crate::error::TrainerError;
use crate::model::arithmetic::Arithmetic;

/// Where a rank computes. A run stays with one kind: their bits differ.
#[derive(Clone, Debug)]
pub enum Compute {
    /// On the host, by our kernels over slices.
    Host,
    /// On the host, by libtorch's functions over tensors: everything that a GPU is given, without one.
    HostTensors,
    /// On a GPU, by libtorch's functions over tensors.
    Gpu(Arc<CollectiveDevice>),
}

impl Compute {
    /// Where tensors lie.
    pub fn device(&self) -> Device {
        match self {
            Compute::Host | Compute::HostTensors => Device::Cpu,
            Compute::Gpu(gpu) => gpu.cuda().device(),
        }
    }

    /// The functions that a model is made of.
    pub fn arithmetic(&self) -> Arithmetic {
        match self {
            Compute::Host => Arithmetic::Host,
            Compute::HostTensors | Compute::Gpu(_) => Arithmetic::Tensors,
        }
    }

    /// How products are made.
    pub fn products(&self, bf16: bool) -> Products {
        Products::for_device(bf16, self.device())
    }

    /// The device as collectives use it.
    pub fn collectives(&self) -> Arc<dyn lockstep_collective::Device> {
        match self {
            Compute::Host | Compute::HostTensors => Arc::new(HostDevice),
            Compute::Gpu(gpu) => Arc::clone(gpu) as Arc<dyn lockstep_collective::Device>,
        }
    }

    /// Waits until a device has done all that it was given. Not in a step.
    pub fn synchronize(&self) -> Result<(), TrainerError> {
        match self {
            Compute::Host | Compute::HostTensors => Ok(()),
            Compute::Gpu(gpu) => Ok(gpu.cuda().synchronize()?),
        }
    }

    /// Makes it the calling thread's device; the thread that makes steps says so once.
    pub fn enter(&self) -> Result<(), TrainerError> {
        Ok(self.collectives().enter()?)
    }
}

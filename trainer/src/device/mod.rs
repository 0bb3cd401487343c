//! What a rank holds where its device is not the host: the counterparts, over tensors, of what `step` does over slices.
//!
//! - this file: [`FlatTensors`], memory that a forward pass and the owners see as tensors
//! - [`owned`]: what a rank owns, and the passes over it
//! - [`pending`]: results that a pass has left on the device
//!
//! Data flows: flat memory → leaves and slots ([`crate::model::weights::Weights::in_buffers`]) → gradients → owned pieces →
//! results on the device → read once an exchange → the same slots as on the host.

pub mod owned;
pub mod pending;

use lockstep_autograd::{AutogradError, Element, FlatBuffer};
use tch::Tensor;

/// Flat memory of one device, seen as tensors.
pub trait FlatTensors {
    /// A contiguous tensor of `sizes` over the memory from `byte_offset` on. It keeps the memory alive.
    fn view<T: Element>(&self, byte_offset: usize, sizes: &[i64]) -> Result<Tensor, AutogradError>;
}

impl FlatTensors for FlatBuffer {
    fn view<T: Element>(&self, byte_offset: usize, sizes: &[i64]) -> Result<Tensor, AutogradError> {
        self.tensor::<T>(byte_offset, sizes)
    }
}

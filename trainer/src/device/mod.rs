//! What a rank holds where its device is not the host: the counterparts, over tensors, of what `step` does over slices.
//!
//! - this file: [`FlatTensors`], memory that a forward pass and the owners see as tensors, and its initial values
//! - [`owned`]: what a rank owns, and the passes over it
//! - [`shard`]: that or the host's pieces, with one face
//! - [`pending`]: results that a pass has left on the device
//!
//! Data flows: flat memory → leaves and slots ([`crate::model::weights::Weights::in_buffers`]) → gradients → owned pieces →
//! results on the device → read once an exchange → the same slots as on the host.

pub mod owned;
pub mod pending;
pub mod shard;

use lockstep_autograd::{AutogradError, Element, FlatBuffer};
use lockstep_kernels::real::bf16;
use tch::Tensor;

use crate::error::TrainerError;
use crate::sharding::layout::Place;

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

/// Writes a tensor's initial values (all of it, row-major) into its working copy, rounded to the copy's kind.
pub fn write_copy(working: &impl FlatTensors, place: &Place, initial: &[f32]) -> Result<(), TrainerError> {
    let sizes = [initial.len() as i64];
    let mut copy = match place.bf16 {
        true => working.view::<bf16>(place.working.start, &sizes)?,
        false => working.view::<f32>(place.working.start, &sizes)?,
    };
    Ok(copy.f_copy_(&Tensor::from_slice(initial))?)
}

//! What a rank holds where its device is not the host: the counterparts, over tensors, of what `step` does over slices.
//!
//! - this file: [`FlatTensors`], memory that a forward pass and the owners see as tensors, its initial values, and the
//!   additions of a lane program
//! - [`owned`]: what a rank owns, and the passes over it
//! - [`shard`]: that or the host's pieces, with one face
//! - [`pending`]: results that a pass has left on the device
//!
//! Data flows: flat memory → leaves and slots ([`crate::model::weights::Weights::in_buffers`]) → gradients → owned pieces →
//! results on the device → read once an exchange → the same slots as on the host.

pub mod owned;
pub mod pending;
pub mod shard;

use std::ops::Range;

use lockstep_autograd::{AutogradError, Element, FlatBuffer};
use lockstep_kernels::real::bf16;
use tch::{Kind, Tensor};

use crate::error::TrainerError;
use crate::sharding::layout::Place;
use crate::sharding::program::Action;

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

/// Does an addition or a rounding of a lane program on some elements of the gradient buffers, with the bits of the host's
/// (`crate::step::filling`).
pub fn close(gradients: &[impl FlatTensors], action: &Action, elements: &Range<usize>) -> Result<(), TrainerError> {
    let of = |buffer: usize| gradients[buffer].view::<f32>(elements.start * 4, &[elements.len() as i64]);
    match *action {
        Action::Add { into, from } => {
            let _ = of(into)?.f_add_(&of(from)?)?;
        }
        Action::Round { buffer } => {
            let mut sums = of(buffer)?;
            let rounded = sums.f_to_kind(Kind::BFloat16)?;
            sums.f_copy_(&rounded)?;
        }
        Action::Run { .. } => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::filling;

    #[test]
    fn lanes_are_added_and_rounded_with_the_bits_of_the_host() {
        let buffers = || -> Vec<FlatBuffer> {
            let new = |seed: usize| {
                let mut buffer = FlatBuffer::heap(4000).unwrap();
                for (i, value) in buffer.slice_mut::<f32>(0, 1000).unwrap().iter_mut().enumerate() {
                    *value = ((i * 7919 + seed * 104_729) % 20_011) as f32 / 3.0 - 3000.0;
                }
                // Half way between two bf16 numbers, below the smallest normal one, zero.
                let special = [1.003_906_3, 1.011_718_8, 1e-40, -0.0, 3e38];
                buffer.slice_mut::<f32>(800, 5).unwrap().copy_from_slice(&special);
                buffer
            };
            vec![new(1), new(2)]
        };
        let (mut host, device) = (buffers(), buffers());
        for action in [
            Action::Round { buffer: 1 },
            Action::Add { into: 0, from: 1 },
            Action::Round { buffer: 0 },
        ] {
            filling::close(&mut host, &action, &(100..900)).unwrap();
            close(&device, &action, &(100..900)).unwrap();
            for (host, device) in host.iter().zip(&device) {
                let bits = |buffer: &FlatBuffer| -> Vec<u32> {
                    let values = buffer.slice::<f32>(0, 1000).unwrap();
                    values.iter().map(|value| value.to_bits()).collect()
                };
                assert_eq!(bits(host), bits(device), "{action:?}");
            }
        }
    }
}

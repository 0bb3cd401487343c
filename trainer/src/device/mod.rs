//! What a rank holds where its device is not the host: the counterparts, over tensors, of what `step` does over slices.
//!
//! - this file: [`FlatTensors`], memory that a forward pass and the owners see as tensors, its initial values, and the
//!   additions of a lane program
//! - [`owned`]: what a rank owns, and the passes over it
//! - [`shard`]: that or the host's pieces, with one face
//! - [`statistics`]: how much of its memory is used, and what to do when there is none left
//! - [`pending`]: results that a pass has left on the device; [`reading`] brings them to the host
//! - [`compute`]: where a rank computes; [`opening`] opens it; [`memory`]: its flat memory there
//!
//! Data flows: flat memory → leaves and slots ([`crate::model::weights::Weights::in_buffers`]) → gradients → owned pieces →
//! results on the device → read once an exchange → the same slots as on the host.

pub mod compute;
pub mod memory;
pub mod opening;
pub mod owned;
pub mod pending;
pub mod reading;
pub mod shard;
pub mod statistics;

use std::ops::Range;

use lockstep_autograd::{AutogradError, DeviceBuffer, Element, FlatBuffer};
use lockstep_kernels::real::bf16;
use tch::Tensor;

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

/// Does an addition or a rounding of a lane program on some elements of the gradient buffers, with the bits of the host's.
/// `rounding` is bf16 memory of any length that a rounding goes through, part by part: nothing is allocated.
pub fn close(
    gradients: &[impl FlatTensors],
    rounding: Option<&DeviceBuffer>,
    action: &Action,
    elements: &Range<usize>,
) -> Result<(), TrainerError> {
    let of = |buffer: usize, part: &Range<usize>| gradients[buffer].view::<f32>(part.start * 4, &[part.len() as i64]);
    match *action {
        Action::Add { into, from } => {
            let _ = of(into, elements)?.f_add_(&of(from, elements)?)?;
        }
        Action::Round { buffer } => {
            let rounding = rounding.filter(|memory| memory.bytes() >= 2).ok_or_else(|| {
                TrainerError::Broken("sums are to be rounded, and no memory was made for it".to_owned())
            })?;
            let step = rounding.bytes() / 2;
            for start in elements.clone().step_by(step) {
                let part = start..elements.end.min(start + step);
                let mut sums = of(buffer, &part)?;
                let mut rounded = rounding.view::<bf16>(0, &[part.len() as i64])?;
                rounded.f_copy_(&sums)?;
                sums.f_copy_(&rounded)?;
            }
        }
        Action::Run { .. } => {}
    }
    Ok(())
}

/// Adds Σ g² of some elements of a gradient buffer to `sum` (float64), part by part through the float64 memory `table`, whose
/// length is a power of two: nothing is allocated. The order of additions follows from the number of elements alone, by halves.
pub fn square_sum(
    gradients: &impl FlatTensors,
    elements: &Range<usize>,
    table: &DeviceBuffer,
    sum: &mut Tensor,
) -> Result<(), TrainerError> {
    let room = (table.bytes() / 8).max(1);
    for start in elements.clone().step_by(room) {
        let length = room.min(elements.end - start);
        let mut width = length.next_power_of_two() as i64;
        let terms = table.view::<f64>(0, &[width])?;
        let mut first = terms.f_narrow(0, 0, length as i64)?;
        first.f_copy_(&gradients.view::<f32>(start * 4, &[length as i64])?)?;
        let _ = first.f_square_()?;
        let _ = terms.f_narrow(0, length as i64, width - length as i64)?.f_zero_()?;
        while width > 1 {
            width /= 2;
            let (left, right) = (terms.f_narrow(0, 0, width)?, terms.f_narrow(0, width, width)?);
            let _ = left.f_add_out(&left, &right)?;
        }
        let _ = sum.f_add_(&terms.f_narrow(0, 0, 1)?)?;
    }
    Ok(())
}

//! What of a piece outlives a step, array by array: what snapshots and checkpoints hold.
//!
//! A piece has a float32 master, a momentum, and what its method keeps besides. An array of the same length as the master
//! belongs to the same elements; `row_squares` (NorMuon) has one value a row and belongs to the tensor as a whole.

pub use lockstep_inventory::state::{MASTER, MOMENTUM, ROW_SQUARES, SECOND};
use tch::{Device, Kind, Tensor};

use crate::OptimError;

/// Takes an array, by its name.
pub type Take<'a> = dyn FnMut(&'static str, &[f32]) + 'a;
/// Fills an array, by its name.
pub type Fill<'a> = dyn FnMut(&'static str, &mut [f32]) + 'a;

/// Shows a tensor's values, wherever they lie. From a device they are copied, which waits for it.
pub(crate) fn show(name: &'static str, tensor: &Tensor, take: &mut Take<'_>) -> Result<(), OptimError> {
    let values = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
    take(name, lockstep_autograd::elements::<f32>(&values));
    Ok(())
}

/// Fills a tensor, wherever it lies.
pub(crate) fn fill(name: &'static str, tensor: &mut Tensor, values: &mut Fill<'_>) -> Result<(), OptimError> {
    let mut host = Tensor::f_zeros(tensor.size(), (Kind::Float, Device::Cpu))?;
    values(name, lockstep_autograd::elements_mut::<f32>(&mut host));
    tensor.f_copy_(&host)?;
    Ok(())
}

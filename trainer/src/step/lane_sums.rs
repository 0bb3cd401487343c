//! The additions and roundings of a lane program, over gradient buffers on the host or on a device.

use std::ops::Range;

use lockstep_autograd::{DeviceBuffer, FlatBuffer};
use lockstep_collective::round_to_bf16;
use lockstep_kernels::pointwise;

use crate::device;
use crate::device::compute::Compute;
use crate::device::memory::Flat;
use crate::error::TrainerError;
use crate::sharding::layout::Layout;
use crate::sharding::program::Action;

/// The gradient buffers of a rank, and what adding them needs. Clones share the memory; a hook has one of its own.
#[derive(Clone)]
pub struct LaneSums {
    gradients: Vec<Flat>,
    /// bf16, where sums are rounded on a device: nothing may be allocated in a hook.
    rounding: Option<DeviceBuffer>,
}

impl LaneSums {
    /// Over gradient buffers in a layout; `rounds` says whether sums are ever rounded.
    pub fn new(
        gradients: Vec<Flat>,
        layout: &Layout,
        compute: &Compute,
        rounds: bool,
    ) -> Result<LaneSums, TrainerError> {
        let largest = layout.buckets.iter().map(|bucket| bucket.elements.len()).max();
        let rounding = match (compute, rounds) {
            (Compute::Host, _) | (_, false) => None,
            (_, true) => Some(DeviceBuffer::zeros(largest.unwrap_or(0) * 2, compute.device())?),
        };
        Ok(LaneSums { gradients, rounding })
    }

    /// Does an addition or a rounding of a lane program on some elements.
    pub fn close(&mut self, action: &Action, elements: &Range<usize>) -> Result<(), TrainerError> {
        if let Some(Flat::Device(_)) = self.gradients.first() {
            return device::close(&self.gradients, self.rounding.as_ref(), action, elements);
        }
        match *action {
            Action::Add { into, from } => {
                let from = self.host(from)?.clone();
                let into = self.host(into)?.slice_mut::<f32>(elements.start * 4, elements.len())?;
                pointwise::add::<f32>(into, from.slice(elements.start * 4, elements.len())?);
            }
            Action::Round { buffer } => {
                round_to_bf16(
                    self.host(buffer)?
                        .slice_mut::<f32>(elements.start * 4, elements.len())?,
                );
            }
            Action::Run { .. } => {}
        }
        Ok(())
    }

    fn host(&mut self, buffer: usize) -> Result<&mut FlatBuffer, TrainerError> {
        match &mut self.gradients[buffer] {
            Flat::Host(buffer) => Ok(buffer),
            Flat::Device(_) => Err(TrainerError::Broken(
                "one gradient buffer lies on a device and another one on the host".to_owned(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lockstep_autograd::{HeapMemory, Memory};
    use lockstep_config::{OptimizerSection, Precision};
    use lockstep_inventory::{Initial, Role, TensorSpec, treatments};

    use super::*;

    /// A layout of more than one bucket.
    fn layout() -> Layout {
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            shape: vec![1024, 1024],
            layer: 0,
            role: Role::Hidden,
            initial: Initial::Zeros,
        };
        let inventory: Vec<_> = ["a", "b"].map(spec).into();
        let keys = OptimizerSection::parse("method = \"muon\"".parse().unwrap(), "sums", Precision::Fp32).unwrap();
        Layout::new(&inventory, &treatments(&keys, &inventory, None).unwrap(), false)
    }

    #[test]
    fn lanes_are_added_and_rounded_with_the_bits_of_the_host() {
        let layout = layout();
        let all = layout.gradient_elements;
        assert!(
            layout.buckets.len() > 1,
            "a range longer than a bucket is rounded in parts"
        );
        let sums = |compute: &Compute| {
            let new = |seed: usize| {
                let memory: Arc<dyn Memory> = Arc::new(HeapMemory::new(all * 4).unwrap());
                let mut buffer = FlatBuffer::new(Arc::clone(&memory));
                for (i, value) in buffer.slice_mut::<f32>(0, all).unwrap().iter_mut().enumerate() {
                    *value = ((i * 7919 + seed * 104_729) % 20_011) as f32 / 3.0 - 3000.0;
                }
                // Half way between two bf16 numbers, below the smallest normal one, zero.
                let special = [1.003_906_3, 1.011_718_8, 1e-40, -0.0, 3e38];
                buffer.slice_mut::<f32>(800, 5).unwrap().copy_from_slice(&special);
                (Flat::over(memory, compute), buffer)
            };
            let (gradients, buffers): (Vec<_>, Vec<_>) = [new(1), new(2)].into_iter().unzip();
            (LaneSums::new(gradients, &layout, compute, true).unwrap(), buffers)
        };
        let (mut host, on_host) = sums(&Compute::Host);
        let (mut device, on_device) = sums(&Compute::HostTensors);
        for (action, elements) in [
            (Action::Round { buffer: 1 }, 100..900),
            (Action::Add { into: 0, from: 1 }, 100..900),
            (Action::Round { buffer: 0 }, 0..all),
        ] {
            host.close(&action, &elements).unwrap();
            device.close(&action, &elements).unwrap();
            for (host, device) in on_host.iter().zip(&on_device) {
                let bits = |buffer: &FlatBuffer| -> Vec<u32> {
                    let values = buffer.slice::<f32>(0, all).unwrap();
                    values.iter().map(|value| value.to_bits()).collect()
                };
                assert!(bits(host) == bits(device), "{action:?} on {elements:?}");
            }
        }
    }
}

//! The losses of a step's lanes, where the loss is: each micro-batch's is added into its lane's place on the device, and
//! the host reads all of them once, when it needs them for the slots.

use lockstep_optim::tensors::table::Table;
use tch::{Device, Kind, Tensor};

use crate::device::pending::Pending;
use crate::error::TrainerError;

/// Σ loss of each lane, float64, on one device.
pub struct LaneLosses {
    sums: Tensor,
}

impl LaneLosses {
    /// Zeros for `lanes` lanes.
    pub fn new(lanes: u32, device: Device) -> Result<LaneLosses, TrainerError> {
        Ok(LaneLosses {
            sums: Tensor::f_zeros([i64::from(lanes)], (Kind::Double, device))?,
        })
    }

    /// Where they are.
    pub fn device(&self) -> Device {
        self.sums.device()
    }

    /// Makes every lane's sum zero, for a new step.
    pub fn clear(&mut self) -> Result<(), TrainerError> {
        let _ = self.sums.f_zero_()?;
        Ok(())
    }

    /// Adds a micro-batch's loss (a float64 scalar on the device) to its lane's sum; nothing waits for it. Micro-batches
    /// of a lane come in their order.
    pub fn add(&mut self, lane: u32, loss: &Tensor) -> Result<(), TrainerError> {
        let _ = self.sums.f_select(0, i64::from(lane))?.f_add_(&loss.f_detach()?)?;
        Ok(())
    }

    /// The sum of each lane; nothing waits for it.
    pub fn sums(&self) -> Result<Pending<Vec<f64>>, TrainerError> {
        numbers(std::slice::from_ref(&self.sums), self.sums.device())
    }
}

/// Float64 numbers of tensors on one device, in their order; nothing waits for them.
pub fn numbers(tensors: &[Tensor], device: Device) -> Result<Pending<Vec<f64>>, TrainerError> {
    let mut table = Table::new(device);
    for tensor in tensors {
        table.put(tensor)?;
    }
    Pending::new(&table, |words| words.iter().map(|word| f64::from_bits(*word)).collect())
}

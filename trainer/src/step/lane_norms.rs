//! Σ g² of each lane's own gradient sum, before it is added to another lane's: what the noise of the gradient is estimated
//! from, without another collective.
//!
//! Data flows: a lane has run → its sum is measured where it lies, bucket by bucket → one number a lane, added in the order of
//! the buckets → the slots of the first exchange. The rank's last lane is measured as its buckets close, during backward.
//! Buckets are the same in every world, so the numbers have the same bits in every world.
//!
//! The estimate (McCandlish et al., arXiv 1812.06162, appendix A, for shares of any size): lane l has the share w_l of the
//! step's counted tokens, its mean gradient g_l estimates G with variance σ²/(b·w_l), and the step's g = Σ w_l·g_l with σ²/b.
//! So E Σ w_l‖g_l‖² − E‖g‖² = (K − 1)·tr σ²/b for K lanes with tokens, which gives both tr σ²/b and ‖G‖².

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use lockstep_autograd::{DeviceBuffer, FlatBuffer};
use lockstep_kernels::sums::square_sum;

use crate::device;
use crate::device::FlatTensors;
use crate::device::compute::Compute;
use crate::device::memory::Flat;
use crate::device::pending::Pending;
use crate::error::TrainerError;
use crate::model::lane_losses::numbers;
use crate::sharding::layout::Layout;

/// Float64 terms that are added at a time on a device: 8 MiB.
const TABLE: usize = 1 << 20;

/// The sums of a rank's lanes in one step. Clones share them; a hook has one of its own.
#[derive(Clone)]
pub struct LaneNorms {
    gradients: Vec<Flat>,
    buckets: Arc<[Range<usize>]>,
    lanes: usize,
    kept: Kept,
}

/// By lane and bucket.
#[derive(Clone)]
enum Kept {
    Host(Arc<Mutex<Vec<f64>>>),
    /// The sums, and memory for terms: nothing may be allocated in a hook.
    Device {
        sums: DeviceBuffer,
        table: DeviceBuffer,
    },
}

impl LaneNorms {
    /// Over gradient buffers in a layout, for `lanes` lanes.
    pub fn new(
        gradients: Vec<Flat>,
        layout: &Layout,
        compute: &Compute,
        lanes: u32,
    ) -> Result<LaneNorms, TrainerError> {
        let buckets: Arc<[Range<usize>]> = layout.buckets.iter().map(|bucket| bucket.elements.clone()).collect();
        let lanes = lanes as usize;
        let count = lanes * buckets.len();
        let kept = match compute {
            Compute::Host => Kept::Host(Arc::new(Mutex::new(vec![0.0; count]))),
            _ => {
                let largest = buckets.iter().map(|elements| elements.len()).max().unwrap_or(1);
                let terms = largest.next_power_of_two().min(TABLE);
                Kept::Device {
                    sums: DeviceBuffer::zeros(count * 8, compute.device())?,
                    table: DeviceBuffer::zeros(terms * 8, compute.device())?,
                }
            }
        };
        Ok(LaneNorms {
            gradients,
            buckets,
            lanes,
            kept,
        })
    }

    /// Makes every sum zero, for a new step.
    pub fn clear(&self) -> Result<(), TrainerError> {
        match &self.kept {
            Kept::Host(sums) => sums.lock().unwrap_or_else(PoisonError::into_inner).fill(0.0),
            Kept::Device { sums, .. } => {
                let _ = sums.view::<f64>(0, &[(sums.bytes() / 8) as i64])?.f_zero_()?;
            }
        }
        Ok(())
    }

    /// Measures a bucket of a lane's sum in a buffer. Nothing waits for it.
    pub fn measure(&self, lane: u32, buffer: usize, bucket: usize) -> Result<(), TrainerError> {
        let elements = &self.buckets[bucket];
        let place = lane as usize * self.buckets.len() + bucket;
        match (&self.kept, &self.gradients[buffer]) {
            (Kept::Host(sums), Flat::Host(buffer)) => {
                let sum = host_sum(buffer, elements)?;
                sums.lock().unwrap_or_else(PoisonError::into_inner)[place] = sum;
                Ok(())
            }
            (Kept::Device { sums, table }, buffer) => {
                device::square_sum(buffer, elements, table, &mut sums.view::<f64>(place * 8, &[1])?)
            }
            (Kept::Host(_), Flat::Device(_)) => Err(TrainerError::Broken(
                "a gradient buffer lies on a device, and lanes are measured on the host".to_owned(),
            )),
        }
    }

    /// Measures all of a lane's sum in a buffer.
    pub fn measure_all(&self, lane: u32, buffer: usize) -> Result<(), TrainerError> {
        (0..self.buckets.len()).try_for_each(|bucket| self.measure(lane, buffer, bucket))
    }

    /// Σ g² of each lane's sum; zero for lanes that have not run here. Nothing waits for it.
    pub fn sums(&self) -> Result<Pending<Vec<f64>>, TrainerError> {
        let (lanes, buckets) = (self.lanes, self.buckets.len());
        let by_lane = move |sums: &[f64]| -> Vec<f64> {
            let of_lane = |lane: usize| sums[lane * buckets..(lane + 1) * buckets].iter().sum();
            (0..lanes).map(of_lane).collect()
        };
        match &self.kept {
            Kept::Host(sums) => {
                let sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(Pending::Known(by_lane(&sums)))
            }
            Kept::Device { sums, .. } => {
                let sums = sums.view::<f64>(0, &[(lanes * buckets) as i64])?;
                Ok(numbers(std::slice::from_ref(&sums), sums.device())?.map(move |sums| by_lane(&sums)))
            }
        }
    }
}

fn host_sum(buffer: &FlatBuffer, elements: &Range<usize>) -> Result<f64, TrainerError> {
    // What is not finite makes the sum so, and the step is ruled on by its gradient.
    Ok(square_sum(buffer.slice::<f32>(elements.start * 4, elements.len())?).0)
}

/// What a step says about the noise of its gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// ‖G‖² of the expected gradient, without bias: the estimate may be below zero where the noise is large.
    pub square: f64,
    /// tr σ²/b: the variance of the step's mean gradient.
    pub variance_of_mean: f64,
}

impl Spread {
    /// From each lane's Σ g² and counted tokens, and ‖g‖² of the step's mean gradient; none where fewer than two lanes have
    /// tokens, or a number is not finite.
    pub fn of(lanes: impl Iterator<Item = (f64, u64)>, mean_square: f64) -> Option<Spread> {
        let (mut working, mut tokens, mut sum) = (0_u32, 0_u64, 0.0);
        for (square, counted) in lanes.filter(|(_, counted)| *counted > 0) {
            working += 1;
            tokens += counted;
            sum += square / counted as f64;
        }
        if working < 2 {
            return None;
        }
        let variance_of_mean = (sum / tokens as f64 - mean_square) / f64::from(working - 1);
        let square = mean_square - variance_of_mean;
        (variance_of_mean.is_finite() && square.is_finite()).then_some(Spread {
            square,
            variance_of_mean,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lockstep_autograd::{HeapMemory, Memory};
    use lockstep_config::{OptimizerSection, Precision};
    use lockstep_inventory::{Initial, Role, TensorSpec, treatments};

    use super::*;

    #[test]
    fn lanes_of_any_share_give_variance_and_square_as_two_sums_over_them() {
        // Means of four lanes in two dimensions, each with its tokens; the sums are what a lane adds up.
        let lanes: [([f64; 2], u64); 5] = [
            ([1.0, 2.0], 10),
            ([3.0, -1.0], 30),
            ([0.0, 0.0], 0),
            ([2.0, 0.5], 20),
            ([1.5, 1.0], 40),
        ];
        let total = 100.0;
        let mut mean = [0.0; 2];
        for (g, tokens) in &lanes {
            for (sum, value) in mean.iter_mut().zip(g) {
                *sum += value * *tokens as f64 / total;
            }
        }
        let square = |g: &[f64; 2]| g[0] * g[0] + g[1] * g[1];
        let between: f64 = (lanes.iter())
            .map(|(g, tokens)| *tokens as f64 / total * square(&[g[0] - mean[0], g[1] - mean[1]]))
            .sum();
        let sums = lanes
            .iter()
            .map(|(g, tokens)| (square(g) * (*tokens as f64).powi(2), *tokens));
        let spread = Spread::of(sums, square(&mean)).unwrap();
        assert!((spread.variance_of_mean - between / 3.0).abs() < 1e-12, "{spread:?}");
        assert!(
            (spread.square - (square(&mean) - between / 3.0)).abs() < 1e-12,
            "{spread:?}"
        );
    }

    #[test]
    fn one_lane_says_nothing_about_noise_nor_does_what_is_not_finite() {
        assert_eq!(Spread::of([(4.0, 2), (0.0, 0)].into_iter(), 1.0), None);
        assert_eq!(Spread::of([(f64::NAN, 2), (1.0, 2)].into_iter(), 1.0), None);
    }

    #[test]
    fn a_lane_is_measured_alike_on_the_host_and_through_tensors_and_bucket_by_bucket() {
        let spec = |name: &str, width: i64| TensorSpec {
            name: name.to_owned(),
            shape: vec![1024, width],
            layer: 0,
            role: Role::Hidden,
            initial: Initial::Zeros,
        };
        let inventory = [spec("a", 1024), spec("b", 1031)];
        let keys = OptimizerSection::parse("method = \"muon\"".parse().unwrap(), "norms", Precision::Fp32).unwrap();
        let layout = Layout::new(&inventory, &treatments(&keys, &inventory, None).unwrap(), false);
        let all = layout.gradient_elements;
        assert!(layout.buckets.len() > 1);
        let memory: Arc<dyn Memory> = Arc::new(HeapMemory::new(all * 4).unwrap());
        let mut values = FlatBuffer::new(Arc::clone(&memory));
        for (i, value) in values.slice_mut::<f32>(0, all).unwrap().iter_mut().enumerate() {
            *value = ((i * 7919) % 20_011) as f32 / 3.0 - 3000.0;
        }
        let expected: f64 = values
            .slice::<f32>(0, all)
            .unwrap()
            .iter()
            .map(|value| f64::from(*value) * f64::from(*value))
            .sum();
        let measured = [Compute::Host, Compute::HostTensors].map(|compute| {
            let buffers = vec![Flat::over(Arc::clone(&memory), &compute)];
            let norms = LaneNorms::new(buffers, &layout, &compute, 3).unwrap();
            norms.measure_all(0, 0).unwrap();
            norms.clear().unwrap();
            norms.measure_all(2, 0).unwrap();
            for bucket in (0..layout.buckets.len()).rev() {
                norms.measure(1, 0, bucket).unwrap();
            }
            norms.sums().unwrap().read().unwrap()
        });
        for sums in &measured {
            assert_eq!(sums[0], 0.0, "it was cleared");
            assert_eq!(sums[1].to_bits(), sums[2].to_bits(), "whenever a bucket is measured");
            // As near as a plain loop over two million terms is itself.
            assert!((sums[1] / expected - 1.0).abs() < 1e-10, "{sums:?} and {expected}");
        }
    }
}

//! A rank opens its GPU, in the one order that works: environment → libraries (`main` has opened them) → settings → device.
//!
//! What is missing is refused with one sentence: what, and what to do.

use std::sync::Arc;

use lockstep_autograd::cuda::{CudaLibraries, loaded_libraries, mixed_roots, open_libraries};
use lockstep_autograd::device::settings::{self, Attention, Products, Settings, environment_faults};
use lockstep_autograd::device::{CollectiveDevice, Cuda, DeviceError};
use lockstep_config::{Device, GPU_ENVIRONMENT, Precision, Reduction, RunConfig};
use lockstep_gpu_kernels::Driver;
use lockstep_proto::domain::Generation;
use nccl_rs::Nccl;

use crate::device::compute::Compute;
use crate::error::TrainerError;

/// A device that is open, and what it is.
#[derive(Debug)]
pub struct Opened {
    /// Where the rank computes.
    pub compute: Compute,
    /// What could give it other bits than a peer's; none for the host, whose facts are the processor's.
    pub facts: Option<String>,
}

/// Opens where a config computes: the host, or the GPU `index` among those that are visible.
///
/// # Errors
/// What a GPU needs is missing, in one sentence.
pub fn open(config: &RunConfig, index: usize) -> Result<Opened, TrainerError> {
    if config.run.device == Device::Cpu {
        return Ok(Opened {
            compute: Compute::Host,
            facts: None,
        });
    }
    let refused = |why: String| TrainerError::Refused(format!("run.device is \"cuda\", but {why}"));
    let environment = |name: &str| std::env::var(name).ok();
    if let libraries @ (CudaLibraries::Absent { .. } | CudaLibraries::TooLate) = open_libraries() {
        return Err(refused(libraries.to_string()));
    }
    let faults = environment_faults(GPU_ENVIRONMENT, environment);
    if !faults.is_empty() {
        return Err(refused(faults.join("; ")));
    }
    if let Some(warning) = mixed_roots(&loaded_libraries()) {
        tracing::warn!("{warning}");
    }
    let nccl = Nccl::load().map_err(|error| refused(error.to_string()))?;
    nccl.version().check().map_err(|error| refused(error.to_string()))?;
    chosen(config.run.precision).apply()?;
    let cuda = Cuda::open(index).map_err(|error| match error {
        DeviceError::NoDevice(why) => refused(why),
        other => other.into(),
    })?;
    let facts = facts(config, index)?;
    tracing::info!("computing on {facts}; NCCL {}", nccl.version());
    Ok(Opened {
        compute: Compute::Gpu(Arc::new(CollectiveDevice::new(cuda)?)),
        facts: Some(facts),
    })
}

/// The kernels that a precision is computed by: one for products, one for attention.
fn chosen(precision: Precision) -> Settings {
    Settings {
        products: Products::Cublas,
        attention: match precision {
            Precision::Bf16 => Attention::Flash,
            // The other one has no float32.
            Precision::Fp32 => Attention::MemoryEfficient,
        },
    }
}

/// What the device and its settings are, as one line of a fingerprint.
fn facts(config: &RunConfig, index: usize) -> Result<String, TrainerError> {
    let broken = |error: &dyn std::fmt::Display| {
        TrainerError::Broken(format!("the driver does not say what device {index} is: {error}"))
    };
    let driver = Driver::load().map_err(|error| broken(&error))?;
    let device = driver.facts(index).map_err(|error| broken(&error))?;
    let found: Vec<String> = settings::read()?
        .into_iter()
        .filter(|(name, _)| name == "products" || name.starts_with("attention"))
        .filter(|(_, value)| value != "false")
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    let nccl = nccl_environment(std::env::vars());
    if !nccl.is_empty() {
        tracing::info!("NCCL is told by the environment: {}", nccl.join(" "));
    }
    let mut line = format!(
        "gpu {} sm_{}{}, {} multiprocessors; {}",
        device.name,
        device.capability.0,
        device.capability.1,
        device.multiprocessors,
        found.join(", ")
    );
    // Where sums are left to the library's order, what tells it how to make them decides bits.
    if config.run.reduction == Reduction::Fast && !nccl.is_empty() {
        line += &format!("; {}", nccl.join(" "));
    }
    Ok(line)
}

/// `NAME=VALUE` of what NCCL reads, in the order of names.
fn nccl_environment(all: impl Iterator<Item = (String, String)>) -> Vec<String> {
    let mut found: Vec<String> = all
        .filter(|(name, _)| name.starts_with("NCCL_"))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    found.sort_unstable();
    found
}

/// The number of this member among the ranks of its host: how many of lower rank are there.
pub fn place_on_host(generation: &Generation, member: &str) -> usize {
    let Some(own) = generation.place_of(member) else {
        return 0;
    };
    let before = |place: &&lockstep_proto::domain::MemberPlace| place.host == own.host && place.rank < own.rank;
    generation.members.iter().filter(before).count()
}

#[cfg(test)]
mod tests {
    use lockstep_proto::domain::{MemberPlace, Stamp};

    use super::*;

    #[test]
    fn a_rank_takes_the_place_of_its_number_among_the_ranks_of_its_host() {
        let place = |rank: u32, host: &str| MemberPlace {
            member: format!("trainer-{rank}"),
            rank,
            lanes: rank..rank + 1,
            pid: 0,
            host: host.to_owned(),
            parts_address: String::new(),
        };
        let generation = Generation {
            stamp: Stamp::default(),
            members: vec![
                place(0, "a"),
                place(1, "b"),
                place(2, "a"),
                place(3, "b"),
                place(4, "a"),
            ],
            lanes: 5,
            resume: None,
            replay_through: 0,
            secret: [0; 32],
        };
        let places: Vec<usize> = (0..5)
            .map(|rank| place_on_host(&generation, &format!("trainer-{rank}")))
            .collect();
        assert_eq!(places, [0, 0, 1, 1, 2]);
    }

    #[test]
    fn what_nccl_is_told_is_listed_in_one_order() {
        let all = [("NCCL_PROTO", "LL"), ("PATH", "/bin"), ("NCCL_ALGO", "Ring")];
        let listed = nccl_environment(
            all.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        assert_eq!(listed, ["NCCL_ALGO=Ring", "NCCL_PROTO=LL"]);
    }
}

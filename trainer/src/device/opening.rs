//! A rank opens where it computes. A GPU in the one order that works: environment → libraries (`main` has opened them) → settings
//! → device. On the host there is only to say what its threads do with subnormal numbers.
//!
//! What is missing is refused with one sentence: what, and what to do.

use std::path::PathBuf;
use std::sync::Arc;

use lockstep_autograd::cuda::{CudaLibraries, loaded_libraries, mixed_roots, open_libraries, roots};
use lockstep_autograd::device::settings::{self, Attention, Products, Settings, environment_faults};
use lockstep_autograd::device::{CollectiveDevice, Cuda, DeviceError};
use lockstep_autograd::take_subnormals_for_zero;
use lockstep_config::{Device, GPU_ENVIRONMENT, Precision, Reduction, RunConfig};
use lockstep_gpu_kernels::Driver;
use lockstep_proto::domain::Generation;
use nccl_rs::{Nccl, Version};

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

/// Opens where a config computes: the host, or the GPU `index` among those that are visible. On a host this thread, and those that it
/// starts from now on, take subnormal numbers for zero; beside a GPU they keep them, as the GPU's additions do.
///
/// # Errors
/// What a GPU needs is missing, in one sentence.
pub fn open(config: &RunConfig, index: usize) -> Result<Opened, TrainerError> {
    if config.run.device == Device::Cpu {
        if !take_subnormals_for_zero(true) {
            tracing::warn!(
                "this processor cannot take subnormal numbers for zero; steps may become slower as the model learns"
            );
        }
        return Ok(Opened {
            compute: Compute::Host,
            facts: None,
        });
    }
    take_subnormals_for_zero(false);
    let gpu = open_gpu("run.device is \"cuda\"", config.run.precision, index)?;
    let facts = facts(config, index)?;
    tracing::info!("computing on {facts}");
    Ok(Opened {
        compute: Compute::Gpu(gpu),
        facts: Some(facts),
    })
}

/// Opens GPU `index` for a computation in `precision`. `asked` begins the sentence of a refusal: who asked for a GPU.
///
/// # Errors
/// As [`open`].
pub fn open_gpu(asked: &str, precision: Precision, index: usize) -> Result<Arc<CollectiveDevice>, TrainerError> {
    let refused = |why: String| TrainerError::Refused(format!("{asked}, but {why}"));
    require_libraries(asked)?;
    let faults = environment_faults(GPU_ENVIRONMENT, |name| std::env::var(name).ok());
    if !faults.is_empty() {
        return Err(refused(faults.join("; ")));
    }
    let nccl = Nccl::load().map_err(|error| refused(error.to_string()))?;
    nccl.version().check().map_err(|error| refused(error.to_string()))?;
    let libraries = loaded_libraries();
    tracing::info!("{}", where_from(&libraries, nccl.version()));
    if let Some(warning) = mixed_roots(&libraries) {
        tracing::warn!("{warning}");
    }
    chosen(precision).apply()?;
    let cuda = Cuda::open(index).map_err(|error| no_device(asked, error))?;
    Ok(Arc::new(CollectiveDevice::new(cuda)?))
}

/// Refuses where libtorch's CUDA libraries are not there.
fn require_libraries(asked: &str) -> Result<(), TrainerError> {
    match open_libraries() {
        CudaLibraries::Loaded => Ok(()),
        libraries => Err(TrainerError::Refused(format!("{asked}, but {libraries}"))),
    }
}

/// Refuses where there are not `count` GPUs, for a process that starts others which will open them. It opens none itself.
///
/// # Errors
/// As [`open`].
pub fn require_gpus(asked: &str, count: u32) -> Result<(), TrainerError> {
    require_libraries(asked)?;
    let visible = Cuda::count()?;
    if visible >= count as usize {
        return Ok(());
    }
    match Cuda::open(visible) {
        Err(error) if visible == 0 => Err(no_device(asked, error)),
        _ => Err(TrainerError::Refused(format!(
            "{asked} on {count} GPUs, but {visible} are visible; ask for fewer ranks with -n, or check CUDA_VISIBLE_DEVICES"
        ))),
    }
}

/// A device that is not there, in a whole sentence.
fn no_device(asked: &str, error: DeviceError) -> TrainerError {
    match error {
        DeviceError::NoDevice(why) => {
            // libtorch names the version that it found, not the one that would do.
            let needed = match why.contains("too old") {
                true => "; CUDA 13 needs driver 580 or newer",
                false => "",
            };
            TrainerError::Refused(format!("{asked}, but {}{needed}", why.trim_end_matches('.')))
        }
        other => other.into(),
    }
}

/// Which NCCL this process has, from which file, and where the other libraries come from: also where the device then
/// cannot be opened.
fn where_from(libraries: &[(String, PathBuf)], version: Version) -> String {
    let nccl = libraries.iter().find(|(name, _)| name.starts_with("libnccl"));
    let roots: Vec<String> = roots(libraries).iter().map(|root| root.display().to_string()).collect();
    format!(
        "NCCL {version} (code {}) from {}; {} CUDA libraries from {}",
        version.code(),
        nccl.map_or("an unknown file".to_owned(), |(_, path)| path.display().to_string()),
        libraries.len(),
        roots.join(" and ")
    )
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
    fn a_log_says_which_nccl_was_loaded_from_where() {
        let loaded = |path: &str| (path.rsplit('/').next().unwrap().to_owned(), PathBuf::from(path));
        let libraries = [
            loaded("/opt/site/nvidia/nccl/lib/libnccl.so.2"),
            loaded("/opt/site/torch/lib/libtorch_cuda.so"),
        ];
        assert_eq!(
            where_from(&libraries, Version::from_code(22907)),
            "NCCL 2.29.7 (code 22907) from /opt/site/nvidia/nccl/lib/libnccl.so.2; 2 CUDA libraries from /opt/site"
        );
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

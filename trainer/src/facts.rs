//! `facts`: what `lockstep doctor` cannot see from outside, as one JSON object: the libraries that are really loaded, the
//! instructions that kernels use, GPUs that answer, and the account of a config's memory.

use std::path::Path;

use lockstep_autograd::cuda::{CudaLibraries, open_libraries};
use lockstep_autograd::device::Cuda;
use lockstep_autograd::library_versions;
use lockstep_config::RunConfig;
use lockstep_data::Manifest;
use lockstep_doctor::facts::trainer::TrainerFacts;
use nccl_rs::Nccl;

use crate::error::TrainerError;
use crate::fingerprint::instruction_set;
use crate::memory_account::MemoryAccount;
use crate::train::Mpi;

/// What this trainer says of itself, and of a config for a world of `ranks` where one is given.
pub fn facts(
    config: Option<&Path>,
    ranks: u32,
    sets: &[String],
    mpi: Option<&'static dyn Mpi>,
) -> Result<String, TrainerError> {
    let cuda = open_libraries();
    let has_cuda = matches!(cuda, CudaLibraries::Loaded);
    let facts = TrainerFacts {
        version: TrainerFacts::VERSION,
        libraries: library_versions(),
        instruction_set: instruction_set().to_owned(),
        cuda: cuda.to_string(),
        gpus: match has_cuda {
            true => Cuda::count().map_or(0, |count| u32::try_from(count).unwrap_or(u32::MAX)),
            false => 0,
        },
        nccl: has_cuda.then(|| match Nccl::load() {
            Ok(nccl) => Ok(nccl.version().to_string()),
            Err(error) => Err(error.to_string()),
        }),
        mpi: mpi.map(Mpi::version),
        memory: match config {
            Some(path) => memory(&RunConfig::read(path, sets)?, ranks)?,
            None => Vec::new(),
        },
    };
    serde_json::to_string(&facts).map_err(|error| TrainerError::Broken(format!("facts cannot be written: {error}")))
}

/// Bytes of every rank, without activations: what `plan` counts, too.
fn memory(config: &RunConfig, ranks: u32) -> Result<Vec<u64>, TrainerError> {
    if ranks == 0 || ranks > config.run.lanes {
        return Err(TrainerError::Refused(format!(
            "-n {ranks} is not between 1 and run.lanes, which is {}",
            config.run.lanes
        )));
    }
    let vocabulary = match config.model.vocab {
        Some(vocabulary) => vocabulary,
        None => Manifest::read(&config.data.path)?.0.vocab,
    };
    let account = |rank| Ok(MemoryAccount::of(config, vocabulary, rank, ranks)?.bytes() as u64);
    (0..ranks).map(account).collect()
}

#[cfg(test)]
mod tests {
    use lockstep_doctor::Wanted;

    use super::*;

    /// The launcher, which has no libtorch, counts less: a run is refused only if this little is not there.
    #[test]
    fn what_the_launcher_counts_is_never_more_than_the_account() {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shakespeare.toml");
        let text = std::fs::read_to_string(example).unwrap();
        let before = text.split("[optimizer]").next().unwrap();
        for method in ["muonmax", "muon", "scion", "polargrad", "adamw", "sgd"] {
            for precision in ["bf16", "fp32"] {
                for ranks in [1, 2, 4] {
                    let text = format!("{before}[optimizer]\nmethod = \"{method}\"\n");
                    let sets = [format!("run.precision={precision}"), "model.vocab=256".to_owned()];
                    let config = RunConfig::parse(&text, "facts.rs", &sets).unwrap();
                    let account: u64 = memory(&config, ranks).unwrap().iter().sum();
                    let least = Wanted::of(&config, ranks, Some(256)).memory.unwrap().bytes;
                    let share = least as f64 / account as f64;
                    assert!(
                        (0.5..=1.0).contains(&share),
                        "{method} in {precision} on {ranks}: {least} of {account}"
                    );
                }
            }
        }
    }
}

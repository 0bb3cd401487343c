//! What only the trainer can tell, since it needs libtorch: asked as `lockstep-trainer facts`, which prints one object.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::facts::programs::answer;

/// What a trainer says of itself and of a config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainerFacts {
    /// Of this format.
    pub version: u32,
    /// libtorch and the libraries in it, as they name themselves.
    pub libraries: String,
    /// The instructions that its kernels use here.
    pub instruction_set: String,
    /// What came of opening libtorch's CUDA libraries.
    pub cuda: String,
    /// GPUs that it could open.
    pub gpus: u32,
    /// The NCCL that it would take, or why there is none. Nothing where there is no GPU.
    pub nccl: Option<Result<String, String>>,
    /// The MPI that it is linked with.
    pub mpi: Option<String>,
    /// Bytes of each rank by the account of the config, without activations.
    pub memory: Vec<u64>,
}

impl TrainerFacts {
    /// The version of this format.
    pub const VERSION: u32 = 1;

    /// Asks a trainer, about a config for so many ranks where one is given.
    ///
    /// # Errors
    /// As a part of a sentence.
    pub fn ask(trainer: &Path, config: Option<(&Path, u32, &[String])>) -> Result<TrainerFacts, String> {
        let mut command = Command::new(trainer);
        command.arg("facts");
        if let Some((path, ranks, sets)) = config {
            command.arg(path).args(["-n", &ranks.to_string()]);
            sets.iter().for_each(|set| {
                command.args(["--set", set]);
            });
        }
        let text = answer(&mut command, Duration::from_secs(60))?;
        let facts: TrainerFacts =
            serde_json::from_str(&text).map_err(|error| format!("what it says of itself cannot be read ({error})"))?;
        match facts.version {
            TrainerFacts::VERSION => Ok(facts),
            other => Err(format!(
                "it says what it is in version {other}, and this build reads version 1 only"
            )),
        }
    }
}

//! The errors of the trainer.

/// Why this rank cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// libtorch refused.
    #[error("libtorch: {0}")]
    Torch(String),
    /// The border to libtorch.
    #[error(transparent)]
    Autograd(#[from] lockstep_autograd::AutogradError),
    /// The device.
    #[error(transparent)]
    Device(#[from] lockstep_autograd::device::DeviceError),
    /// A device has no room for what the run needs: a whole sentence with the account.
    #[error("{0}")]
    OutOfMemory(String),
    /// The optimiser.
    #[error(transparent)]
    Optimiser(#[from] lockstep_optim::OptimError),
    /// A collective failed: a peer is gone, or the generation was aborted.
    #[error(transparent)]
    Collective(#[from] lockstep_collective::CollectiveError),
    /// The coordinator cannot be reached or ended the run.
    #[error(transparent)]
    Session(#[from] lockstep_session::SessionError),
    /// A part of a snapshot cannot be had.
    #[error(transparent)]
    Parts(#[from] lockstep_parts::PartsError),
    /// A checkpoint cannot be written or loaded.
    #[error(transparent)]
    Checkpoint(Box<lockstep_checkpoint::CheckpointError>),
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] lockstep_data::DataError),
    /// The config that the coordinator sent.
    #[error(transparent)]
    Config(#[from] lockstep_config::ConfigError),
    /// A file.
    #[error("{what} {path}: {source}")]
    File {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A step whose loss or gradient is not finite.
    #[error("{0}")]
    NotFinite(String),
    /// A step whose loss or gradient cannot be used, before which the run is to go back; every rank says the same.
    #[error("{reason}")]
    Unusable {
        /// The step.
        step: u64,
        /// One sentence.
        reason: String,
    },
    /// A bit in some rank's memory has changed by itself; every rank says the same.
    #[error("{}", .0.sentence)]
    Drift(crate::step::drift::Drift),
    /// This process's memory cannot be trusted, and the run goes on without it: start another one. A whole sentence.
    #[error("{0}")]
    SetApart(String),
    /// Something that was promised did not hold, or a file could not be written: a whole sentence. Not the user's input.
    #[error("{0}")]
    Broken(String),
    /// Input that cannot be used: a whole sentence.
    #[error("{0}")]
    Refused(String),
}

impl TrainerError {
    /// Whether memory of a device ran out; libtorch says so in words only.
    pub fn is_out_of_memory(&self) -> bool {
        let words = self.to_string();
        words.contains("CUDA out of memory") || words.contains("no memory left")
    }
}

impl From<lockstep_checkpoint::CheckpointError> for TrainerError {
    fn from(error: lockstep_checkpoint::CheckpointError) -> TrainerError {
        TrainerError::Checkpoint(Box::new(error))
    }
}

impl From<tch::TchError> for TrainerError {
    fn from(error: tch::TchError) -> TrainerError {
        let text = error.to_string();
        // libtorch appends its own stack to its sentence.
        TrainerError::Torch(
            text.split("\nException raised from")
                .next()
                .unwrap_or_default()
                .to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_ran_out_is_told_apart_whoever_says_it() {
        let torch = |text: &str| TrainerError::from(tch::TchError::Torch(text.to_owned()));
        let full = "CUDA out of memory. Tried to allocate 2.00 GiB.\nException raised from malloc";
        assert!(torch(full).is_out_of_memory());
        assert!(!torch("shapes differ").is_out_of_memory());
        let full = lockstep_autograd::device::DeviceError::OutOfMemory {
            what: "a test",
            text: full.to_owned(),
        };
        assert!(TrainerError::from(full).is_out_of_memory());
    }
}

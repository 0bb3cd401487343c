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
    /// The optimiser.
    #[error(transparent)]
    Optimiser(#[from] lockstep_optim::OptimError),
    /// A collective failed: a peer is gone, or the generation was aborted.
    #[error(transparent)]
    Collective(#[from] lockstep_collective::CollectiveError),
    /// The coordinator cannot be reached or ended the run.
    #[error(transparent)]
    Session(#[from] lockstep_session::SessionError),
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
    /// Something that was promised did not hold, or a file could not be written: a whole sentence. Not the user's input.
    #[error("{0}")]
    Broken(String),
    /// Input that cannot be used: a whole sentence.
    #[error("{0}")]
    Refused(String),
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

//! The errors of the optimisers.

/// Why an optimiser could not do its part of a step.
#[derive(Debug, thiserror::Error)]
pub enum OptimError {
    /// libtorch refused.
    #[error("libtorch, in the optimiser: {0}")]
    Torch(#[from] tch::TchError),
    /// A buffer did not fit.
    #[error(transparent)]
    Memory(#[from] lockstep_autograd::AutogradError),
    /// A matrix is to be applied whose polar factor was not computed in this step.
    #[error(
        "the hidden matrix {name} was to be applied without a polar factor of this step; the run stops rather than step without one"
    )]
    NoPolarFactor {
        /// The tensor.
        name: String,
    },
    /// A sum over all tensors is not a number.
    #[error("the model of the loss is not finite ({what}); no parameter has changed. Try a lower learning rate")]
    NotFinite {
        /// What was found.
        what: String,
    },
}

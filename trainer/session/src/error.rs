//! Why a session cannot go on.

use std::time::Duration;

use lockstep_proto::domain::Outcome;
use lockstep_security::CredentialError;

/// One sentence for the person who started the trainer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Not an address, or what is to be shown there cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// Nobody answered.
    #[error("no coordinator answered at {address} within {} s: {cause}", patience.as_secs_f64())]
    Unreachable {
        /// Where it should be.
        address: String,
        /// How long it was tried.
        patience: Duration,
        /// Of the last try.
        cause: String,
    },
    /// The coordinator refused this member or one of its messages.
    #[error("the coordinator refused this trainer: {reason}")]
    Refused {
        /// Its sentence.
        reason: String,
    },
    /// The coordinator ended the generation; another one may follow.
    #[error("the coordinator ended the generation: {reason}")]
    Aborted {
        /// Its sentence.
        reason: String,
    },
    /// The run is over for this member.
    #[error("the run is over: {reason}")]
    Released {
        /// How it ended.
        outcome: Outcome,
        /// The coordinator's sentence.
        reason: String,
    },
    /// The stream is gone.
    #[error("the connection to the coordinator at {address} broke: {cause}")]
    Broken {
        /// Where it was.
        address: String,
        /// What happened.
        cause: String,
    },
    /// Something did not come in time.
    #[error("{what} did not come within {} s", patience.as_secs_f64())]
    Deadline {
        /// What was waited for.
        what: &'static str,
        /// How long.
        patience: Duration,
    },
    /// The session's own thread could not be started.
    #[error("the session's thread could not be started: {cause}")]
    Thread {
        /// Of the system.
        cause: String,
    },
    /// The session was closed by its owner.
    #[error("the session is closed")]
    Closed,
}

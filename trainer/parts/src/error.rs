//! Why a part cannot be had.

use std::net::SocketAddr;

use crate::kept::Name;

/// Why a part cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// The server cannot start.
    #[error(
        "cannot serve the parts of snapshots at {address}: {cause}. Give the address of this host with --advertise"
    )]
    Serve {
        /// Where.
        address: SocketAddr,
        /// Of the system.
        cause: std::io::Error,
    },
    /// No member gave it.
    #[error("{name} cannot be fetched: {said}")]
    Nobody {
        /// The part.
        name: Name,
        /// What each member said.
        said: String,
    },
    /// A member did not give it.
    #[error("{0}")]
    Refused(String),
    /// It is not wanted any more.
    #[error("the generation is over")]
    Over,
}

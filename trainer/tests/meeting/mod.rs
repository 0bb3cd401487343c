//! How the ranks of a test, which are threads of one process, meet.

use std::sync::Arc;
use std::time::Duration;

use lockstep_collective::communication::{Communication, Overlap};
use lockstep_collective::{Aborter, Backend, HostDevice, connect};

/// The communication of one rank, on a thread of its own as in a run.
pub(crate) fn communicate(id: &[u8], rank: u32, size: u32) -> Communication {
    let backend = if size == 1 { Backend::Solo } else { Backend::Host };
    let id = id.to_vec();
    let connect = move || connect(backend, &id, rank, size, Duration::from_secs(30), &Aborter::new());
    Communication::start(Arc::new(HostDevice), Overlap::Thread, connect).unwrap()
}

//! The environment that a rank computes in: threads of the numeric libraries, and on GPUs what decides bits. These libraries
//! read it once, when they are loaded; so a rank that somebody else has started becomes itself again with it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use lockstep_config::{Device, RunConfig, prepare_for_gpu};

use crate::error::TrainerError;

/// Set once this has been done.
const PREPARED: &str = "LOCKSTEP_PREPARED";
/// How many threads the numeric libraries use.
const THREADS: [&str; 2] = ["OMP_NUM_THREADS", "MKL_NUM_THREADS"];

/// Makes sure of the environment that the config asks for. Where it is another one, this process begins anew with the same
/// words and the same number, and this does not return.
///
/// # Errors
/// The program cannot be started again.
pub(super) fn prepare(config: &RunConfig) -> Result<(), TrainerError> {
    let threads = config.run.intra_op_threads.to_string();
    let fits = THREADS
        .iter()
        .all(|name| std::env::var(name).ok().as_deref() == Some(&threads));
    let is_done = std::env::var_os(PREPARED).is_some();
    if is_done || fits && config.run.device == Device::Cpu {
        return Ok(());
    }
    let failed = |error: std::io::Error| {
        TrainerError::Broken(format!(
            "cannot start this program again with {threads} threads: {error}"
        ))
    };
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(std::env::args_os().skip(1)).env(PREPARED, "1");
    for name in THREADS {
        command.env(name, &threads);
    }
    if config.run.device == Device::Cuda {
        prepare_for_gpu(&mut command);
    }
    Err(failed(command.exec()))
}

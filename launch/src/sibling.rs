//! The trainer binary, which lies beside this one: what needs libtorch is its work.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::ending::Ending;

/// Overrides where the trainer binary is.
const TRAINER: &str = "LOCKSTEP_TRAINER";

/// Finds the trainer binary.
///
/// # Errors
/// It is not there; the sentence says how to build it.
pub(crate) fn trainer() -> Result<PathBuf, Ending> {
    let path = match std::env::var_os(TRAINER) {
        Some(path) => PathBuf::from(path),
        None => {
            let own = std::env::current_exe()
                .map_err(|error| Ending::Failed(format!("cannot tell where this program lies: {error}")))?;
            own.with_file_name("lockstep-trainer")
        }
    };
    if path.is_file() {
        return Ok(path);
    }
    Err(Ending::Failed(format!(
        "the trainer {} is not there; build it with `cargo xtask setup` and `cargo build --release`, or name it in {TRAINER}",
        path.display()
    )))
}

/// Becomes `lockstep-trainer COMMAND ARGUMENTS…`; returns only when that fails.
pub(crate) fn become_trainer(command: &str, arguments: &[OsString]) -> Ending {
    match trainer() {
        Err(ending) => ending,
        Ok(path) => {
            let error = Command::new(&path).arg(command).args(arguments).exec();
            Ending::Failed(format!("cannot start {}: {error}", path.display()))
        }
    }
}

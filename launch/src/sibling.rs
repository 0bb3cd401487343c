//! The trainer binary, which lies beside this one: what needs libtorch is its work.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use lockstep_doctor::gather::Programs;

use crate::ending::Ending;

/// Overrides where the trainer binary is.
const TRAINER: &str = "LOCKSTEP_TRAINER";
/// Overrides where the trainer with MPI is.
const MPI_TRAINER: &str = "LOCKSTEP_TRAINER_MPI";
/// Overrides which mpirun starts it.
const MPIRUN: &str = "LOCKSTEP_MPIRUN";

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

/// Finds the trainer that is linked with MPI.
///
/// # Errors
/// It is not there; the sentence says how to get it.
pub(crate) fn mpi_trainer() -> Result<PathBuf, Ending> {
    let trainer = match std::env::var_os(MPI_TRAINER) {
        Some(path) => PathBuf::from(path),
        None => {
            let own = std::env::current_exe()
                .map_err(|error| Ending::Failed(format!("cannot tell where this program lies: {error}")))?;
            own.with_file_name("lockstep-trainer-mpi")
        }
    };
    if trainer.is_file() {
        return Ok(trainer);
    }
    Err(Ending::BadInput(format!(
        "the trainer for MPI {} is not there; build it with `cargo xtask setup` and `cargo build --release -p lockstep-trainer-mpi`, or name it in {MPI_TRAINER}; `--backend host` needs no MPI",
        trainer.display()
    )))
}

/// Finds mpirun.
///
/// # Errors
/// It is not there; the sentence says how to get it.
pub(crate) fn mpirun() -> Result<PathBuf, Ending> {
    let name = std::env::var_os(MPIRUN).unwrap_or_else(|| "mpirun".into());
    found(&name).ok_or_else(|| {
        Ending::BadInput(format!(
            "the program {} is not there; install the MPI (for the backend mpi the one that lockstep-trainer-mpi is linked with; `cargo xtask setup` says how), or name its mpirun in {MPIRUN}; `lockstep run --backend host` needs no MPI",
            name.display()
        ))
    })
}

/// Where all of them are, or should be.
pub(crate) fn programs() -> Programs {
    let beside = |variable: &str, name: &str| match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe().unwrap_or_default().with_file_name(name),
    };
    let mpirun = std::env::var_os(MPIRUN).unwrap_or_else(|| "mpirun".into());
    Programs {
        trainer: beside(TRAINER, "lockstep-trainer"),
        mpi_trainer: beside(MPI_TRAINER, "lockstep-trainer-mpi"),
        mpirun: found(&mpirun).unwrap_or_else(|| mpirun.into()),
    }
}

/// A program by its path, or by its name on the search path.
pub(crate) fn found(name: &OsStr) -> Option<PathBuf> {
    let given = PathBuf::from(name);
    if given.components().count() > 1 {
        return Some(given).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
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

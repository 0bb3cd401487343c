//! How `lockstep run --backend mpi` starts its trainers: by one mpirun on this machine.
//!
//! All of it goes by the environment, which every MPI passes on to its ranks on this machine and in which each reads what is
//! meant for it: so the same command serves Open MPI and MPICH. What the user has set stays.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What Open MPI is told, 4 and 5: it may start as many ranks as it is asked for, as any user, and binds none to a core,
/// since a rank may have several threads. Messages pass through shared memory, and mpirun itself listens on the loopback
/// interface only.
const SETTINGS: [(&str, &str); 8] = [
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
    ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
    ("OMPI_MCA_hwloc_base_binding_policy", "none"),
    ("PRTE_MCA_hwloc_default_binding_policy", "none"),
    ("OMPI_MCA_btl", "self,vader"),
    ("OMPI_MCA_oob_tcp_if_include", "lo"),
];

/// Where Open MPI, 4 and 5, keeps its files: sockets of mpirun, and the memory that ranks share.
const PLACES: [&str; 3] = [
    "OMPI_MCA_orte_tmpdir_base",
    "PRTE_MCA_prte_tmpdir_base",
    "OMPI_MCA_btl_vader_backing_directory",
];

/// mpirun for `ranks` trainers of this run.
pub(crate) fn command(mpirun: &Path, trainer: &Path, ranks: u32, logs: &Path, scratch: &Scratch) -> Command {
    let mut command = Command::new(mpirun);
    command.args(["-n", &ranks.to_string()]).arg(trainer).arg("train");
    command
        .env("LOCKSTEP_LAUNCHER_PID", std::process::id().to_string())
        .env("LOCKSTEP_LOGS", logs)
        .env("LOCKSTEP_SCRATCH", scratch.path())
        // Names come from the ranks.
        .env_remove("LOCKSTEP_MEMBER");
    for (name, value) in SETTINGS {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    for name in PLACES {
        if std::env::var_os(name).is_none() {
            command.env(name, scratch.path());
        }
    }
    command
}

/// A folder for files of one mpirun, removed with what is in it: mpirun removes them itself only if it is not killed. The
/// trainers remove it if this process is.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes it in memory where there is such a place: ranks exchange data through these files.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn make() -> std::io::Result<Scratch> {
        let memory = Path::new("/dev/shm");
        let parent = match memory.is_dir() {
            true => memory.to_owned(),
            false => std::env::temp_dir(),
        };
        // A short name, for paths of sockets are short.
        let path = parent.join(format!("lockstep-{}", std::process::id()));
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::create_dir(&path)?;
        Ok(Scratch { path })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // mpirun is reaped before; a rank that is killed with it may still be on its way out, and its files go at once.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

//! How trainers are started by one mpirun: for `lockstep mpirun` on any backend, and for `lockstep run --backend mpi`.
//!
//! [`flavour`] says which MPI it is and how that is told what is wanted, [`hosts`] where the ranks run and how they reach the
//! coordinator, [`scratch`] where its files are until the last one who uses them has gone. All else goes by the environment, in which
//! each MPI reads what is meant for it; nothing that is secret is on a command line. What the user has set stays.

pub(crate) mod flavour;
pub(crate) mod hosts;
pub(crate) mod scratch;

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use lockstep_config::this_machine;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::ending::Ending;
use flavour::Flavour;
use hosts::Where;
use scratch::Scratch;

/// What Open MPI is told, 4 and 5: it may run as any user, and binds no rank to a core, since a rank may have several threads.
const SETTINGS: [(&str, &str); 4] = [
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    ("OMPI_MCA_hwloc_base_binding_policy", "none"),
    ("PRTE_MCA_hwloc_default_binding_policy", "none"),
];

/// What it is told on one host: it may start as many ranks as it is asked for, messages pass through shared memory, and mpirun
/// itself listens on the loopback interface only.
const SETTINGS_HERE: [(&str, &str); 4] = [
    ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
    ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
    ("OMPI_MCA_btl", "self,vader"),
    ("OMPI_MCA_oob_tcp_if_include", "lo"),
];

/// Where it keeps its files on this host: sockets of mpirun, and the memory that ranks share.
const PLACES_HERE: [&str; 3] = [
    "OMPI_MCA_orte_tmpdir_base",
    "PRTE_MCA_prte_tmpdir_base",
    "OMPI_MCA_btl_vader_backing_directory",
];
/// The same for mpirun alone, where other hosts have no such folder.
const PLACES_FAR: [&str; 2] = ["OMPI_MCA_orte_local_tmpdir_base", "PRTE_MCA_prte_local_tmpdir_base"];

/// Variables of a person's that ranks on other hosts get too, besides those of ours.
const OTHERS: [&str; 1] = ["RUST_LOG"];

/// An mpirun, and what it is told.
#[derive(Debug)]
pub(crate) struct Mpirun {
    /// The program.
    pub(crate) program: PathBuf,
    /// Whose it is.
    pub(crate) flavour: Flavour,
    /// Where the ranks run.
    pub(crate) place: Where,
    /// The file with the hosts.
    pub(crate) hostfile: Option<PathBuf>,
    /// Whether the run goes on without a rank that is lost: on every backend but MPI's own.
    pub(crate) survives: bool,
    /// A person's words for it.
    pub(crate) arguments: Vec<OsString>,
}

impl Mpirun {
    /// A command with the environment of an mpirun. Its words come last ([`Mpirun::say`]), for they name the environment.
    ///
    /// # Errors
    /// This program cannot be found.
    pub(crate) fn command(&self, logs: &Path, scratch: &Scratch) -> std::io::Result<Command> {
        // The kernel is asked by this program, in the place of mpirun, to end mpirun with the launcher.
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("tied")
            .arg(std::process::id().to_string())
            .arg(scratch.path())
            .arg(&self.program);
        command
            .env("LOCKSTEP_LAUNCHER_PID", std::process::id().to_string())
            .env("LOCKSTEP_LOGS", logs)
            .env("LOCKSTEP_SCRATCH", scratch.path())
            // Names come from the ranks.
            .env_remove("LOCKSTEP_MEMBER")
            .env_remove("LOCKSTEP_PARENT_PID");
        if let Some(machine) = this_machine() {
            command.env("LOCKSTEP_LAUNCHER_HOST", machine);
        }
        if self.survives && self.flavour.wants_guards() {
            command.env("LOCKSTEP_GUARD", "1");
        }
        if self.place.is_far() {
            // This host's, and not that of every rank.
            command.env_remove("LOCKSTEP_ADVERTISE");
        }
        let (settings, places) = match self.place {
            Where::Here => (&SETTINGS_HERE[..], &PLACES_HERE[..]),
            Where::Far { .. } => (&[][..], &PLACES_FAR[..]),
        };
        for (name, value) in SETTINGS.iter().chain(settings) {
            if std::env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
        for name in places {
            if std::env::var_os(name).is_none() {
                command.env(name, scratch.path());
            }
        }
        Ok(command)
    }

    /// Adds the words that start `ranks` trainers, once the command has its whole environment.
    pub(crate) fn say(&self, command: &mut Command, trainer: &Path, ranks: u32) {
        let names = told(command, std::env::vars_os().map(|(name, _)| name));
        command
            .args(self.flavour.words(self.survives, self.hostfile.as_deref(), &names))
            .args(&self.arguments)
            .args(["-n", &ranks.to_string()])
            .arg(trainer)
            .arg("train");
    }
}

/// The variables that ranks on other hosts are told: those of ours that this process has or the command sets, and what the
/// command sets for numeric libraries. What is meant for mpirun itself it passes on as it needs.
fn told(command: &Command, own: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let is_ours = |name: &OsStr| name.to_string_lossy().starts_with("LOCKSTEP_");
    let is_mpis = |name: &OsStr| {
        ["OMPI_", "PRTE_", "PMIX_"]
            .iter()
            .any(|one| name.to_string_lossy().starts_with(one))
    };
    let mut names: Vec<OsString> = own
        .filter(|name| is_ours(name) || OTHERS.iter().any(|other| name == other))
        .collect();
    for (name, value) in command.get_envs() {
        names.retain(|one| one != name);
        if value.is_some() && !is_mpis(name) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    names
}

/// Becomes a program that uses `folder`, and that ends by SIGTERM when `parent`, which has started this process, has ended.
/// Returns only when that fails.
pub(crate) fn tied(parent: i32, folder: &Path, words: &[OsString]) -> Ending {
    let Some((program, arguments)) = words.split_first() else {
        return Ending::BadInput("name a program".to_owned());
    };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        return Ending::Failed(format!("the system does not tie a process to its parent: {error}"));
    }
    // It may have ended before the line above.
    if getppid() != Pid::from_raw(parent) {
        return Ending::Failed(format!("the launcher, process {parent}, has ended"));
    }
    // The program goes on with it.
    let _used = match scratch::use_folder(folder) {
        Ok(used) => used,
        Err(error) => return Ending::Failed(format!("cannot use the folder {}: {error}", folder.display())),
    };
    let error = Command::new(program).args(arguments).exec();
    Ending::Failed(format!("cannot start {}: {error}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_elsewhere_are_told_what_is_ours_and_nothing_that_was_taken_away() {
        let mut command = Command::new("mpirun");
        command
            .env("LOCKSTEP_TOKEN", "secret")
            .env("OMP_NUM_THREADS", "1")
            .env("OMPI_MCA_btl", "self")
            .env_remove("LOCKSTEP_KEY");
        let own = ["LOCKSTEP_KEY", "LOCKSTEP_DRILL", "PATH", "RUST_LOG", "LOCKSTEP_TOKEN"];
        let names = told(&command, own.into_iter().map(Into::into));
        assert_eq!(
            names,
            ["LOCKSTEP_DRILL", "LOCKSTEP_TOKEN", "OMP_NUM_THREADS", "RUST_LOG"]
        );
    }
}

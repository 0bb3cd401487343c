//! What starts jobs elsewhere than here: MPICH's mpirun and Slurm, for the tests of launching by them. Nothing is built
//! against them. They are optional: where one is missing its tests are left out, and say so.
//!
//! MPICH stands beside Open MPI: Debian's alternatives give `mpirun` and `mpicc` to Open MPI, which has the higher priority,
//! and MPICH's programs have names of their own.

use std::path::Path;

use crate::setup::tools;

/// One of them.
struct Starter {
    title: &'static str,
    /// What Debian and Ubuntu call it.
    packages: &'static [&'static str],
    /// Its programs; for each one of the names will do.
    programs: &'static [&'static [&'static str]],
    /// Set to leave its tests out even where it is; the tests look at it.
    without: &'static str,
}

const STARTERS: [Starter; 2] = [
    Starter {
        title: "MPICH",
        packages: &["mpich"],
        programs: &[&["mpirun.mpich", "mpiexec.hydra"]],
        without: "LOCKSTEP_WITHOUT_MPICH",
    },
    Starter {
        title: "Slurm",
        packages: &["slurm-wlm", "munge"],
        programs: &[&["munged"], &["slurmctld"], &["slurmd"], &["sbatch"], &["srun"]],
        without: "LOCKSTEP_WITHOUT_SLURM",
    },
];

/// Where daemons are, which need not be on a user's search path.
const DAEMONS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// Installs what is not there, where that is allowed. Says what to install where it is not.
pub(crate) fn prepare() {
    for starter in STARTERS
        .iter()
        .filter(|starter| !starter.is_left_out() && !starter.is_there())
    {
        if tools::may_install() {
            match tools::install(starter.packages) {
                Ok(()) if starter.is_there() => continue,
                Ok(()) => {}
                Err(failure) => println!("setup: {failure}"),
            }
        }
        println!(
            "setup: {} is not there, so its tests are left out; to have them, run `{}`",
            starter.title,
            tools::install_command(starter.packages)
        );
    }
}

/// The variables that leave tests out, of what is not there.
pub(crate) fn left_out() -> impl Iterator<Item = &'static str> {
    let missing = STARTERS
        .iter()
        .filter(|starter| !starter.is_left_out() && !starter.is_there());
    missing.map(|starter| starter.without)
}

impl Starter {
    fn is_left_out(&self) -> bool {
        std::env::var_os(self.without).is_some()
    }

    fn is_there(&self) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = || std::env::split_paths(&path).chain(DAEMONS.map(|folder| Path::new(folder).to_owned()));
        let is_there = |name: &str| folders().any(|folder| folder.join(name).is_file());
        self.programs
            .iter()
            .all(|names| names.iter().any(|name| is_there(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_there_with_all_of_its_programs_by_any_of_their_names() {
        let of = |programs| Starter {
            title: "",
            packages: &[],
            programs,
            without: "NO_SUCH_VARIABLE",
        };
        assert!(of(&[&["sh"], &["no-such-program", "ls"]]).is_there());
        assert!(!of(&[&["sh"], &["no-such-program"]]).is_there());
    }
}

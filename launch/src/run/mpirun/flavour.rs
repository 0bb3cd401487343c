//! Which MPI an mpirun belongs to, and in what words it is told the same things. Pure, but for asking the program.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

/// What an mpirun belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// Open MPI, with its version.
    OpenMpi(String),
    /// MPICH, whose mpirun is called Hydra, with its version.
    Mpich(String),
    /// Another one, in its own words.
    Other(String),
}

impl std::fmt::Display for Flavour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Flavour::OpenMpi(version) => write!(f, "Open MPI {version}"),
            Flavour::Mpich(version) => write!(f, "MPICH {version}"),
            Flavour::Other(words) => f.write_str(words),
        }
    }
}

impl Flavour {
    /// Asks a program.
    pub(crate) fn of(mpirun: &Path) -> Flavour {
        let output = Command::new(mpirun).arg("--version").stdin(Stdio::null()).output();
        let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        Flavour::said(&said.unwrap_or_default())
    }

    /// What the answer to `--version` means.
    fn said(text: &str) -> Flavour {
        let first = text.lines().next().unwrap_or_default().trim();
        if first.contains("Open MPI") || first.contains("OpenRTE") {
            return Flavour::OpenMpi(first.split_whitespace().last().unwrap_or_default().to_owned());
        }
        if first.starts_with("HYDRA") {
            let version = text.lines().find_map(|line| line.trim().strip_prefix("Version:"));
            return Flavour::Mpich(version.unwrap_or_default().trim().to_owned());
        }
        Flavour::Other(match first {
            "" => "an mpirun that does not tell its version".to_owned(),
            words => words.to_owned(),
        })
    }

    /// Whether the ranks want guards, so that others of their host outlive one that is killed. MPICH 4 and 5 end them all
    /// when a signal has ended one, with `-disable-auto-cleanup` too.
    pub(crate) fn wants_guards(&self) -> bool {
        !matches!(self, Flavour::OpenMpi(_))
    }

    /// The words that come first: lines are labelled by rank, `survives` that the others live on without a rank that is lost,
    /// `hostfile` where they run, and `names` which variables they are told.
    pub(crate) fn words(&self, survives: bool, hostfile: Option<&Path>, names: &[OsString]) -> Vec<OsString> {
        let (label, recovery, hosts) = match self {
            Flavour::OpenMpi(_) => (Some("--tag-output"), Some("--enable-recovery"), "--hostfile"),
            Flavour::Mpich(_) => (Some("-prepend-rank"), Some("-disable-auto-cleanup"), "-f"),
            Flavour::Other(_) => (None, None, "-hostfile"),
        };
        let mut words: Vec<OsString> = label.into_iter().map(Into::into).collect();
        words.extend(recovery.filter(|_| survives).map(Into::into));
        words.extend(hostfile.into_iter().flat_map(|file| [hosts.into(), file.into()]));
        if let Flavour::OpenMpi(_) = self {
            // Names only: a command line is for all to see. The others pass on their whole environment.
            words.extend(names.iter().flat_map(|name| ["-x".into(), name.clone()]));
        }
        words
    }
}

/// What a person may not say behind `--`, since the launcher must know it, and how it is said instead.
const OWN_WORDS: [(&[&str], &str); 3] = [
    (&["-n", "-np", "--np", "-c", "--n"], "say -n RANKS before the --"),
    (
        &[
            "-hostfile",
            "--hostfile",
            "-machinefile",
            "--machinefile",
            "-f",
            "--default-hostfile",
        ],
        "say --hostfile FILE before the --",
    ),
    (
        &["-host", "--host", "-H", "-hosts"],
        "write the hosts into a file, and say --hostfile FILE before the --",
    ),
];

/// Refuses what the launcher must know.
pub(crate) fn check_words(arguments: &[OsString]) -> Result<(), String> {
    for word in arguments {
        let word = word.to_string_lossy();
        let name = word.split('=').next().unwrap_or_default();
        if let Some((_, instead)) = OWN_WORDS.iter().find(|(words, _)| words.contains(&name)) {
            return Err(format!("{name} is not for mpirun alone: {instead}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_mpirun_is_known_by_what_it_says_of_itself() {
        let open_mpi = |version: &str| Flavour::OpenMpi(version.to_owned());
        for (text, flavour) in [
            ("mpirun (Open MPI) 5.0.11\n\nReport bugs to …", open_mpi("5.0.11")),
            ("mpirun.openmpi (OpenRTE) 4.1.4\n\nReport", open_mpi("4.1.4")),
            (
                "HYDRA build details:\n    Version:                                 4.0.2\n    CC: gcc",
                Flavour::Mpich("4.0.2".to_owned()),
            ),
            (
                "Intel(R) MPI Library for Linux* OS, Version 2021.11\nCopyright",
                Flavour::Other("Intel(R) MPI Library for Linux* OS, Version 2021.11".to_owned()),
            ),
            (
                "",
                Flavour::Other("an mpirun that does not tell its version".to_owned()),
            ),
        ] {
            assert_eq!(Flavour::said(text), flavour);
        }
    }

    #[test]
    fn each_is_told_the_same_in_its_own_words() {
        let said = |flavour: Flavour, survives, hostfile: Option<&str>| -> String {
            let names = ["LOCKSTEP_TOKEN".into()];
            let words = flavour.words(survives, hostfile.map(Path::new), &names);
            let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
            words.join(" ")
        };
        let (open_mpi, mpich) = (Flavour::OpenMpi("4".to_owned()), Flavour::Mpich("4".to_owned()));
        assert_eq!(
            said(open_mpi.clone(), true, Some("hosts")),
            "--tag-output --enable-recovery --hostfile hosts -x LOCKSTEP_TOKEN"
        );
        assert_eq!(said(open_mpi, false, None), "--tag-output -x LOCKSTEP_TOKEN");
        assert_eq!(
            said(mpich.clone(), true, Some("hosts")),
            "-prepend-rank -disable-auto-cleanup -f hosts"
        );
        assert_eq!(said(mpich, false, None), "-prepend-rank");
        assert_eq!(said(Flavour::Other(String::new()), true, None), "");
    }

    #[test]
    fn what_the_launcher_must_know_is_refused_with_what_to_say() {
        let check = |words: &str| {
            let words: Vec<OsString> = words.split_whitespace().map(Into::into).collect();
            check_words(&words)
        };
        assert_eq!(check("--mca btl self,tcp --bind-to none -x A"), Ok(()));
        assert!(check("--map-by node -np 4").unwrap_err().contains("-np"));
        assert!(check("--hostfile=x").unwrap_err().contains("--hostfile FILE"));
        assert!(check("--host a,b").unwrap_err().contains("into a file"));
    }
}

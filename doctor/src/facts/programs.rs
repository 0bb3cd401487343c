//! Programs that a run starts: where they are, and what they say of themselves.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::facts::libraries::{Linked, Mpi, Search};

/// How long a program may take to tell its version; a trainer loads libtorch for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Program {
    /// Where it is, or should be.
    pub path: PathBuf,
    /// Whether it is a file.
    pub is_there: bool,
    /// The libraries that it needs; none for a script.
    pub linked: Option<Linked>,
    /// What it says to `--version`, or how it failed; none: it was not asked.
    pub version: Option<Result<String, String>>,
}

impl Program {
    /// Looks at the file only.
    pub fn look(path: &Path, search: &Search) -> Program {
        Program {
            path: path.to_owned(),
            is_there: path.is_file(),
            linked: Linked::look(path, search),
            version: None,
        }
    }

    /// And asks it for its version, if there is anything to ask.
    pub fn asked(mut self) -> Program {
        if self.is_there {
            self.version = Some(answer(Command::new(&self.path).arg("--version"), PATIENCE));
        }
        self
    }

    /// Asks it only if libraries seem to be missing: the linker knows more folders than are looked at here.
    pub fn asked_in_doubt(self) -> Program {
        let lacks = self.linked.as_ref().is_some_and(|linked| !linked.needed_by.is_empty());
        if lacks { self.asked() } else { self }
    }

    /// Which MPI's `mpirun` it is, by its own words.
    pub fn mpi(&self) -> Option<Mpi> {
        let text = self.version.as_ref()?.as_ref().ok()?;
        let says = |word: &str| text.contains(word);
        match () {
            () if says("Open MPI") || says("OpenRTE") || says("PRRTE") => Some(Mpi::OpenMpi),
            () if says("HYDRA") || says("MPICH") || says("Intel(R) MPI") || says("mvapich") => Some(Mpi::Mpich),
            () => None,
        }
    }
}

/// What a program prints before it ends, within a time; else how it failed, as a part of a sentence.
pub fn answer(command: &mut Command, patience: Duration) -> Result<String, String> {
    let started = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = started.map_err(|error| format!("it cannot be started ({error})"))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let readers = [out.map(reading), err.map(reading)];
    let deadline = Instant::now() + patience;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it gave no answer within {} s", patience.as_secs()));
            }
        }
    };
    let [out, err] = readers.map(|reader| reader.and_then(|reader| reader.join().ok()).unwrap_or_default());
    match status.success() {
        true => Ok(out.trim().to_owned()),
        false => {
            let last = err
                .lines()
                .rfind(|line| !line.trim().is_empty())
                .unwrap_or("it says nothing");
            Err(format!("it ends with {status}: {last}"))
        }
    }
}

fn reading(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.by_ref().take(1 << 20).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(text: &str) -> Option<Mpi> {
        let program = Program {
            path: PathBuf::from("mpirun"),
            is_there: true,
            linked: None,
            version: Some(Ok(text.to_owned())),
        };
        program.mpi()
    }

    #[test]
    fn mpirun_is_told_by_its_words() {
        assert_eq!(
            says("mpirun (Open MPI) 4.1.4\n\nReport bugs to http://"),
            Some(Mpi::OpenMpi)
        );
        assert_eq!(says("HYDRA build details:\n    Version: 4.0.2"), Some(Mpi::Mpich));
        assert_eq!(says("a starter of something"), None);
    }

    #[test]
    fn a_program_that_fails_or_hangs_is_told_with_its_last_words() {
        let shell =
            |script: &str, seconds| answer(Command::new("sh").args(["-c", script]), Duration::from_secs(seconds));
        assert_eq!(shell("echo 1.2; exit 0", 10).as_deref(), Ok("1.2"));
        let failed = shell("echo no libfoo >&2; exit 127", 10).unwrap_err();
        assert!(failed.contains("no libfoo") && failed.contains("127"), "{failed}");
        assert!(shell("exec sleep 60", 0).unwrap_err().contains("no answer"));
    }
}

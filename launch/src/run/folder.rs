//! The folder of a run under `./runs`: claimed by one process at a time, left as it was found where a run is refused.
//!
//! The claim is a lock on the folder itself: the kernel lets go of it with the process, however that ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::ending::Ending;
use lockstep_proto::address::Address;

/// Where run folders lie.
pub(crate) const RUNS: &str = "runs";

/// What the coordinator locks while it has the ledger open: one that was started by itself knows no other claim.
const LEDGER_LOCK: &str = "run.lock";
/// What a run that never made a step may have left; such a folder is used again.
const LEFTOVERS: [&str; 9] = [
    "config.toml",
    Address::FILE,
    ".coordinator.json",
    LEDGER_LOCK,
    "ledger.redb",
    "logs",
    "metrics.jsonl",
    "secret",
    "summary.json",
];
/// TensorBoard's names begin so.
const EVENTS: &str = "events.out.tfevents";

/// A claimed run folder.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    /// Holds the claim.
    _lock: File,
    made: Made,
}

/// Which folders were made for this run: these are removed where it is refused.
#[derive(Debug, Default)]
struct Made {
    folders: Vec<PathBuf>,
}

impl Made {
    fn folder(&mut self, path: &Path) -> std::io::Result<()> {
        match std::fs::create_dir(path) {
            Ok(()) => {
                self.folders.push(path.to_owned());
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn undo(&self) {
        for folder in self.folders.iter().rev() {
            // Best effort: `runs` may have got another run's folder meanwhile, and stays.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

impl RunFolder {
    /// Makes and claims `RUNS/name`. With `resume` an earlier run in it is to go on, and is left as it is.
    ///
    /// # Errors
    /// The folder is in use, holds an earlier run that is not to go on, or other things, or cannot be made. Nothing is left
    /// then.
    pub(crate) fn claim(runs: &Path, name: &str, resume: bool) -> Result<RunFolder, Ending> {
        let path = runs.join(name);
        let mut made = Made::default();
        match claim(&path, runs, resume, &mut made) {
            Ok(lock) => Ok(RunFolder {
                path,
                _lock: lock,
                made,
            }),
            Err(ending) => {
                made.undo();
                Err(ending)
            }
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes back everything: the run was refused after its folder had been claimed. An earlier run stays.
    pub(crate) fn undo(self) {
        if !was_started(&self.path) {
            remove_leftovers(&self.path);
        }
        self.made.undo();
    }
}

fn claim(path: &Path, runs: &Path, resume: bool, made: &mut Made) -> Result<File, Ending> {
    let failed = |error: std::io::Error| {
        Ending::BadInput(format!(
            "cannot make the run folder {}: {error}; start where you may write",
            path.display()
        ))
    };
    made.folder(runs).map_err(failed)?;
    made.folder(path).map_err(failed)?;
    let lock = File::open(path).map_err(failed)?;
    if !take(&lock) || is_locked(&path.join(LEDGER_LOCK)) {
        let by = Address::read(path)
            .map(|address| format!(" (pid {})", address.pid))
            .unwrap_or_default();
        return Err(Ending::BadInput(format!(
            "the run folder {} is in use by another run{by}; choose another run.name, or stop that run first",
            path.display()
        )));
    }
    if was_started(path) {
        if resume {
            return Ok(lock);
        }
        return Err(Ending::BadInput(format!(
            "the run folder {} holds an earlier run; go on with it (--resume), or choose another run.name (--set run.name=NAME)",
            path.display()
        )));
    }
    if let Some(other) = other_things(path).map_err(failed)? {
        return Err(Ending::BadInput(format!(
            "the run folder {} holds other things ({other}); choose another run.name",
            path.display()
        )));
    }
    remove_leftovers(path);
    Ok(lock)
}

/// Takes the lock; a `lockstep status` that looks at it holds it for a moment, so this is tried more than once.
fn take(lock: &File) -> bool {
    (0..10).any(|attempt| {
        if attempt > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok()
    })
}

/// Whether a live process has claimed a run folder.
pub(crate) fn is_in_use(path: &Path) -> bool {
    is_locked(path) || is_locked(&path.join(LEDGER_LOCK))
}

fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
}

/// A run that has made a step has a line of metrics, or weights.
fn was_started(path: &Path) -> bool {
    let steps = std::fs::metadata(path.join("metrics.jsonl")).is_ok_and(|metrics| metrics.len() > 0);
    steps || path.join("final").exists() || path.join("checkpoints").exists()
}

fn is_leftover(name: &str) -> bool {
    LEFTOVERS.contains(&name) || name.starts_with(EVENTS)
}

fn other_things(path: &Path) -> std::io::Result<Option<String>> {
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !is_leftover(&name) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn remove_leftovers(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if is_leftover(&entry.file_name().to_string_lossy()) {
            // What cannot be removed shows when it is to be written again.
            let _ = match entry.path().is_dir() {
                true => std::fs::remove_dir_all(entry.path()),
                false => std::fs::remove_file(entry.path()),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn sentence(runs: &Path) -> String {
        RunFolder::claim(runs, "first", false)
            .unwrap_err()
            .sentence()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn a_folder_has_one_user_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let runs = root.path().join(RUNS);
        let claimed = RunFolder::claim(&runs, "first", false).unwrap();
        assert!(is_in_use(claimed.path()));
        assert!(sentence(&runs).contains("in use"));
        RunFolder::claim(&runs, "second", false).unwrap().undo();
        claimed.undo();
        assert!(!runs.exists(), "what a refused run made is gone");
    }

    #[test]
    fn an_earlier_run_is_kept_and_one_that_never_made_a_step_is_not() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("first");
        std::fs::create_dir_all(folder.join("logs")).unwrap();
        std::fs::write(folder.join("ledger.redb"), "ledger").unwrap();
        std::fs::write(folder.join("metrics.jsonl"), "").unwrap();
        drop(RunFolder::claim(root.path(), "first", false).unwrap());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        std::fs::write(folder.join("ledger.redb"), "ledger").unwrap();
        std::fs::write(folder.join("metrics.jsonl"), "{}\n").unwrap();
        assert!(sentence(root.path()).contains("earlier run"));
        RunFolder::claim(root.path(), "first", true).unwrap().undo();
        assert!(folder.join("ledger.redb").exists());
    }

    #[test]
    fn a_folder_with_other_things_is_not_touched() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("first");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("thesis.tex"), "precious").unwrap();
        std::fs::write(folder.join("config.toml"), "").unwrap();
        assert!(sentence(root.path()).contains("thesis.tex"));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
    }
}

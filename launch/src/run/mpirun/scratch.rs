//! The folder for the files of one mpirun: its sockets, and the memory that ranks share. It goes whatever is killed.
//!
//! Whoever uses the folder holds a shared lock on it: the launcher, mpirun (which is started with it) and every rank on this
//! host (which takes it by the same rule, in the trainer). A janitor, `lockstep janitor FOLDER`, is a process of its own
//! that waits for the lock that excludes them all, and then removes the folder. The kernel takes the lock of a process away when
//! that ends, however it ends; so the folder goes as soon as its last user has gone, and not while anybody is left who could write
//! into it again. Where launcher and janitor are killed at once, the next launcher of the same user removes what nobody holds.

use std::fs::{DirBuilder, File};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::{Errno, FdFlags, fcntl_setfd};

/// What the names of all such folders begin with; the process that made one follows.
const PREFIX: &str = "lockstep-";
/// Whoever was started by mpirun has ended with it; so long this process waits for the last of them.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it looks.
const GLANCE: Duration = Duration::from_millis(5);
/// Folders of one number of a process: in several containers there may be as many processes of that number.
const NAMES: u32 = 64;

/// A folder for files of one mpirun, removed with what is in it: mpirun removes them itself only if it is not killed.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    /// The lock.
    held: Option<File>,
    janitor: Child,
}

impl Scratch {
    /// Makes it in memory where there is such a place, since ranks exchange data through these files; and removes what earlier
    /// ones have left that were killed with their janitors.
    ///
    /// # Errors
    /// It cannot be made, or its janitor not be started.
    pub(crate) fn make() -> Result<Scratch> {
        let memory = Path::new("/dev/shm");
        let parent = match memory.is_dir() {
            true => memory.to_owned(),
            false => std::env::temp_dir(),
        };
        sweep(&parent);
        let (path, held) = make_in(&parent)?;
        let janitor = Command::new(std::env::current_exe()?)
            .arg("janitor")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: what ends the launcher at the terminal does not end it.
            .process_group(0)
            .spawn();
        match janitor {
            Ok(janitor) => Ok(Scratch {
                path,
                held: Some(held),
                janitor,
            }),
            Err(error) => {
                // Nobody uses it yet.
                let _ = std::fs::remove_dir_all(&path);
                Err(error)
            }
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // mpirun is reaped before; a rank that was killed with it may still be on its way out.
        drop(self.held.take());
        let began = Instant::now();
        while self.janitor.try_wait().is_ok_and(|status| status.is_none()) && began.elapsed() < PATIENCE {
            std::thread::sleep(GLANCE);
        }
        // If it has not been killed it is gone, and so is the folder.
        let _ = self.janitor.kill();
        let _ = self.janitor.wait();
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Carries out `lockstep janitor`: waits until nobody uses a folder, and removes it.
///
/// # Errors
/// It is no such folder, or it cannot be locked or removed.
pub(crate) fn janitor(folder: &Path) -> Result<()> {
    if !is_scratch(folder) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{} is no folder for files of an mpirun", folder.display()),
        ));
    }
    let held = match directory(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        held => held?,
    };
    while let Err(error) = flock(&held, FlockOperation::LockExclusive) {
        if error != Errno::INTR {
            return Err(error.into());
        }
    }
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Takes the lock of one who uses the folder, for this process and whatever it becomes. The value must live until then.
///
/// # Errors
/// It is not there any more, or about to go.
pub(crate) fn use_folder(folder: &Path) -> Result<File> {
    let held = directory(folder)?;
    flock(&held, FlockOperation::NonBlockingLockShared)?;
    fcntl_setfd(&held, FdFlags::empty())?;
    Ok(held)
}

fn make_in(parent: &Path) -> Result<(PathBuf, File)> {
    let own = std::process::id();
    for number in 1..=NAMES {
        // A short name, for paths of sockets are short.
        let name = match number {
            1 => format!("{PREFIX}{own}"),
            _ => format!("{PREFIX}{own}-{number}"),
        };
        let path = parent.join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            made => made?,
        }
        // Between the two another launcher may have taken it for one that nobody holds.
        if let Ok(held) = directory(&path)
            && flock(&held, FlockOperation::NonBlockingLockShared).is_ok()
            && path.exists()
        {
            return Ok((path, held));
        }
    }
    Err(Error::new(
        ErrorKind::AlreadyExists,
        format!("all of {NAMES} names for a folder in {} are taken", parent.display()),
    ))
}

/// Removes what is left of those that were killed with their janitors.
fn sweep(parent: &Path) {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()).filter(|path| is_scratch(path)) {
        let Ok(held) = directory(&path) else { continue };
        let own = rustix::process::geteuid().as_raw();
        let is_own = held.metadata().is_ok_and(|metadata| metadata.uid() == own);
        if is_own && flock(&held, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // The next one tries again.
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

/// Whether a folder is called as those of this module are.
fn is_scratch(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    name.strip_prefix(PREFIX)
        .is_some_and(|numbers| numbers.splitn(2, '-').all(is_number))
}

/// A folder, and nothing that leads to one.
fn directory(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_what_nobody_holds_and_has_such_a_name_is_swept() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = parent.path().join(name);
            std::fs::create_dir_all(path.join("inside")).unwrap();
            path
        };
        let (left, held, other) = (make("lockstep-7"), make("lockstep-8-2"), make("lockstep-else"));
        let lock = use_folder(&held).unwrap();
        sweep(parent.path());
        assert_eq!([&left, &held, &other].map(|path| path.exists()), [false, true, true]);
        drop(lock);
        sweep(parent.path());
        assert!(!held.exists());
    }

    #[test]
    fn a_link_is_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let precious = parent.path().join("precious");
        std::fs::create_dir_all(precious.join("inside")).unwrap();
        std::os::unix::fs::symlink(&precious, parent.path().join("lockstep-7")).unwrap();
        sweep(parent.path());
        assert!(precious.join("inside").exists());
        assert!(janitor(&parent.path().join("lockstep-7")).is_err());
        assert!(janitor(&precious).is_err(), "no other folder is removed either");
        assert!(precious.join("inside").exists());
    }

    #[test]
    fn the_janitor_waits_for_the_last_one_who_uses_it() {
        let parent = tempfile::tempdir().unwrap();
        let (path, first) = make_in(parent.path()).unwrap();
        let second = use_folder(&path).unwrap();
        std::fs::write(path.join("segment"), "x").unwrap();
        let cleaning = {
            let path = path.clone();
            std::thread::spawn(move || janitor(&path))
        };
        drop(first);
        // A rank that comes while the janitor waits may still use it.
        let third = use_folder(&path).unwrap();
        drop(second);
        assert!(path.join("segment").exists());
        drop(third);
        cleaning.join().unwrap().unwrap();
        assert!(!path.exists());
        janitor(&path).unwrap();
        assert_eq!(use_folder(&path).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_number_that_is_taken_by_another_container_gets_another_name() {
        let parent = tempfile::tempdir().unwrap();
        let (one, _held) = make_in(parent.path()).unwrap();
        let (other, _too) = make_in(parent.path()).unwrap();
        assert_ne!(one, other);
        assert!(is_scratch(&one) && is_scratch(&other));
    }
}

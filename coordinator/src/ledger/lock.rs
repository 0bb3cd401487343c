//! The lock of a run's folder: an advisory lock on `run.lock`, which holds the pid for people. The kernel gives it
//! up when the process ends, however it ends.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::ledger::{LedgerError, store};

/// The pid that the lock of a folder names, if it names one.
pub(super) fn holder(folder: &Path) -> Option<String> {
    let holder = std::fs::read_to_string(folder.join("run.lock")).ok()?;
    Some(holder.trim().to_owned()).filter(|holder| !holder.is_empty())
}

#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn take(folder: &Path) -> Result<Lock, LedgerError> {
        let path = folder.join("run.lock");
        let failed = |error: std::io::Error| store("lock", &path, error);
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(failed)?;
                return Err(LedgerError::InUse {
                    folder: folder.to_owned(),
                    holder: holder.trim().to_owned(),
                });
            }
            Err(error) => return Err(failed(error.into())),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Lock { _file: file })
    }
}

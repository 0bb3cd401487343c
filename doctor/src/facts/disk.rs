//! A folder's disk: its room, whether it can be written, and how fast. One small file is written there, and removed.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::statvfs;
use serde::Serialize;

/// What is written at so many bytes a second is written once only.
const FAST: f64 = 100e6;

/// A disk, as a folder on it shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Disk {
    /// What it is for.
    pub purpose: String,
    /// The folder that is wanted.
    pub folder: PathBuf,
    /// The nearest one above it that is there, which is what was looked at.
    pub looked_at: PathBuf,
    /// Bytes of the disk; 0 where the file system does not count them.
    pub size: u64,
    /// Those that this user may still write.
    pub free: u64,
    /// Files that can still be made; none where the file system does not count them.
    pub files_free: Option<u64>,
    /// What came of writing.
    pub written: Result<Speed, Refusal>,
}

/// How fast a file was written.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// Its length.
    pub bytes: u64,
    /// Until all of it was on the disk.
    pub seconds: f64,
    /// The shortest of a few writes of one block each, until it was on the disk: others may keep it busy for a moment.
    pub sync_seconds: f64,
}

/// Why nothing could be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Whether the disk was full.
    pub full: bool,
    /// In the system's words.
    pub reason: String,
}

impl Disk {
    /// Looks at the disk of a folder that may not be there yet, and writes `bytes` to it, or less where little is free.
    pub fn look(purpose: &str, folder: &Path, bytes: u64) -> Disk {
        let wanted = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let there = wanted.ancestors().find(|folder| folder.is_dir());
        let looked_at = there.unwrap_or(Path::new("/")).to_owned();
        let system = statvfs(&looked_at).ok();
        let of = |count: fn(&rustix::fs::StatVfs) -> u64| system.as_ref().map_or(0, count);
        let size = of(|system| system.f_blocks * system.f_frsize);
        let free = of(|system| system.f_bavail * system.f_frsize);
        let bytes = if size > 0 { bytes.min(free / 2) } else { bytes };
        Disk {
            purpose: purpose.to_owned(),
            folder: folder.to_owned(),
            size,
            free,
            files_free: Some(of(|system| system.f_ffree)).filter(|_| of(|system| system.f_files) > 0),
            written: write(&looked_at, bytes).map_err(|error| Refusal {
                full: matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded),
                reason: error.to_string(),
            }),
            looked_at,
        }
    }
}

/// A file that is gone when this is.
struct Probe(PathBuf);

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A block is written again, at most so often, until it is on the disk as soon as this.
const TRIES: u32 = 4;
const SOON: f64 = 0.1;

/// Writes a block, and more where `bytes` is more. What is slow is tried again: a disk is slow if it is so each time.
fn write(folder: &Path, bytes: u64) -> std::io::Result<Speed> {
    let (mut file, _probe) = make(folder)?;
    let mut least = |bytes: u64, soon: f64| -> std::io::Result<f64> {
        let mut least = timed(&mut file, bytes)?;
        for _ in 1..TRIES {
            if least > soon {
                least = least.min(timed(&mut file, bytes)?);
            }
        }
        Ok(least)
    };
    let block = BLOCK.len() as u64;
    let sync_seconds = least(block, SOON)?;
    let seconds = match bytes > block {
        true => least(bytes, bytes as f64 / FAST)?,
        false => sync_seconds,
    };
    Ok(Speed {
        bytes,
        seconds,
        sync_seconds,
    })
}

/// A file that nobody else has: several processes may look at one disk, in several containers under the same number.
fn make(folder: &Path) -> std::io::Result<(File, Probe)> {
    let mut tries = 0;
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let path = folder.join(format!(".lockstep-doctor-{}-{}", std::process::id(), now.as_nanos()));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, Probe(path))),
            Err(error) if error.kind() == ErrorKind::AlreadyExists && tries < TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

const BLOCK: [u8; 4096] = [0x5a; 4096];

/// Writes so much from the beginning, waits until it is on the disk, and says how long that took.
fn timed(file: &mut File, bytes: u64) -> std::io::Result<f64> {
    file.rewind()?;
    let start = Instant::now();
    for _ in 0..bytes.div_ceil(BLOCK.len() as u64) {
        file.write_all(&BLOCK)?;
    }
    file.sync_all()?;
    Ok(start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_yet_is_looked_at_above_and_nothing_is_left() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::look("run folder", &root.path().join("runs/first"), 1 << 20);
        assert_eq!(disk.looked_at, root.path());
        assert!(disk.size > 0 && disk.free > 0);
        let speed = disk.written.unwrap();
        assert!(speed.seconds > 0.0 && speed.sync_seconds > 0.0);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }
}

//! A folder's disk: its room, whether it can be written, and how fast. One small file is written there, and removed.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::statvfs;
use serde::Serialize;

/// A disk, as a folder on it shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Disk {
    /// What it is for.
    pub purpose: String,
    /// The folder that is wanted.
    pub folder: PathBuf,
    /// The nearest one above it that is there, which is what was looked at.
    pub looked_at: PathBuf,
    /// Bytes of the disk.
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
    /// The longest of a few writes of one block each, until it was on the disk.
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
    /// Looks at the disk of a folder that may not be there yet, and writes `bytes` to it.
    pub fn look(purpose: &str, folder: &Path, bytes: u64) -> Disk {
        let wanted = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let there = wanted.ancestors().find(|folder| folder.is_dir());
        let looked_at = there.unwrap_or(Path::new("/")).to_owned();
        let system = statvfs(&looked_at).ok();
        let of = |count: fn(&rustix::fs::StatVfs) -> u64| system.as_ref().map_or(0, count);
        Disk {
            purpose: purpose.to_owned(),
            folder: folder.to_owned(),
            size: of(|system| system.f_blocks * system.f_frsize),
            free: of(|system| system.f_bavail * system.f_frsize),
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

fn write(folder: &Path, bytes: u64) -> std::io::Result<Speed> {
    // A name of its own for each process: several ranks may look at one disk.
    let path = folder.join(format!(".lockstep-doctor-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    let _probe = Probe(path);
    let mut longest: f64 = 0.0;
    for _ in 0..if bytes > BLOCK.len() as u64 { 4 } else { 1 } {
        longest = longest.max(timed(&mut file, BLOCK.len() as u64)?);
    }
    let seconds = timed(&mut file, bytes)?;
    Ok(Speed {
        bytes,
        seconds,
        sync_seconds: longest,
    })
}

const BLOCK: [u8; 4096] = [0x5a; 4096];

/// Writes so much more, waits until it is on the disk, and says how long that took.
fn timed(file: &mut File, bytes: u64) -> std::io::Result<f64> {
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

//! `coordinator.json` in a run's folder: where the coordinator of a live run listens. The commands of an operator on the same
//! file system find it there, and so do trainers that were started together and not told where it is.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The version of the format that is written and read.
const VERSION: u32 = 1;

/// Where the coordinator of a run listens, or how it ended before it could.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    version: u32,
    /// Its URL; empty where there is no coordinator any more.
    pub url: String,
    /// The process that serves it.
    pub pid: u32,
    /// The job whose trainers it is for, in the words of what started them; others must not take it for theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// How the coordinator of this job ended that never served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Early>,
}

/// An end before anything could begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Early {
    /// The exit code.
    pub code: u8,
    /// One sentence.
    pub reason: String,
}

impl Address {
    /// The file's name in the run's folder.
    pub const FILE: &str = "coordinator.json";

    /// The address of a coordinator that a process serves.
    pub fn served(url: String, pid: u32) -> Address {
        Address {
            version: VERSION,
            url,
            pid,
            job: None,
            ended: None,
        }
    }

    /// For the trainers of this job.
    pub fn for_job(self, job: Option<String>) -> Address {
        Address { job, ..self }
    }

    /// No address: the coordinator of a job has ended before it served.
    pub fn ended(job: Option<String>, ended: Early) -> Address {
        Address {
            ended: Some(ended),
            ..Address::served(String::new(), 0).for_job(job)
        }
    }

    /// Reads a file; none where there is none, or one of another version.
    pub fn read_file(file: &Path) -> Option<Address> {
        let text = std::fs::read(file).ok()?;
        serde_json::from_slice(&text)
            .ok()
            .filter(|address: &Address| address.version == VERSION)
    }

    /// Reads a run folder's file; none where there is none, one of another version, or one without an address.
    pub fn read(folder: &Path) -> Option<Address> {
        Address::read_file(&folder.join(Address::FILE)).filter(|address| !address.url.is_empty())
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    /// The system's.
    pub fn write_file(&self, file: &Path) -> std::io::Result<()> {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let unfinished = file.with_file_name(format!(".{name}"));
        std::fs::write(&unfinished, serde_json::to_vec(self)?)?;
        std::fs::rename(unfinished, file)
    }

    /// Writes the file into a run's folder.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        self.write_file(&folder.join(Address::FILE))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_written_is_read_and_another_version_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::served("http://127.0.0.1:1".to_owned(), 7);
        address.write(folder.path()).unwrap();
        let file = folder.path().join(Address::FILE);
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, r#"{"version":1,"url":"http://127.0.0.1:1","pid":7}"#);
        assert_eq!(Address::read(folder.path()), Some(address.clone()));
        std::fs::write(&file, text.replace("\"version\":1", "\"version\":2")).unwrap();
        assert_eq!(Address::read(folder.path()), None);
        address.for_job(Some("7 0".to_owned())).write(folder.path()).unwrap();
        assert_eq!(Address::read(folder.path()).unwrap().job.as_deref(), Some("7 0"));
        let files = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 1, "nothing is left beside it");
    }

    #[test]
    fn an_early_end_is_no_address() {
        let folder = tempfile::tempdir().unwrap();
        let ended = Early {
            code: 2,
            reason: "no data".to_owned(),
        };
        Address::ended(None, ended.clone()).write(folder.path()).unwrap();
        assert_eq!(Address::read(folder.path()), None);
        let file = folder.path().join(Address::FILE);
        assert_eq!(Address::read_file(&file).unwrap().ended, Some(ended));
    }
}

//! `coordinator.json` in a live run's folder: where its coordinator listens.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The version of the format that is written and read.
const VERSION: u32 = 1;

/// Where the coordinator of a live run listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Address {
    version: u32,
    /// Its URL.
    pub(crate) url: String,
    /// The process that serves it.
    pub(crate) pid: u32,
}

impl Address {
    /// The file's name in the run's folder.
    pub(crate) const FILE: &str = "coordinator.json";

    /// The address of a coordinator inside this process.
    pub(crate) fn own(url: String) -> Address {
        Address {
            version: VERSION,
            url,
            pid: std::process::id(),
        }
    }

    /// Reads a run folder's file; none where there is none, or one of another version.
    pub(crate) fn read(folder: &Path) -> Option<Address> {
        let text = std::fs::read(folder.join(Address::FILE)).ok()?;
        serde_json::from_slice(&text)
            .ok()
            .filter(|address: &Address| address.version == VERSION)
    }

    /// Writes the file into a run's folder, whole or not at all.
    pub(crate) fn write(&self, folder: &Path) -> std::io::Result<()> {
        let unfinished = folder.join(".coordinator.json");
        std::fs::write(&unfinished, serde_json::to_vec(self)?)?;
        std::fs::rename(unfinished, folder.join(Address::FILE))
    }
}

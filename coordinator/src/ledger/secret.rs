//! The run's secret: 32 random bytes in `secret` of its folder, readable by its owner only. It is made with the folder and
//! outlives the coordinator, since parts of snapshots are opened with what is derived from it.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::ledger::{LedgerError, store};

/// The secret of the run in `folder`. Whoever asks has the folder's lock.
pub(super) fn of(folder: &Path) -> Result<[u8; 32], LedgerError> {
    let path = folder.join("secret");
    let failed = |what, error: std::io::Error| store(what, &path, error);
    let mut bytes = Vec::new();
    match std::fs::File::open(&path) {
        Ok(file) => file
            .take(64)
            .read_to_end(&mut bytes)
            .map_err(|error| failed("read", error))?,
        Err(error) if error.kind() == ErrorKind::NotFound => return make(&path),
        Err(error) => return Err(failed("read", error)),
    };
    bytes.try_into().map_err(|bytes: Vec<u8>| {
        let cause = format!(
            "it has {} bytes, not 32. Put the right file back, or remove it: then snapshots in the memory of trainers that \
             still run cannot be opened",
            bytes.len()
        );
        store("use", &path, cause)
    })
}

/// Writes beside and renames, so that a crash never leaves half a secret.
fn make(path: &Path) -> Result<[u8; 32], LedgerError> {
    let secret: [u8; 32] = rand::random();
    let beside = path.with_extension("part");
    let mut options = std::fs::File::options();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&beside).and_then(|mut file| {
        file.write_all(&secret)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    });
    written.map_err(|error| store("write", path, error))?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_secret_is_made_once_and_only_its_owner_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let secret = of(folder.path()).unwrap();
        assert_eq!(of(folder.path()).unwrap(), secret);
        let mode = std::fs::metadata(folder.path().join("secret"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(of(tempfile::tempdir().unwrap().path()).unwrap(), secret);
    }

    #[test]
    fn a_torn_secret_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), b"short").unwrap();
        let sentence = of(folder.path()).unwrap_err().to_string();
        assert!(
            sentence.contains("secret") && sentence.contains("5 bytes"),
            "{sentence}"
        );
    }
}

//! The coordinator's side: a manifest goes in when all its parts are there, and never over another one.

use object_store::{PutMode, PutOptions};

use crate::error::CheckpointError;
use crate::manifest::{CheckpointName, Manifest};
use crate::store::Store;

impl Store {
    /// Commits a checkpoint. From its return on it can be listed, and outlives a crash. Committing the same one again is no
    /// error.
    ///
    /// # Errors
    /// A part is not in the store or has another length, another checkpoint has that name, or the store did not take it. Where
    /// a remote store gave no answer, the checkpoint may be there all the same: whole.
    pub fn commit(&self, manifest: &Manifest) -> Result<CheckpointName, CheckpointError> {
        let name = manifest.name();
        for part in manifest.parts() {
            let what = match self.length(&part.file())? {
                Some(length) if length == part.bytes => continue,
                Some(length) => format!(
                    "{} in {} is {length} bytes, not {}",
                    part.file(),
                    self.name(),
                    part.bytes
                ),
                None => format!("{} is not in {}", part.file(), self.name()),
            };
            return Err(CheckpointError::Incomplete { step: name.step, what });
        }
        let bytes = manifest.encode()?;
        let file = name.file();
        let path = file.as_str().into();
        // An existing one is no fault of the store: it is told apart from other answers here, not in a sentence.
        let put = self.wait("write", &file, async || {
            let create = PutOptions::from(PutMode::Create);
            match self.objects().put_opts(&path, bytes.clone().into(), create).await {
                Ok(_) => Ok(true),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        });
        match put {
            Ok(true) => Ok(name),
            // There before: by an earlier try whose answer was lost, or by somebody else.
            // S3 says so too of one that somebody else is just making: then the look into it fails, and is reported.
            Ok(false) if self.whole(&file)? == bytes => self.flush(&file).map(|()| name),
            Ok(false) => Err(CheckpointError::Exists {
                store: self.name().to_owned(),
                checkpoint: name,
            }),
            Err(_) if self.is_remote() && self.whole(&file).is_ok_and(|there| there == bytes) => Ok(name),
            Err(error) => Err(error),
        }
    }
}

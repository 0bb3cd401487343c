//! A folder of prepared data: its manifest, the header and size of every file, and the hashes of all or of some of them.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lockstep_data::DataError;
use lockstep_data::manifest::{FILE, Manifest, ShardEntry};
use lockstep_data::shard::Shard;
use serde::Serialize;

/// Of larger data only so many bytes are hashed, unless all are asked for.
pub const SAMPLE: u64 = 256 << 20;

/// Prepared data.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Data {
    /// Its folder.
    pub folder: PathBuf,
    /// BLAKE3 of the manifest.
    pub hash: Option<String>,
    /// Of its tokens.
    pub vocabulary: Option<u32>,
    /// BLAKE3 of the tokenizer.
    pub tokenizer: Option<String>,
    /// Tokens to train on.
    pub training_tokens: u64,
    /// Shards.
    pub shards: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Those that were hashed.
    pub hashed: u64,
    /// Seconds by which the newest file is of the future.
    pub ahead: f64,
    /// The first thing that is wrong with it.
    pub fault: Option<(Fault, PathBuf, String)>,
}

/// What can be wrong with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// It is not there, or cannot be read.
    Missing,
    /// It has another format.
    Version,
    /// It says something else than it should.
    Damaged,
}

impl Data {
    /// Looks at a folder; hashes at most `sample` bytes of shards, spread over them, but for one at least.
    pub fn look(folder: &Path, sample: u64, now: SystemTime) -> Data {
        let mut data = Data {
            folder: folder.to_owned(),
            ..Data::default()
        };
        if let Err(error) = data.read(sample, now) {
            data.fault = Some(fault_of(error, folder));
        }
        data
    }

    fn read(&mut self, sample: u64, now: SystemTime) -> Result<(), DataError> {
        let folder = self.folder.clone();
        let (manifest, hash) = Manifest::read(&folder)?;
        self.hash = Some(hash);
        self.vocabulary = Some(manifest.vocab);
        self.tokenizer = Some(manifest.tokenizer.blake3.clone());
        self.training_tokens = manifest.train.tokens;
        self.see(&folder.join(FILE), now)?;
        let tokenizer = folder.join(&manifest.tokenizer.file);
        self.see(&tokenizer, now)?;
        self.check_hash(&tokenizer, &manifest.tokenizer.blake3)?;
        let shards: Vec<&ShardEntry> = manifest
            .train
            .shards
            .iter()
            .chain(&manifest.validation.shards)
            .collect();
        let mut sizes = Vec::with_capacity(shards.len());
        for entry in &shards {
            let path = folder.join(&entry.file);
            let shard = Shard::open(&path)?;
            if shard.tokens() != entry.tokens {
                let reason = format!(
                    "the shard has {} tokens, and the manifest says {}",
                    shard.tokens(),
                    entry.tokens
                );
                return Err(DataError::Damaged { path, reason });
            }
            sizes.push(self.see(&path, now)?);
        }
        self.shards = shards.len() as u64;
        for index in chosen(&sizes, sample) {
            let entry = shards[index];
            self.check_hash(&folder.join(&entry.file), &entry.blake3)?;
            self.hashed += sizes[index];
        }
        Ok(())
    }

    /// Counts a file; its size.
    fn see(&mut self, path: &Path, now: SystemTime) -> Result<u64, DataError> {
        let metadata = path.metadata().map_err(|error| system("read", path, &error))?;
        let modified = metadata
            .modified()
            .ok()
            .and_then(|modified| modified.duration_since(now).ok());
        self.ahead = self.ahead.max(modified.map_or(0.0, |span| span.as_secs_f64()));
        self.bytes += metadata.len();
        Ok(metadata.len())
    }

    fn check_hash(&self, path: &Path, expected: &str) -> Result<(), DataError> {
        let failed = |error: std::io::Error| system("read", path, &error);
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).map_err(failed)?;
        let found = hasher.finalize().to_hex();
        match found.as_str() == expected {
            true => Ok(()),
            false => Err(DataError::Damaged {
                path: path.to_owned(),
                reason: format!("the file was changed: its BLAKE3 is {found}, and the manifest says {expected}"),
            }),
        }
    }
}

fn system(action: &'static str, path: &Path, error: &std::io::Error) -> DataError {
    DataError::System {
        action,
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

/// Which files are hashed: all where they fit, else as many as do, evenly from the first to the last.
fn chosen(sizes: &[u64], most: u64) -> Vec<usize> {
    let all: u64 = sizes.iter().sum();
    if all <= most {
        return (0..sizes.len()).collect();
    }
    let mean = (all / sizes.len().max(1) as u64).max(1);
    let count = usize::try_from(most / mean).unwrap_or(usize::MAX).clamp(1, sizes.len());
    let last = sizes.len() - 1;
    (0..count).map(|number| number * last / (count - 1).max(1)).collect()
}

fn fault_of(error: DataError, folder: &Path) -> (Fault, PathBuf, String) {
    match error {
        DataError::System { action, path, reason } => (Fault::Missing, path, format!("cannot {action}: {reason}")),
        DataError::NotADataset { path } => (
            Fault::Missing,
            path,
            format!("it has no {FILE}, so it is no data folder"),
        ),
        DataError::UnknownVersion {
            path,
            format,
            found,
            known,
        } => (
            Fault::Version,
            path,
            format!("this is {format} version {found}, and this build reads version {known} only"),
        ),
        DataError::Damaged { path, reason } => (Fault::Damaged, path, reason),
        other => (Fault::Damaged, folder.to_owned(), other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_spread_and_small_data_is_hashed_whole() {
        assert_eq!(chosen(&[10, 10, 10], 30), [0, 1, 2]);
        assert_eq!(chosen(&[10; 9], 30), [0, 4, 8]);
        assert_eq!(chosen(&[100; 5], 10), [0], "one at least");
        assert_eq!(chosen(&[], 10), [0usize; 0]);
    }
}

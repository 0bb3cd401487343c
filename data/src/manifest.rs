//! `manifest.json` of a data folder: what it holds, with the size and BLAKE3 of every file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// The manifest's file name.
pub const FILE: &str = "manifest.json";
/// The version of the format that is written and read.
pub const VERSION: u32 = 1;

/// What a data folder holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format.
    pub version: u32,
    /// Size of the vocabulary: every token is below it.
    pub vocab: u32,
    /// The tokenizer that made the tokens.
    pub tokenizer: TokenizerEntry,
    /// The training split.
    pub train: SplitEntry,
    /// The validation split.
    pub validation: SplitEntry,
}

/// The tokenizer's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerEntry {
    /// File name inside the folder.
    pub file: String,
    /// Its kind, for people.
    pub kind: String,
    /// BLAKE3 of the file, in hex.
    pub blake3: String,
}

/// One split: its shards in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitEntry {
    /// Tokens in all shards together.
    pub tokens: u64,
    /// The shards.
    pub shards: Vec<ShardEntry>,
}

/// One shard file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// File name inside the folder.
    pub file: String,
    /// Tokens in it.
    pub tokens: u64,
    /// BLAKE3 of the file, in hex.
    pub blake3: String,
}

impl Manifest {
    /// Reads a folder's manifest; also returns BLAKE3 of its text, in hex.
    ///
    /// # Errors
    /// There is none, it cannot be read, is of another version or does not follow the format.
    pub fn read(folder: &Path) -> Result<(Manifest, String), DataError> {
        let path = folder.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return match folder.metadata() {
                    Ok(_) => Err(DataError::NotADataset {
                        path: folder.to_owned(),
                    }),
                    Err(error) => Err(DataError::system("read the data folder", folder, &error)),
                };
            }
            Err(error) => return Err(DataError::system("read the data manifest", &path, &error)),
        };
        let broken = |error: serde_json::Error| DataError::damaged(&path, format!("the manifest is broken ({error})"));
        // The version first: another version may have other keys.
        let value: serde_json::Value = serde_json::from_str(&text).map_err(broken)?;
        check_version(&value, &path, "the data manifest format", VERSION)?;
        let manifest: Manifest = serde_json::from_value(value).map_err(broken)?;
        manifest.check(&path)?;
        let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
        Ok((manifest, hash))
    }

    fn check(&self, path: &Path) -> Result<(), DataError> {
        for split in [&self.train, &self.validation] {
            let sum = split
                .shards
                .iter()
                .try_fold(0u64, |sum, shard| sum.checked_add(shard.tokens));
            if sum != Some(split.tokens) {
                return Err(DataError::damaged(path, "the token counts of its shards do not add up"));
            }
        }
        let shards = self
            .train
            .shards
            .iter()
            .chain(&self.validation.shards)
            .map(|shard| &shard.file);
        for file in shards.chain([&self.tokenizer.file]) {
            if Path::new(file).file_name() != Some(file.as_ref()) {
                return Err(DataError::damaged(path, format!("{file:?} is not a plain file name")));
            }
        }
        Ok(())
    }
}

/// Refuses any version but the known one, by name.
pub(crate) fn check_version(
    value: &serde_json::Value,
    path: &Path,
    format: &'static str,
    known: u32,
) -> Result<(), DataError> {
    match value.get("version") {
        Some(version) if version.as_u64() == Some(known.into()) => Ok(()),
        Some(version) => Err(DataError::UnknownVersion {
            path: path.to_owned(),
            format,
            found: version.to_string(),
            known,
        }),
        None => Err(DataError::damaged(path, "it has no version")),
    }
}

//! An opened data folder: manifest and shards checked, tokens readable at any place.

use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::manifest::{Manifest, SplitEntry};
use crate::shard::{Shard, hash_file};
use crate::tokenizer::Tokenizer;

/// A checked data folder.
#[derive(Debug)]
pub struct Dataset {
    folder: PathBuf,
    manifest: Manifest,
    manifest_hash: String,
    train: Split,
    validation: Split,
}

impl Dataset {
    /// Opens a folder made by [`crate::prepare()`] and checks version, size and BLAKE3 of every file in it.
    ///
    /// # Errors
    /// Names the first file that is missing, truncated, edited or of an unknown version.
    pub fn open(folder: &Path) -> Result<Dataset, DataError> {
        let (manifest, manifest_hash) = Manifest::read(folder)?;
        let tokenizer = folder.join(&manifest.tokenizer.file);
        check_hash(&tokenizer, &hash_file(&tokenizer)?, &manifest.tokenizer.blake3)?;
        let train = Split::open(folder, &manifest.train)?;
        let validation = Split::open(folder, &manifest.validation)?;
        Ok(Dataset {
            folder: folder.to_owned(),
            manifest,
            manifest_hash,
            train,
            validation,
        })
    }

    /// What the folder holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// BLAKE3 of the manifest, in hex. It holds the hashes of all files: equal hashes are equal data.
    pub fn manifest_hash(&self) -> String {
        self.manifest_hash.clone()
    }

    /// Size of the vocabulary: every token is below it.
    pub fn vocab(&self) -> u32 {
        self.manifest.vocab
    }

    /// Where the data is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The tokenizer that made the tokens.
    ///
    /// # Errors
    /// Its file cannot be read.
    pub fn tokenizer(&self) -> Result<Tokenizer, DataError> {
        Tokenizer::load(&self.folder)
    }

    /// The training split.
    pub fn train(&self) -> &Split {
        &self.train
    }

    /// The validation split.
    pub fn validation(&self) -> &Split {
        &self.validation
    }
}

fn check_hash(path: &Path, found: &str, expected: &str) -> Result<(), DataError> {
    if found == expected {
        return Ok(());
    }
    Err(DataError::damaged(
        path,
        format!("the file was changed: its BLAKE3 is {found}, and the manifest says {expected}"),
    ))
}

/// The tokens of one split, over all of its shards.
#[derive(Debug)]
pub struct Split {
    /// `(first token, shard)`, in order.
    shards: Vec<(u64, Shard)>,
    tokens: u64,
}

impl Split {
    fn open(folder: &Path, entry: &SplitEntry) -> Result<Split, DataError> {
        let mut shards = Vec::with_capacity(entry.shards.len());
        let mut first = 0;
        for listed in &entry.shards {
            let shard = Shard::open(&folder.join(&listed.file))?;
            if shard.tokens() != listed.tokens {
                return Err(DataError::damaged(
                    shard.path(),
                    format!(
                        "the shard has {} tokens, and the manifest says {}",
                        shard.tokens(),
                        listed.tokens
                    ),
                ));
            }
            check_hash(shard.path(), &shard.hash()?, &listed.blake3)?;
            shards.push((first, shard));
            first += listed.tokens;
        }
        Ok(Split {
            shards,
            tokens: entry.tokens,
        })
    }

    /// Tokens in the split.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Training samples: windows of `sequence_length + 1` tokens whose starts are `sequence_length` apart. Every
    /// token but the first is predicted at most once in an epoch; a tail that fills no window is left out.
    pub fn training_samples(&self, sequence_length: u32) -> u64 {
        self.tokens.saturating_sub(1) / u64::from(sequence_length)
    }

    /// Reads `out.len()` tokens from token `first` on, across shards.
    ///
    /// # Errors
    /// The range is outside of the split, or a file cannot be read.
    pub fn read(&self, first: u64, out: &mut [u32]) -> Result<(), DataError> {
        let end = first.saturating_add(out.len() as u64);
        if end > self.tokens {
            return Err(DataError::OutOfRange {
                first,
                end,
                tokens: self.tokens,
            });
        }
        let mut at = self
            .shards
            .partition_point(|(start, _)| *start <= first)
            .saturating_sub(1);
        let mut done = 0;
        while done < out.len() {
            let (start, shard) = &self.shards[at];
            let offset = first + done as u64 - start;
            let left = usize::try_from(shard.tokens() - offset).unwrap_or(usize::MAX);
            let count = left.min(out.len() - done);
            shard.read(offset, &mut out[done..done + count])?;
            done += count;
            at += 1;
        }
        Ok(())
    }
}

//! `lockstep data prepare`: text files to a data folder.
//!
//! Everything is read and encoded first; then a hidden folder beside the target is written and synced, and takes the
//! target's place in one step. An interrupted `prepare` leaves nothing, or what a kill left is swept by the next.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::error::DataError;
use crate::manifest::{self, Manifest, ShardEntry, SplitEntry, TokenizerEntry};
use crate::shard;
use crate::text::{read_documents, split_last_tenth};
use crate::tokenizer::{self, Tokenizer, TokenizerChoice};

/// Tokens in a full shard: at most 256 MiB.
const SHARD_TOKENS: usize = 1 << 26;

/// What to prepare.
#[derive(Debug, Clone)]
pub struct Options {
    /// Text files, and folders of them.
    pub inputs: Vec<PathBuf>,
    /// The data folder to make; a former data folder is replaced.
    pub out: PathBuf,
    /// How text becomes tokens.
    pub tokenizer: TokenizerChoice,
}

/// What was prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The data folder.
    pub out: PathBuf,
    /// Text files read.
    pub documents: usize,
    /// Bytes of text read.
    pub bytes: u64,
    /// Size of the vocabulary.
    pub vocab: u32,
    /// Tokens for training.
    pub train_tokens: u64,
    /// Tokens for validation.
    pub validation_tokens: u64,
    /// BLAKE3 of the manifest, in hex.
    pub manifest_hash: String,
}

/// Prepares text for training. The last tenth of the text is kept for validation. `cancel` may be set from another
/// thread: nothing is left then.
///
/// # Errors
/// Names the path that is missing, empty, not UTF-8 or not to be overwritten.
pub fn prepare(options: &Options, cancel: &AtomicBool) -> Result<Summary, DataError> {
    check_target(&options.out)?;
    let go_on = || {
        if cancel.load(Ordering::Relaxed) {
            Err(DataError::Interrupted)
        } else {
            Ok(())
        }
    };
    let documents = read_documents(&options.inputs, &options.out)?;
    let bytes: u64 = documents.iter().map(|document| document.text.len() as u64).sum();
    let (train, validation) = split_last_tenth(&documents);
    if train.is_empty() || validation.is_empty() {
        return Err(DataError::Input(format!(
            "the text under {} has {bytes} bytes, which is too little to train and validate on; give more text",
            names(&options.inputs)
        )));
    }
    let tokenizer = match &options.tokenizer {
        TokenizerChoice::Byte => Tokenizer::byte(),
        TokenizerChoice::Gpt2 => Tokenizer::gpt2(),
        TokenizerChoice::File(path) => Tokenizer::from_library_file(path)?,
        TokenizerChoice::Train(vocab) => Tokenizer::train(*vocab, train.iter().copied())?,
    };
    let encode = |parts: &[&str]| -> Result<Vec<u32>, DataError> {
        let mut tokens = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            go_on()?;
            if index > 0 {
                tokens.extend(tokenizer.end_of_text());
            }
            tokens.extend(tokenizer.encode(part)?);
        }
        Ok(tokens)
    };
    let (train, validation) = (encode(&train)?, encode(&validation)?);
    if train.len() < 2 || validation.len() < 2 {
        return Err(DataError::Input(format!(
            "the text under {} gives {} tokens for training and {} for validation, and each needs at least 2; give more text",
            names(&options.inputs),
            train.len(),
            validation.len()
        )));
    }

    let folder = Unfinished::create(&options.out)?;
    let definition = tokenizer.to_json()?;
    write_file(&folder.path.join(tokenizer::FILE), definition.as_bytes())?;
    let vocab = tokenizer.vocab();
    let split = |name: &str, tokens: &[u32]| -> Result<SplitEntry, DataError> {
        let mut shards = Vec::new();
        for (index, part) in tokens.chunks(SHARD_TOKENS).enumerate() {
            go_on()?;
            let file = format!("{name}-{index:05}.shard");
            let blake3 = shard::write(&folder.path.join(&file), vocab, part)?;
            shards.push(ShardEntry {
                file,
                tokens: part.len() as u64,
                blake3,
            });
        }
        Ok(SplitEntry {
            tokens: tokens.len() as u64,
            shards,
        })
    };
    let manifest = Manifest {
        version: manifest::VERSION,
        vocab,
        tokenizer: TokenizerEntry {
            file: tokenizer::FILE.to_owned(),
            kind: tokenizer.kind().to_owned(),
            blake3: blake3::hash(definition.as_bytes()).to_hex().to_string(),
        },
        train: split("train", &train)?,
        validation: split("validation", &validation)?,
    };
    let text = serde_json::to_string_pretty(&manifest)
        .map_err(|error| DataError::Input(format!("the manifest cannot be written: {error}")))?;
    write_file(&folder.path.join(manifest::FILE), text.as_bytes())?;
    go_on()?;
    folder.take_place_of(&options.out)?;
    Ok(Summary {
        out: options.out.clone(),
        documents: documents.len(),
        bytes,
        vocab,
        train_tokens: manifest.train.tokens,
        validation_tokens: manifest.validation.tokens,
        manifest_hash: blake3::hash(text.as_bytes()).to_hex().to_string(),
    })
}

fn names(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Refuses to overwrite anything but an empty folder and a former data folder.
fn check_target(out: &Path) -> Result<(), DataError> {
    let entries = match std::fs::read_dir(out) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(DataError::system("use as a data folder", out, &error)),
    };
    let names: Vec<OsString> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    let ours = |name: &OsString| {
        name.to_str().is_some_and(|name| {
            name == manifest::FILE
                || name == tokenizer::FILE
                || Path::new(name).extension().is_some_and(|e| e == "shard")
        })
    };
    let has_manifest = names.iter().any(|name| name == manifest::FILE);
    if names.is_empty() || has_manifest && names.iter().all(ours) {
        return Ok(());
    }
    Err(DataError::Input(format!(
        "the output folder {} holds other things than data of `lockstep data prepare`; choose another --out, or empty it",
        out.display()
    )))
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), DataError> {
    let write = || {
        let mut file = std::fs::File::create_new(path)?;
        std::io::Write::write_all(&mut file, content)?;
        file.sync_all()
    };
    write().map_err(|error| DataError::system("write", path, &error))
}

/// A folder being written, removed again unless it takes its place.
struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    fn create(out: &Path) -> Result<Unfinished, DataError> {
        let absolute = std::path::absolute(out).map_err(|error| DataError::system("find", out, &error))?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(DataError::Input(format!(
                "{} cannot be a data folder; choose another --out",
                out.display()
            )));
        };
        std::fs::create_dir_all(parent).map_err(|error| DataError::system("create the folder", parent, &error))?;
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".preparing-");
        sweep(parent, &prefix);
        prefix.push(std::process::id().to_string());
        let path = parent.join(prefix);
        std::fs::create_dir(&path).map_err(|error| DataError::system("create the folder", &path, &error))?;
        Ok(Unfinished { path })
    }

    /// Puts the finished folder where `out` is, in one step; what was there is removed.
    fn take_place_of(self, out: &Path) -> Result<(), DataError> {
        let failed = |error: std::io::Error| DataError::system("put the data at", out, &error);
        if out.exists() {
            // After the exchange the former content lies at `self.path`, which goes when `self` does.
            renameat_with(CWD, &self.path, CWD, out, RenameFlags::EXCHANGE).map_err(|error| failed(error.into()))
        } else {
            std::fs::rename(&self.path, out).map_err(failed)
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After a plain rename there is nothing here any more; otherwise the rest is swept by the next `prepare`.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Removes what a killed `prepare` of the same target has left.
fn sweep(parent: &Path, prefix: &std::ffi::OsStr) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes()) else {
            continue;
        };
        let pid = std::str::from_utf8(pid).ok().and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Best effort: a folder that stays is only in the way of nobody.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

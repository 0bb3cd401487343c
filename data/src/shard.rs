//! Shard files: a header of 24 bytes, then tokens, little-endian.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0–7 | `LOCKSHRD` |
//! | 8–11 | version, u32 |
//! | 12–15 | bytes of a token, u32: 2 or 4 |
//! | 16–23 | number of tokens, u64 |
//!
//! A [`Shard`] reads tokens at any place with positioned reads from the page cache: a file that shrinks while it is
//! in use gives an error, where a mapping would kill the process.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::DataError;

const MAGIC: &[u8; 8] = b"LOCKSHRD";
/// The version of the format that is written and read.
pub const VERSION: u32 = 1;
const HEADER: u64 = 24;

/// An open shard whose header and size have been checked.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: File,
    token_bytes: usize,
    tokens: u64,
}

impl Shard {
    /// Opens a shard and checks header and size; the content's hash is [`Shard::hash`]'s.
    ///
    /// # Errors
    /// The file cannot be read, has another format or version, or is shorter or longer than its header says.
    pub fn open(path: &Path) -> Result<Shard, DataError> {
        let file = File::open(path).map_err(|error| DataError::system("read the shard", path, &error))?;
        let size = file
            .metadata()
            .map_err(|error| DataError::system("read the shard", path, &error))?
            .len();
        if size < HEADER {
            return Err(DataError::damaged(
                path,
                format!("the shard is truncated: it has {size} bytes"),
            ));
        }
        let mut header = [0; HEADER as usize];
        file.read_exact_at(&mut header, 0)
            .map_err(|error| DataError::system("read the shard", path, &error))?;
        if &header[..8] != MAGIC {
            return Err(DataError::damaged(path, "this is not a shard of tokens"));
        }
        let word = |at: usize| {
            header[at..at + 4]
                .iter()
                .rev()
                .fold(0, |word: u32, byte| word << 8 | u32::from(*byte))
        };
        let version = word(8);
        if version != VERSION {
            return Err(DataError::UnknownVersion {
                path: path.to_owned(),
                format: "the shard format",
                found: version.to_string(),
                known: VERSION,
            });
        }
        let token_bytes = word(12);
        if token_bytes != 2 && token_bytes != 4 {
            return Err(DataError::damaged(
                path,
                format!("the shard says that a token has {token_bytes} bytes"),
            ));
        }
        let tokens = u64::from(word(20)) << 32 | u64::from(word(16));
        let expected = tokens
            .checked_mul(token_bytes.into())
            .and_then(|bytes| bytes.checked_add(HEADER));
        if expected != Some(size) {
            let change = if expected.is_some_and(|expected| expected < size) {
                "too long"
            } else {
                "truncated"
            };
            return Err(DataError::damaged(
                path,
                format!(
                    "the shard is {change}: it has {size} bytes, and its header says {tokens} tokens of {token_bytes} bytes"
                ),
            ));
        }
        Ok(Shard {
            path: path.to_owned(),
            file,
            token_bytes: token_bytes as usize,
            tokens,
        })
    }

    /// Tokens in the shard.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Where the shard is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads `out.len()` tokens from token `first` on.
    ///
    /// # Errors
    /// The range is outside of the shard, or the file cannot be read.
    pub fn read(&self, first: u64, out: &mut [u32]) -> Result<(), DataError> {
        let end = first.saturating_add(out.len() as u64);
        if end > self.tokens {
            return Err(DataError::OutOfRange {
                first,
                end,
                tokens: self.tokens,
            });
        }
        let mut bytes = vec![0; out.len() * self.token_bytes];
        self.file
            .read_exact_at(&mut bytes, HEADER + first * self.token_bytes as u64)
            .map_err(|error| DataError::system("read the shard", &self.path, &error))?;
        for (token, bytes) in out.iter_mut().zip(bytes.chunks_exact(self.token_bytes)) {
            *token = bytes.iter().rev().fold(0, |token, byte| token << 8 | u32::from(*byte));
        }
        Ok(())
    }

    /// BLAKE3 of the whole file, in hex.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn hash(&self) -> Result<String, DataError> {
        hash_file(&self.path)
    }
}

/// BLAKE3 of a whole file, in hex.
pub(crate) fn hash_file(path: &Path) -> Result<String, DataError> {
    let failed = |error: std::io::Error| DataError::system("read", path, &error);
    let mut file = File::open(path).map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut chunk).map_err(failed)?;
        if count == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(&chunk[..count]);
    }
}

/// Writes a shard and syncs it. Tokens take 2 bytes where every id of the vocabulary fits, else 4. Returns BLAKE3
/// of the file, in hex.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, vocab: u32, tokens: &[u32]) -> Result<String, DataError> {
    let token_bytes: usize = if vocab <= 1 << 16 { 2 } else { 4 };
    let failed = |error: std::io::Error| DataError::system("write the shard", path, &error);
    let file = File::create_new(path).map_err(failed)?;
    let mut out = Hashing {
        out: BufWriter::with_capacity(1 << 20, file),
        hasher: blake3::Hasher::new(),
    };
    let mut write = |bytes: &[u8]| out.write(bytes).map_err(failed);
    write(MAGIC)?;
    write(&VERSION.to_le_bytes())?;
    write(&(token_bytes as u32).to_le_bytes())?;
    write(&(tokens.len() as u64).to_le_bytes())?;
    for part in tokens.chunks(1 << 16) {
        let bytes: Vec<u8> = part
            .iter()
            .flat_map(|token| token.to_le_bytes().into_iter().take(token_bytes))
            .collect();
        write(&bytes)?;
    }
    out.out.flush().map_err(failed)?;
    out.out.get_ref().sync_all().map_err(failed)?;
    Ok(out.hasher.finalize().to_hex().to_string())
}

/// Hashes what it writes.
struct Hashing {
    out: BufWriter<File>,
    hasher: blake3::Hasher,
}

impl Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }
}

//! The owner's side: a sealed part goes into a store, once. A part that is there already, and whole, is not written again.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::error::CheckpointError;
use crate::hash::ContentHash;
use crate::part::{PartEntry, Sealed};
use crate::retention::GRACE;
use crate::store::{PIECE, PIECES, Store};

/// S3 takes ten thousand pieces a file at most.
const MOST_PIECES: u64 = 9_000;

impl Store {
    /// Writes a part; when it returns, the part outlives a crash. At most four pieces of it are in memory a second time
    /// (in a memory store, the copy that it is there to keep).
    ///
    /// # Errors
    /// The store did not take it. What was there before stands.
    pub fn write(&self, part: &Sealed<'_>) -> Result<PartEntry, CheckpointError> {
        let entry = part.entry();
        if !self.has_whole(entry)? {
            let copy = |offset: u64, length: usize| {
                let mut piece = vec![0; length];
                part.copy(offset, &mut piece);
                Bytes::from(piece)
            };
            self.put(entry, copy)?;
        }
        Ok(entry.clone())
    }

    /// Puts in a part that came from elsewhere: another host's share of a snapshot.
    ///
    /// # Errors
    /// The bytes are not those that the entry names, or the store did not take them.
    pub fn adopt(&self, entry: &PartEntry, bytes: Bytes) -> Result<(), CheckpointError> {
        let hash = ContentHash::of(&bytes);
        if hash != entry.hash || bytes.len() as u64 != entry.bytes {
            return Err(CheckpointError::Request(format!(
                "what came as part {} is {} bytes of hash {hash}; it is not taken. Send it again",
                entry.hash,
                bytes.len()
            )));
        }
        if !self.has_whole(entry)? {
            self.put(entry, |offset, length| {
                bytes.slice(offset as usize..offset as usize + length)
            })?;
        }
        Ok(())
    }

    /// Whether the part is there, whole, and young enough that no retention pass is after it. Its name alone proves nothing:
    /// a disk may have lost some of it. One that is damaged is written again.
    fn has_whole(&self, entry: &PartEntry) -> Result<bool, CheckpointError> {
        let Some(meta) = self.head(&entry.file())? else {
            return Ok(false);
        };
        let age = std::time::SystemTime::now()
            .duration_since(meta.last_modified.into())
            .unwrap_or(Duration::ZERO);
        if meta.size != entry.bytes || age >= GRACE / 2 || !self.is_intact(entry)? {
            return Ok(false);
        }
        // Whoever wrote it may have died between the rename and this.
        self.flush(&entry.file())?;
        Ok(true)
    }

    fn is_intact(&self, entry: &PartEntry) -> Result<bool, CheckpointError> {
        let mut hasher = blake3::Hasher::new();
        self.stream(&entry.file(), [0, entry.bytes], |piece| {
            hasher.update(piece);
            true
        })?;
        Ok(entry.hash == hasher.finalize().into())
    }

    fn put(&self, entry: &PartEntry, copy: impl Fn(u64, usize) -> Bytes) -> Result<(), CheckpointError> {
        let file = entry.file();
        let path = Path::from(file.as_str());
        let written = if self.is_memory() || entry.bytes <= PIECE {
            let whole = copy(0, entry.bytes as usize);
            self.wait("write", &file, async || {
                self.objects().put(&path, whole.clone().into()).await
            })
            .map(|_| ())
        } else {
            self.wait("write", &file, async || {
                in_pieces(self.objects(), &path, entry.bytes, &copy).await
            })
        };
        match written {
            // The answer may have been lost on its way, not the part.
            Err(error) if self.is_remote() => match self.length(&file) {
                Ok(Some(length)) if length == entry.bytes && self.is_intact(entry)? => Ok(()),
                _ => Err(error),
            },
            other => other,
        }
    }
}

async fn in_pieces(
    objects: &dyn ObjectStore,
    path: &Path,
    bytes: u64,
    copy: &impl Fn(u64, usize) -> Bytes,
) -> object_store::Result<()> {
    let piece = PIECE.max(bytes.div_ceil(MOST_PIECES));
    let mut upload = objects.put_multipart(path).await?;
    let mut sent = async || {
        let mut running = FuturesUnordered::new();
        let mut offset = 0;
        while offset < bytes {
            if running.len() == PIECES
                && let Some(done) = running.next().await
            {
                done?;
            }
            let length = piece.min(bytes - offset);
            running.push(upload.put_part(copy(offset, length as usize).into()));
            offset += length;
        }
        while let Some(done) = running.next().await {
            done?;
        }
        upload.complete().await
    };
    let result = sent().await;
    if result.is_err() {
        // What it leaves behind takes room only; the first error is the one to report.
        let _ = upload.abort().await;
    }
    result.map(|_| ())
}

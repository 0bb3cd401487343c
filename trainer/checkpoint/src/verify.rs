//! Whether a checkpoint is good, and which is the newest good one. A checkpoint that is at fault is passed over, with its
//! reason; a store that does not answer is an error, since going back to an older step for that would lose work unasked.

use crate::error::CheckpointError;
use crate::manifest::{CheckpointName, Manifest};
use crate::read::{BlockCheck, Reader};
use crate::store::Store;

/// How closely a checkpoint is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The manifest's hash, and that every part is there with its length. Reading checks the rest, block by block.
    Lengths,
    /// Every byte of every part.
    Bytes,
}

/// A checkpoint that was passed over.
#[derive(Debug)]
pub struct Refused {
    /// Which.
    pub name: CheckpointName,
    /// Why.
    pub reason: String,
}

/// The newest good checkpoint, and what was passed over on the way to it.
pub struct Newest {
    /// The checkpoint; `None` where none is good.
    pub reader: Option<Reader>,
    /// The newer ones that were refused, newest first.
    pub refused: Vec<Refused>,
}

impl Store {
    /// The newest checkpoint that verifies and that `accept` takes. `accept` can say that a checkpoint is of another run, or
    /// on a branch that a rewind has closed.
    ///
    /// # Errors
    /// The store did not answer.
    pub fn newest_good(
        &self,
        depth: Depth,
        mut accept: impl FnMut(&Manifest) -> Result<(), String>,
    ) -> Result<Newest, CheckpointError> {
        let mut refused = Vec::new();
        for name in self.list()? {
            let checked = self.open_checkpoint(name).and_then(|reader| {
                let verdict = accept(reader.manifest());
                if verdict.is_ok() {
                    reader.verify(depth)?;
                }
                Ok((reader, verdict))
            });
            match checked {
                Ok((reader, Ok(()))) => {
                    return Ok(Newest {
                        reader: Some(reader),
                        refused,
                    });
                }
                Ok((_, Err(reason))) => refused.push(Refused { name, reason }),
                Err(error) if error.refuses() => refused.push(Refused {
                    name,
                    reason: error.to_string(),
                }),
                Err(error) => return Err(error),
            }
        }
        Ok(Newest { reader: None, refused })
    }
}

impl Reader {
    /// Checks every byte of every part.
    ///
    /// # Errors
    /// The first thing that is missing or damaged, or the store did not answer.
    pub fn verify_all(&self) -> Result<(), CheckpointError> {
        self.verify(Depth::Bytes)
    }

    /// Checks as closely as `depth` says.
    ///
    /// # Errors
    /// As [`Reader::verify_all`].
    pub fn verify(&self, depth: Depth) -> Result<(), CheckpointError> {
        let store = self.store();
        for part in self.manifest().parts() {
            let file = part.file();
            match store.length(&file)? {
                Some(length) if length == part.bytes => {}
                Some(length) => {
                    return Err(self.damaged(&file, None, format!("is {length} bytes, not {}", part.bytes)));
                }
                None => {
                    return Err(CheckpointError::Missing {
                        store: store.name().to_owned(),
                        file,
                        for_whom: format!(", and checkpoint {} needs it", self.name()),
                    });
                }
            }
        }
        if depth == Depth::Lengths {
            return Ok(());
        }
        for part in self.manifest().parts() {
            let file = part.file();
            let mut whole = blake3::Hasher::new();
            let mut check = BlockCheck::new(&part.blocks);
            // The header comes before the first block.
            let mut header = part.blocks.first().map_or(0, |block| block.offset);
            let streamed = store.stream(&file, [0, part.bytes], |piece| {
                whole.update(piece);
                let skipped = header.min(piece.len() as u64);
                header -= skipped;
                check.take(&piece[skipped as usize..], &mut |_, _| {})
            });
            self.judge(part, check, streamed)?;
            let found = whole.finalize().into();
            if part.hash != found {
                return Err(self.damaged(&file, None, format!("has content of hash {found}")));
            }
        }
        Ok(())
    }
}

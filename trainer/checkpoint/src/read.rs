//! Reading a committed checkpoint back, for any world: any range of any array. No value is given out before the hash of its
//! block was seen to be right.

use std::ops::Range;

use bytes::Bytes;

use crate::error::CheckpointError;
use crate::hash::ContentHash;
use crate::manifest::{CheckpointName, Manifest};
use crate::part::{BlockEntry, PartEntry, WIDTH, no_array};
use crate::store::Store;

/// A committed checkpoint whose manifest is intact. Its parts are looked at when they are read.
pub struct Reader {
    store: Store,
    name: CheckpointName,
    manifest: Manifest,
}

impl Store {
    /// The checkpoints that have a manifest, newest first; none is looked into. Nothing else is asked: there is no `latest` to
    /// be wrong.
    ///
    /// # Errors
    /// The store did not answer.
    pub fn list(&self) -> Result<Vec<CheckpointName>, CheckpointError> {
        let files = self.files()?;
        let mut names: Vec<CheckpointName> = files
            .iter()
            .filter_map(|file| CheckpointName::from_file(file.location.as_ref()))
            .collect();
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names)
    }

    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// It is missing, damaged, of another version, or the store did not answer.
    pub fn open_checkpoint(&self, name: CheckpointName) -> Result<Reader, CheckpointError> {
        let bytes = self
            .whole(&name.file())
            .map_err(|error| self.blame(name, &name.file(), None, error))?;
        Ok(Reader {
            store: self.clone(),
            name,
            manifest: Manifest::decode(self.name(), name, &bytes)?,
        })
    }

    /// A part whole, for another store to adopt: how a snapshot goes to another host. From a memory store it is no copy.
    ///
    /// # Errors
    /// It is missing, is not what its name says, or the store did not answer.
    pub fn part_bytes(&self, entry: &PartEntry) -> Result<Bytes, CheckpointError> {
        let bytes = self.whole(&entry.file())?;
        let hash = ContentHash::of(&bytes);
        if hash != entry.hash {
            return Err(CheckpointError::Altered {
                store: self.name().to_owned(),
                file: entry.file(),
                found: hash,
            });
        }
        Ok(bytes)
    }

    /// Says whom a missing file concerns, and tells a bad disk from a store that cannot be reached.
    pub(crate) fn blame(
        &self,
        checkpoint: CheckpointName,
        file: &str,
        block: Option<&BlockEntry>,
        error: CheckpointError,
    ) -> CheckpointError {
        match error {
            CheckpointError::Missing { store, file, .. } => CheckpointError::Missing {
                store,
                file,
                for_whom: match block {
                    Some(block) => format!(", and {block} of checkpoint {checkpoint} is in it"),
                    None => format!(", and checkpoint {checkpoint} needs it"),
                },
            },
            // What a disk says of a file that it has lost: the kernel's EIO.
            CheckpointError::Store { store, cause, .. } if self.path().is_some() && cause.contains("os error 5)") => {
                CheckpointError::Damaged {
                    store,
                    checkpoint,
                    file: file.to_owned(),
                    block: block.map(|block| format!(" in block {block}")).unwrap_or_default(),
                    what: format!("cannot be read from the disk: {cause}"),
                }
            }
            other => other,
        }
    }
}

impl Reader {
    /// Which checkpoint it is.
    pub fn name(&self) -> CheckpointName {
        self.name
    }

    /// What it holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The store it is in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Reads `elements` of a flat array into `out`, whoever wrote them. Blocks that are touched are read whole, to be checked.
    /// Several threads may read at once.
    ///
    /// # Errors
    /// There is no such array or range, a part is missing or damaged, or the store did not answer. Then `out` is all NaN.
    pub fn read(
        &self,
        tensor: &str,
        array: &str,
        elements: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let result = self.read_checked(tensor, array, elements, out);
        if result.is_err() {
            out.fill(f32::NAN);
        }
        result
    }

    fn read_checked(
        &self,
        tensor: &str,
        array: &str,
        elements: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let coverage = self.manifest.coverage();
        let Some(places) = coverage.find(tensor, array) else {
            return Err(match self.manifest.tensors().iter().find(|t| t.name == tensor) {
                Some(tensor) => no_array(tensor, array),
                None => CheckpointError::Request(format!("checkpoint {} has no tensor {tensor:?}", self.name)),
            });
        };
        let tensor = &self.manifest.tensors()[places.tensor];
        let array = &tensor.arrays[places.array];
        if elements.end > array.elements() || elements.start > elements.end || out.len() != elements.len() {
            return Err(CheckpointError::Request(format!(
                "elements {}..{} of {}/{}, which has {}, cannot be read into {} places",
                elements.start,
                elements.end,
                tensor.name,
                array.name,
                array.elements(),
                out.len()
            )));
        }
        if elements.is_empty() {
            return Ok(());
        }
        let first = tensor.block_of(array, elements.start);
        let last = tensor.block_of(array, elements.end - 1);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
        let parts = self.manifest.parts();
        let neighbours =
            |a: &crate::coverage::Place, b: &crate::coverage::Place| a.part == b.part && a.block + 1 == b.block;
        for span in places.blocks[first..=last].chunk_by(neighbours) {
            let part = &parts[span[0].part];
            let blocks = &part.blocks[span[0].block..span[0].block + span.len()];
            self.check_blocks(part, blocks, |at, piece| {
                copy_common(piece, at, bytes, elements.start * WIDTH)
            })?;
        }
        Ok(())
    }

    /// Streams neighbouring blocks of one part and checks the hash of each; `each` gets the pieces with their place, in bytes,
    /// in the flat array. The pieces of a block come before its hash is known: nothing of them may be used unless this succeeds.
    pub(crate) fn check_blocks(
        &self,
        part: &PartEntry,
        blocks: &[BlockEntry],
        mut each: impl FnMut(usize, &[u8]),
    ) -> Result<(), CheckpointError> {
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
            return Ok(());
        };
        let mut check = BlockCheck::new(blocks);
        let range = [first.offset, last.offset + last.bytes()];
        let streamed = self
            .store
            .stream(&part.file(), range, |piece| check.take(piece, &mut each));
        self.judge(part, check, streamed)
    }

    /// The verdict on a streamed run of blocks.
    pub(crate) fn judge(
        &self,
        part: &PartEntry,
        check: BlockCheck<'_>,
        streamed: Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let file = part.file();
        if let Some((block, found)) = check.wrong {
            return Err(self.damaged(
                &file,
                Some(block),
                format!("has content of hash {found}, not {}", block.hash),
            ));
        }
        if let Err(error) = streamed {
            // Reading behind the end of a file is an error of its own in every kind of store.
            if let (CheckpointError::Store { .. }, Ok(Some(length))) = (&error, self.store.length(&file))
                && length < part.bytes
            {
                let what = format!("is torn: {length} bytes of {}", part.bytes);
                return Err(self.damaged(&file, check.current(), what));
            }
            return Err(self.store.blame(self.name, &file, check.current(), error));
        }
        match check.current() {
            Some(block) => Err(self.damaged(&file, Some(block), format!("ends before its {} bytes", part.bytes))),
            None => Ok(()),
        }
    }

    pub(crate) fn damaged(&self, file: &str, block: Option<&BlockEntry>, what: String) -> CheckpointError {
        CheckpointError::Damaged {
            store: self.store.name().to_owned(),
            checkpoint: self.name,
            file: file.to_owned(),
            block: block.map(|block| format!(" in block {block}")).unwrap_or_default(),
            what,
        }
    }
}

/// Copies what a piece at byte `at` of an array and a window that begins at byte `start` have in common.
fn copy_common(piece: &[u8], at: usize, window: &mut [u8], start: usize) {
    let from = at.max(start);
    let to = (at + piece.len()).min(start + window.len());
    if from < to {
        window[from - start..to - start].copy_from_slice(&piece[from - at..to - at]);
    }
}

/// Hashes of neighbouring blocks, checked as their bytes come by.
pub(crate) struct BlockCheck<'a> {
    blocks: &'a [BlockEntry],
    hasher: blake3::Hasher,
    /// Bytes seen of the first of `blocks`.
    seen: u64,
    /// The first block whose hash is not its own, and what it is.
    wrong: Option<(&'a BlockEntry, ContentHash)>,
}

impl<'a> BlockCheck<'a> {
    pub(crate) fn new(blocks: &'a [BlockEntry]) -> BlockCheck<'a> {
        BlockCheck {
            blocks,
            hasher: blake3::Hasher::new(),
            seen: 0,
            wrong: None,
        }
    }

    /// The block that is not complete yet.
    fn current(&self) -> Option<&'a BlockEntry> {
        self.blocks.first()
    }

    /// Takes the next bytes; false as soon as a block is wrong.
    pub(crate) fn take(&mut self, mut piece: &[u8], each: &mut impl FnMut(usize, &[u8])) -> bool {
        while let (Some(block), false) = (self.blocks.first(), piece.is_empty()) {
            let rest = usize::try_from(block.bytes() - self.seen).unwrap_or(usize::MAX);
            let (now, later) = piece.split_at(rest.min(piece.len()));
            self.hasher.update(now);
            each(block.elements[0] * WIDTH + self.seen as usize, now);
            self.seen += now.len() as u64;
            piece = later;
            if self.seen == block.bytes() {
                let found = self.hasher.finalize().into();
                if found != block.hash {
                    self.wrong = Some((block, found));
                    return false;
                }
                self.hasher.reset();
                self.seen = 0;
                self.blocks = &self.blocks[1..];
            }
        }
        true
    }
}

//! One owner's share of a checkpoint: runs of neighbouring blocks, laid out as one safetensors file, hashed before a byte is
//! written. The file is never built in memory: [`Sealed::copy`] gives any piece of it out of the slices it was made from.
//!
//! Way of data: slices → [`Part::add`] → [`Part::seal`] (layout, block hashes, file hash) → [`Sealed`] → a store, and its
//! [`PartEntry`] → the manifest.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use crate::error::CheckpointError;
use crate::hash::ContentHash;
use crate::tensors::TensorEntry;

/// Bytes of a float32.
pub(crate) const WIDTH: usize = size_of::<f32>();

/// What a manifest says of one part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartEntry {
    /// BLAKE3 of the file, which is also its name.
    pub hash: ContentHash,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Its blocks, in the order of the file.
    pub blocks: Vec<BlockEntry>,
}

impl PartEntry {
    /// Its file inside a store.
    pub fn file(&self) -> String {
        part_file(&self.hash)
    }
}

/// Where the part of that hash lies inside a store.
pub(crate) fn part_file(hash: &ContentHash) -> String {
    format!("parts/{hash}.safetensors")
}

/// What a manifest says of one block of an array.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockEntry {
    /// The tensor.
    pub tensor: String,
    /// Which array of it.
    pub array: String,
    /// First element, and the one behind the last, in the flat array.
    pub elements: [usize; 2],
    /// Where its bytes (little-endian float32) begin in the file.
    pub offset: u64,
    /// BLAKE3 of its bytes.
    pub hash: ContentHash,
}

impl BlockEntry {
    /// Length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        (self.elements[1].saturating_sub(self.elements[0]) as u64).saturating_mul(WIDTH as u64)
    }
}

impl std::fmt::Display for BlockEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [start, end] = self.elements;
        write!(f, "{}/{}[{start}:{end}]", self.tensor, self.array)
    }
}

/// Neighbouring blocks of one array, borrowed or owned.
struct Run<'a> {
    /// The shape in the safetensors header.
    shape: Vec<usize>,
    /// Elements of each of its blocks.
    blocks: Vec<Range<usize>>,
    values: Box<dyn AsRef<[f32]> + Send + Sync + 'a>,
}

impl Run<'_> {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice((*self.values).as_ref())
    }
}

/// A part under construction. With frozen copies (`Vec<f32>`, `Arc<[f32]>`) it is `'static` and can go to another thread.
#[derive(Default)]
pub struct Part<'a> {
    /// By tensor, array and first element: equal content gives an equal file, in whatever order it was added.
    runs: BTreeMap<(String, String, usize), Run<'a>>,
}

impl<'a> Part<'a> {
    /// An empty part.
    pub fn new() -> Part<'a> {
        Part::default()
    }

    /// Adds `elements` of an array: one block, or several neighbouring ones.
    ///
    /// # Errors
    /// The tensor has no such array, the range does not begin and end at borders of blocks or overlaps one added before,
    /// or there are more or fewer values than elements.
    pub fn add(
        &mut self,
        tensor: &TensorEntry,
        array: &str,
        elements: Range<usize>,
        values: impl AsRef<[f32]> + Send + Sync + 'a,
    ) -> Result<(), CheckpointError> {
        let name = format!("{}/{array}[{}:{}]", tensor.name, elements.start, elements.end);
        let entry = tensor.array(array).ok_or_else(|| no_array(tensor, array))?;
        if !tensor.is_whole_blocks(entry, &elements) {
            return Err(CheckpointError::Request(format!(
                "{name} cannot be written: it does not begin and end at borders of blocks of an array of {} elements",
                entry.elements()
            )));
        }
        let given = values.as_ref().len();
        if given != elements.len() {
            return Err(CheckpointError::Request(format!(
                "{name} cannot be written: it was given {given} values"
            )));
        }
        let key = (tensor.name.clone(), array.to_owned(), elements.start);
        let same = |other: &(String, String, usize)| (&other.0, &other.1) == (&key.0, &key.1);
        let before = self.runs.range(..&key).next_back().filter(|(other, _)| same(other));
        let after = self.runs.range(&key..).next().filter(|(other, _)| same(other));
        let overlaps = before.is_some_and(|((_, _, start), run)| start + (*run.values).as_ref().len() > elements.start)
            || after.is_some_and(|((_, _, start), _)| *start < elements.end);
        if overlaps {
            return Err(CheckpointError::Request(format!(
                "{name} cannot be written: the part has some of it already"
            )));
        }
        let first = tensor.block_of(entry, elements.start);
        let count = tensor.block_of(entry, elements.end - 1) + 1 - first;
        let run = Run {
            shape: if elements.len() == entry.elements() {
                entry.shape.clone()
            } else {
                vec![elements.len()]
            },
            blocks: tensor.blocks(entry).skip(first).take(count).collect(),
            values: Box::new(values),
        };
        self.runs.insert(key, run);
        Ok(())
    }

    /// Lays the file out and hashes it: two passes of BLAKE3 over the values.
    ///
    /// # Errors
    /// The names do not go into a header, which no text does.
    pub fn seal(self) -> Result<Sealed<'a>, CheckpointError> {
        let head = header(&self.runs)
            .map_err(|e| CheckpointError::Request(format!("the header of a checkpoint part cannot be written: {e}")))?;
        let mut file = blake3::Hasher::new();
        file.update(&head);
        let mut offset = head.len() as u64;
        let mut blocks = Vec::new();
        for ((tensor, array, start), run) in &self.runs {
            for elements in &run.blocks {
                let bytes = &run.bytes()[(elements.start - start) * WIDTH..(elements.end - start) * WIDTH];
                file.update(bytes);
                blocks.push(BlockEntry {
                    tensor: tensor.clone(),
                    array: array.clone(),
                    elements: [elements.start, elements.end],
                    offset,
                    hash: ContentHash::of(bytes),
                });
                offset += bytes.len() as u64;
            }
        }
        Ok(Sealed {
            head,
            runs: self.runs.into_values().collect(),
            entry: PartEntry {
                hash: file.finalize().into(),
                bytes: offset,
                blocks,
            },
        })
    }
}

pub(crate) fn no_array(tensor: &TensorEntry, array: &str) -> CheckpointError {
    let known: Vec<&str> = tensor.arrays.iter().map(|array| array.name.as_str()).collect();
    CheckpointError::Request(format!(
        "the checkpoint's tensor {} has no array {array:?}; it has {}",
        tensor.name,
        known.join(", ")
    ))
}

/// The safetensors header of the runs: its length in eight bytes, JSON, and spaces up to a multiple of eight.
fn header(runs: &BTreeMap<(String, String, usize), Run<'_>>) -> Result<Vec<u8>, serde_json::Error> {
    #[derive(Serialize)]
    struct Tensor<'a> {
        dtype: &'static str,
        shape: &'a [usize],
        data_offsets: [usize; 2],
    }
    let mut json = serde_json::Serializer::new(Vec::new());
    let mut map = json.serialize_map(None)?;
    map.serialize_entry(
        "__metadata__",
        &BTreeMap::from([("format", "lockstep-checkpoint-part"), ("version", "1")]),
    )?;
    let mut at = 0;
    for ((tensor, array, start), run) in runs {
        let end = start + (*run.values).as_ref().len();
        let next = at + run.bytes().len();
        map.serialize_entry(
            &format!("{tensor}/{array}[{start}:{end}]"),
            &Tensor {
                dtype: "F32",
                shape: &run.shape,
                data_offsets: [at, next],
            },
        )?;
        at = next;
    }
    map.end()?;
    let mut text = json.into_inner();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.append(&mut text);
    Ok(head)
}

/// A part whose content is fixed: its entry is known, its bytes can be had piece by piece.
pub struct Sealed<'a> {
    head: Vec<u8>,
    runs: Vec<Run<'a>>,
    entry: PartEntry,
}

impl Sealed<'_> {
    /// What the manifest will say of it.
    pub fn entry(&self) -> &PartEntry {
        &self.entry
    }

    /// Copies the bytes of the file from `offset` on, as many as `out` holds and the file has; returns their number.
    pub fn copy(&self, offset: u64, out: &mut [u8]) -> usize {
        let mut skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut filled = 0;
        for piece in std::iter::once(self.head.as_slice()).chain(self.runs.iter().map(Run::bytes)) {
            let rest = piece.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(piece.len());
            let take = rest.len().min(out.len() - filled);
            out[filled..filled + take].copy_from_slice(&rest[..take]);
            filled += take;
            if filled == out.len() {
                break;
            }
        }
        filled
    }
}

#[cfg(target_endian = "big")]
compile_error!("checkpoints hold little-endian float32, and this crate hands slices over as they lie in memory");

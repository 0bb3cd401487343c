//! Whether parts make a whole: every (tensor, array, block) exactly once, every part without a hole; and where each block
//! lies. The same check serves who commits and who reads.

use std::collections::HashMap;

use crate::part::PartEntry;
use crate::tensors::{ArrayEntry, TensorEntry};

/// Which part, and which of its blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) part: usize,
    pub(crate) block: usize,
}

/// Where the blocks of every array lie.
#[derive(Clone, Debug)]
pub(crate) struct Coverage {
    /// Tensor and array by name → tensor, array, places in the order of blocks.
    arrays: HashMap<String, HashMap<String, ArrayPlaces>>,
}

/// One array: its tensor, by index in the list of tensors, itself, by index in the tensor, and its blocks in their order.
#[derive(Clone, Debug)]
pub(crate) struct ArrayPlaces {
    pub(crate) tensor: usize,
    pub(crate) array: usize,
    pub(crate) blocks: Vec<Place>,
}

impl Coverage {
    /// Checks that `parts` hold `tensors` whole; else says what is wrong.
    pub(crate) fn new(tensors: &[TensorEntry], parts: &[PartEntry]) -> Result<Coverage, String> {
        let mut found: HashMap<&str, HashMap<&str, Vec<Option<Place>>>> = HashMap::new();
        let available: usize = parts.iter().map(|part| part.blocks.len()).sum();
        for tensor in tensors {
            let mut arrays = HashMap::new();
            for array in &tensor.arrays {
                let count = tensor.block_count(array);
                // Before the table is made: a shape may say anything.
                if count > available {
                    return Err(format!(
                        "{}/{} has {count} blocks, and all parts together hold {available}",
                        tensor.name, array.name
                    ));
                }
                if arrays.insert(array.name.as_str(), vec![None; count]).is_some() {
                    return Err(format!(
                        "tensor {} has two arrays of the name {}",
                        tensor.name, array.name
                    ));
                }
            }
            if found.insert(&tensor.name, arrays).is_some() {
                return Err(format!("two tensors have the name {}", tensor.name));
            }
        }
        let by_name: HashMap<&str, &TensorEntry> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        for (number, part) in parts.iter().enumerate() {
            check_layout(part)?;
            for (block, entry) in part.blocks.iter().enumerate() {
                let known = by_name
                    .get(entry.tensor.as_str())
                    .and_then(|tensor| Some((*tensor, tensor.array(&entry.array)?)));
                let Some((tensor, array)) = known else {
                    return Err(format!(
                        "part {} holds {entry}, which is in no list of tensors",
                        part.hash
                    ));
                };
                let slot = block_number(tensor, array, entry.elements)
                    .and_then(|n| {
                        found
                            .get_mut(entry.tensor.as_str())?
                            .get_mut(entry.array.as_str())?
                            .get_mut(n)
                    })
                    .ok_or_else(|| format!("part {} holds {entry}, which is no block of its array", part.hash))?;
                if let Some(first) = slot.replace(Place { part: number, block }) {
                    return Err(format!(
                        "{entry} is there twice, in parts {} and {}",
                        parts[first.part].hash, part.hash
                    ));
                }
            }
        }
        let mut arrays = HashMap::new();
        for (t, tensor) in tensors.iter().enumerate() {
            let mut places = HashMap::new();
            for (a, array) in tensor.arrays.iter().enumerate() {
                let slots = found
                    .get_mut(tensor.name.as_str())
                    .and_then(|arrays| arrays.remove(array.name.as_str()))
                    .unwrap_or_default();
                if let Some(missing) = slots.iter().position(Option::is_none) {
                    let range = tensor.blocks(array).nth(missing).unwrap_or_default();
                    return Err(format!(
                        "{}/{}[{}:{}] is in no part",
                        tensor.name, array.name, range.start, range.end
                    ));
                }
                places.insert(
                    array.name.clone(),
                    ArrayPlaces {
                        tensor: t,
                        array: a,
                        blocks: slots.into_iter().flatten().collect(),
                    },
                );
            }
            arrays.insert(tensor.name.clone(), places);
        }
        Ok(Coverage { arrays })
    }

    /// Where an array lies, if there is one of that name.
    pub(crate) fn find(&self, tensor: &str, array: &str) -> Option<&ArrayPlaces> {
        self.arrays.get(tensor)?.get(array)
    }
}

/// The number of the block with just these elements.
fn block_number(tensor: &TensorEntry, array: &ArrayEntry, [start, end]: [usize; 2]) -> Option<usize> {
    if start >= end || end > array.elements() {
        return None;
    }
    let number = tensor.block_of(array, start);
    (tensor.blocks(array).nth(number) == Some(start..end)).then_some(number)
}

/// The blocks of a part must follow one another from behind the header to the end of the file.
fn check_layout(part: &PartEntry) -> Result<(), String> {
    let Some(first) = part.blocks.first() else {
        return Err(format!("part {} holds nothing", part.hash));
    };
    let mut at = first.offset.max(8);
    for block in &part.blocks {
        if block.offset != at {
            return Err(format!(
                "part {} has {block} at byte {}, not at {at}",
                part.hash, block.offset
            ));
        }
        at = at.saturating_add(block.bytes());
    }
    if at != part.bytes {
        return Err(format!(
            "part {} has blocks up to byte {at} of {}",
            part.hash, part.bytes
        ));
    }
    Ok(())
}

//! The tensors of a checkpoint and their blocks. Nothing here knows of ranks: the cut into blocks depends on shapes alone,
//! so that a checkpoint of any world can be read by any other.

use std::ops::Range;

use lockstep_config::Method;
use lockstep_inventory::{TensorSpec, Treatment, state};
use serde::{Deserialize, Serialize};

/// Elements of a block of an other tensor: the unit of ownership, of hashing and of reading.
pub const BLOCK: usize = 65_536;

/// Every tensor of a model with what a checkpoint holds of it, in the order of the inventory.
pub fn of_model(inventory: &[TensorSpec], treatments: &[Treatment], method: Method) -> Vec<TensorEntry> {
    let described = |(spec, treatment): (&TensorSpec, &Treatment)| TensorEntry {
        name: spec.name.clone(),
        shape: spec.shape.iter().map(|side| *side as usize).collect(),
        kind: match treatment.is_hidden() {
            true => TensorKind::Hidden,
            false => TensorKind::Other,
        },
        arrays: state::arrays(spec, treatment, method)
            .into_iter()
            .map(|(name, shape)| ArrayEntry {
                name: name.to_owned(),
                shape,
            })
            .collect(),
    };
    inventory.iter().zip(treatments).map(described).collect()
}

/// How a tensor is cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TensorKind {
    /// A hidden matrix: each of its arrays is one block.
    Hidden,
    /// Any other tensor: blocks of [`BLOCK`] elements, the last one shorter.
    Other,
}

/// A named float32 array of a tensor: `master`, `momentum`, …
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArrayEntry {
    /// Its name, unique in its tensor.
    pub name: String,
    /// Its shape: most often that of the tensor.
    pub shape: Vec<usize>,
}

impl ArrayEntry {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        // A manifest may say anything; what does not fit is refused where blocks are counted.
        self.shape.iter().fold(1, |product, side| product.saturating_mul(*side))
    }
}

/// A named tensor with its arrays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// Its name, unique in the checkpoint.
    pub name: String,
    /// The shape of the parameter.
    pub shape: Vec<usize>,
    /// How it is cut.
    pub kind: TensorKind,
    /// What a checkpoint holds of it.
    pub arrays: Vec<ArrayEntry>,
}

impl TensorEntry {
    /// A tensor whose `arrays` all have its own shape.
    pub fn new(name: &str, shape: &[usize], kind: TensorKind, arrays: &[&str]) -> TensorEntry {
        let array = |array: &&str| ArrayEntry {
            name: (*array).to_owned(),
            shape: shape.to_vec(),
        };
        TensorEntry {
            name: name.to_owned(),
            shape: shape.to_vec(),
            kind,
            arrays: arrays.iter().map(array).collect(),
        }
    }

    /// The array of that name.
    pub fn array(&self, name: &str) -> Option<&ArrayEntry> {
        self.arrays.iter().find(|array| array.name == name)
    }

    /// Elements of each block but perhaps the last, in an array of `elements` elements.
    fn stride(&self, elements: usize) -> usize {
        match self.kind {
            TensorKind::Hidden => elements.max(1),
            TensorKind::Other => BLOCK,
        }
    }

    /// Elements of every block of one of its arrays, in order.
    pub fn blocks(&self, array: &ArrayEntry) -> impl Iterator<Item = Range<usize>> + use<> {
        let elements = array.elements();
        let stride = self.stride(elements);
        (0..elements)
            .step_by(stride)
            .map(move |start| start..(start + stride).min(elements))
    }

    /// Number of blocks of one of its arrays.
    pub fn block_count(&self, array: &ArrayEntry) -> usize {
        array.elements().div_ceil(self.stride(array.elements()))
    }

    /// The number of the block that holds an element of one of its arrays.
    pub(crate) fn block_of(&self, array: &ArrayEntry, element: usize) -> usize {
        element / self.stride(array.elements())
    }

    /// Whether a range of one of its arrays begins and ends at borders of blocks.
    pub(crate) fn is_whole_blocks(&self, array: &ArrayEntry, range: &Range<usize>) -> bool {
        let elements = array.elements();
        let stride = self.stride(elements);
        let border = |at: usize| at.is_multiple_of(stride) || at == elements;
        range.start < range.end && range.end <= elements && border(range.start) && border(range.end)
    }
}

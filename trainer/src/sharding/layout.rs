//! The flat layout: every tensor's place in the float32 gradient buffer and in the buffer of working copies.
//!
//! Tensors lie in backward order (the last layer first), so that buckets, contiguous pieces of the gradient buffer, fill
//! from the front while backward goes on. Every tensor starts on a 256-byte border in both buffers. Nothing here depends
//! on the world.

use std::ops::Range;

use lockstep_inventory::{TensorSpec, Treatment};
use lockstep_optim::piece::BLOCK;

/// Bytes on whose multiples tensors start.
const BORDER: usize = 256;
/// Float32 bytes from which on a bucket is full.
pub const BUCKET_BYTES: usize = 4 << 20;

/// A tensor's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Elements in the gradient buffer (float32) and in the masters.
    pub gradient: Range<usize>,
    /// Bytes in the buffer of working copies.
    pub working: Range<usize>,
    /// Whether the working copy is bf16 (else float32).
    pub bf16: bool,
    /// Whether it is a hidden tensor, which is never split between owners.
    pub hidden: bool,
    /// Its polar factors, as indices into the slot tables: one a part of a hidden tensor.
    pub factors: Range<usize>,
    /// Its blocks, as indices into the slot tables: one for a hidden matrix.
    pub blocks: Range<usize>,
    /// Its bucket.
    pub bucket: usize,
}

/// A contiguous piece of the gradient buffer that is reduced in one go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Elements of the gradient buffer.
    pub elements: Range<usize>,
    /// Indices of its tensors in the inventory, in flat order.
    pub tensors: Vec<usize>,
}

/// The layout of a model.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Places, by index in the inventory (forward order).
    pub places: Vec<Place>,
    /// Buckets, in flat order.
    pub buckets: Vec<Bucket>,
    /// Length of the gradient buffer in elements.
    pub gradient_elements: usize,
    /// Length of the buffer of working copies in bytes.
    pub working_bytes: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Number of polar factors of a step.
    pub factors: usize,
}

impl Layout {
    /// Lays out an inventory. `bf16`: matrices, embedding and head have bf16 working copies. `treatments` say which tensors
    /// are hidden and so stay whole; all others are split into blocks.
    pub fn new(inventory: &[TensorSpec], treatments: &[Treatment], bf16: bool) -> Layout {
        Layout::with_buckets(inventory, treatments, bf16, BUCKET_BYTES)
    }

    /// As [`Layout::new`], with buckets that are full from `bucket_bytes` float32 bytes on. No bit of a step depends on it.
    pub fn with_buckets(inventory: &[TensorSpec], treatments: &[Treatment], bf16: bool, bucket_bytes: usize) -> Layout {
        let mut places: Vec<Option<Place>> = vec![None; inventory.len()];
        let mut buckets: Vec<Bucket> = Vec::new();
        let (mut element, mut byte, mut block, mut factor) = (0, 0, 0, 0);
        let mut open: Option<Bucket> = None;
        for index in (0..inventory.len()).rev() {
            let spec = &inventory[index];
            let count = spec.elements();
            let narrow = bf16 && spec.role.is_narrow();
            let hidden = treatments[index].is_hidden();
            let factors = treatments[index].parts();
            let blocks = if hidden { 1 } else { count.div_ceil(BLOCK) };
            let bucket = open.get_or_insert_with(|| Bucket {
                elements: element..element,
                tensors: Vec::new(),
            });
            places[index] = Some(Place {
                gradient: element..element + count,
                working: byte..byte + count * if narrow { 2 } else { 4 },
                bf16: narrow,
                hidden,
                factors: factor..factor + factors,
                blocks: block..block + blocks,
                bucket: buckets.len(),
            });
            element = (element + count).next_multiple_of(BORDER / 4);
            byte = (byte + count * if narrow { 2 } else { 4 }).next_multiple_of(BORDER);
            block += blocks;
            factor += factors;
            bucket.tensors.push(index);
            bucket.elements.end = element;
            if bucket.elements.len() * 4 >= bucket_bytes {
                buckets.extend(open.take());
            }
        }
        buckets.extend(open);
        Layout {
            places: places.into_iter().flatten().collect(),
            buckets,
            gradient_elements: element,
            working_bytes: byte,
            blocks: block,
            factors: factor,
        }
    }

    /// The elements of block `block` (an index into the slot tables) of the tensor at `place`, in the gradient buffer.
    pub fn block_elements(place: &Place, block: usize) -> Range<usize> {
        if place.hidden {
            return place.gradient.clone();
        }
        let start = place.gradient.start + (block - place.blocks.start) * BLOCK;
        start..(start + BLOCK).min(place.gradient.end)
    }

    /// The bytes of the working copy of `elements` (a range of the gradient buffer inside the tensor at `place`).
    pub fn working_bytes_of(place: &Place, elements: &Range<usize>) -> Range<usize> {
        let size = if place.bf16 { 2 } else { 4 };
        let at = |element: usize| place.working.start + (element - place.gradient.start) * size;
        at(elements.start)..at(elements.end)
    }
}

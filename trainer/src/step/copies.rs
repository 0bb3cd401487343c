//! The working copies that a rank holds of every tensor, and their hashes.

use lockstep_kernels::real::bf16;
use lockstep_kernels::sums::{block_hash, block_hash_of_bf16};
use lockstep_optim::piece::BLOCK;
use lockstep_optim::tensors::sums::{BlockArithmetic, Halving};
use lockstep_optim::tensors::table::Table;
use tch::Tensor;

use crate::device::FlatTensors;
use crate::device::memory::Flat;
use crate::device::pending::Pending;
use crate::error::TrainerError;
use crate::sharding::layout::{Layout, Place};
use crate::sharding::owners::Piece;
use crate::step::owned::OfBlock;

/// The flat memory of the working copies, and what lies where.
pub struct WorkingCopies {
    memory: Flat,
    places: Vec<Place>,
}

impl WorkingCopies {
    /// Of a layout.
    pub fn new(memory: Flat, layout: &Layout) -> WorkingCopies {
        WorkingCopies {
            memory,
            places: layout.places.clone(),
        }
    }

    /// Whether a tensor's copy is rounded, so that its hash is not that of its master.
    pub fn is_rounded(&self, tensor: usize) -> bool {
        self.places[tensor].bf16
    }

    /// The hash of every block of some pieces: of its float32 words as that of a master, or of its 16-bit words. Nothing
    /// waits for it on a device.
    pub fn hashes<'a>(
        &self,
        pieces: impl IntoIterator<Item = &'a Piece>,
    ) -> Result<Pending<Vec<OfBlock<u64>>>, TrainerError> {
        match &self.memory {
            Flat::Host(memory) => {
                let mut hashes = Vec::new();
                for piece in pieces {
                    let (start, count, block) = self.lies(piece);
                    let blocks = piece.blocks.clone();
                    match self.places[piece.tensor].bf16 {
                        true => {
                            let copies = memory.slice::<bf16>(start, count)?;
                            hashes.extend(blocks.zip(copies.chunks(block).map(block_hash_of_bf16)));
                        }
                        false => {
                            let copies = memory.slice::<f32>(start, count)?;
                            hashes.extend(blocks.zip(copies.chunks(block).map(block_hash)));
                        }
                    }
                }
                Ok(Pending::Known(hashes))
            }
            Flat::Device(_) => {
                let mut table = None;
                let mut blocks = Vec::new();
                for piece in pieces {
                    let (_, _, block) = self.lies(piece);
                    let copies = self.tensor(piece)?;
                    let table = table.get_or_insert_with(|| Table::new(copies.device()));
                    let words = table.put(&Halving.hashes(&copies, block)?)?;
                    blocks.extend(piece.blocks.clone().zip(words));
                }
                match table {
                    None => Ok(Pending::Known(Vec::new())),
                    Some(table) => Pending::new(&table, move |words| {
                        blocks.into_iter().map(|(block, at)| (block, words[at])).collect()
                    }),
                }
            }
        }
    }

    /// The copies of a piece as a flat tensor over the memory.
    pub fn tensor(&self, piece: &Piece) -> Result<Tensor, TrainerError> {
        let (start, count, _) = self.lies(piece);
        let sizes = [count as i64];
        Ok(match self.places[piece.tensor].bf16 {
            true => self.memory.view::<bf16>(start, &sizes)?,
            false => self.memory.view::<f32>(start, &sizes)?,
        })
    }

    /// First byte, elements, and elements of a block.
    fn lies(&self, piece: &Piece) -> (usize, usize, usize) {
        let place = &self.places[piece.tensor];
        let count = piece.elements.len();
        let bytes = Layout::working_bytes_of(place, &piece.elements);
        (bytes.start, count, if place.hidden { count } else { BLOCK })
    }
}

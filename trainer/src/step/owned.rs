//! What a rank owns, and the passes over it: norms, preparation (moments, polar factors, sums), application, hashes,
//! masters.

use std::ops::Range;

use lockstep_autograd::FlatBuffer;
use lockstep_inventory::{TensorSpec, Treatment};
use lockstep_kernels::real::{bf16, convert};
use lockstep_kernels::sums::{block_hash, square_sum};
use lockstep_optim::decision::TensorStep;
use lockstep_optim::piece::{BLOCK, Piece};
use lockstep_optim::results::{Applied, Prepared};
use lockstep_optim::settings::Optimizer;

use crate::error::TrainerError;
use crate::sharding::layout::{Layout, Place};
use crate::sharding::owners::{self, OwnerMap};
use crate::step::drift::{Array, Change, FLIPPED};

struct Item {
    piece: owners::Piece,
    state: Piece,
    /// The hashes of its arrays but the master, as they were written last.
    written: Vec<(Array, u64)>,
}

impl Item {
    fn hashes_but_master(&self) -> Vec<(Array, u64)> {
        let mut hashes = Vec::new();
        self.state.show(&mut |name, values| {
            let array = Array::of_name(name).filter(|array| *array != Array::Master);
            hashes.extend(array.map(|array| (array, block_hash(values))));
        });
        hashes
    }
}

/// The pieces of one rank with their optimiser state, in flat order.
pub struct Owned {
    map: OwnerMap,
    rank: u32,
    items: Vec<Item>,
    optimizer: Optimizer,
}

/// A value for one block.
pub type OfBlock<T> = (usize, T);

/// What preparing one piece leaves, with the tensor and the blocks that it is about.
pub struct PreparedPiece {
    /// The tensor, by index in the inventory.
    pub tensor: usize,
    /// Its first block.
    pub first_block: usize,
    /// Sums and polar factors.
    pub prepared: Prepared,
}

/// Which pieces of a bucket a pass is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Hidden tensors.
    Hidden,
    /// Other tensors.
    Other,
}

/// The hidden tensor (by index in the inventory) and its part whose orthogonality error a step reports.
pub type Probe = Option<(usize, usize)>;

/// The gradient sums of a step, the working copies at which they were taken, and the scale that makes them the mean.
#[derive(Clone, Copy)]
pub struct Taken<'a> {
    /// Where every tensor lies.
    pub layout: &'a Layout,
    /// Reduced gradient sums of what this rank owns.
    pub gradients: &'a FlatBuffer,
    /// Clip factor ÷ token count.
    pub scale: f32,
}

/// Runs an expression with the working copy of a piece, as its element type.
macro_rules! with_working {
    ($buffer:ident . $slice:ident, $place:expr, $elements:expr, $working:ident => $body:expr) => {{
        let bytes = Layout::working_bytes_of($place, $elements);
        if $place.bf16 {
            let $working = $buffer.$slice::<bf16>(bytes.start, $elements.len())?;
            $body
        } else {
            let $working = $buffer.$slice::<f32>(bytes.start, $elements.len())?;
            $body
        }
    }};
}

impl Owned {
    /// The (still empty) pieces of `rank`, under an optimiser.
    pub fn new(optimizer: Optimizer, map: OwnerMap, rank: u32) -> Owned {
        Owned {
            map,
            rank,
            items: Vec::new(),
            optimizer,
        }
    }

    /// Takes the initial values of a tensor (all of it, row-major) for the pieces that this rank owns.
    pub fn start(&mut self, tensor: usize, spec: &TensorSpec, treatment: &Treatment, place: &Place, initial: &[f32]) {
        for piece in self
            .map
            .pieces
            .iter()
            .filter(|p| p.tensor == tensor && p.owner == self.rank)
        {
            let at = piece.elements.start - place.gradient.start..piece.elements.end - place.gradient.start;
            self.items.push(Item {
                piece: piece.clone(),
                state: Piece::new(&spec.name, treatment, &initial[at], &self.optimizer),
                written: Vec::new(),
            });
        }
        self.items.sort_by_key(|item| item.piece.elements.start);
    }

    /// Who owns what.
    pub fn map(&self) -> &OwnerMap {
        &self.map
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// The optimiser, to be told what a step has of its own.
    pub fn optimizer_mut(&mut self) -> &mut Optimizer {
        &mut self.optimizer
    }

    /// Bytes of masters and state of this rank.
    pub fn state_bytes(&self) -> usize {
        self.items.iter().map(|item| item.state.state_bytes()).sum()
    }

    /// Σ g² (of the gradient sums) and the count of values that are not finite, by block.
    pub fn square_sums(&self, gradients: &FlatBuffer) -> Result<Vec<OfBlock<(f64, u64)>>, TrainerError> {
        let mut out = Vec::new();
        for Item { piece, state, .. } in &self.items {
            let gradient = gradients.slice::<f32>(piece.elements.start * 4, piece.elements.len())?;
            match state {
                Piece::Hidden(_) => out.push((piece.blocks.start, square_sum(gradient))),
                Piece::Other(_) => {
                    out.extend(piece.blocks.clone().zip(gradient.chunks(BLOCK).map(square_sum)));
                }
            }
        }
        Ok(out)
    }

    /// Moments, polar factors and sums of everything owned. No parameter changes.
    pub fn prepare(
        &mut self,
        taken: Taken<'_>,
        working: &FlatBuffer,
        probe: Probe,
    ) -> Result<Vec<PreparedPiece>, TrainerError> {
        let mut out = Vec::new();
        for Item { piece, state, .. } in &mut self.items {
            let place = &taken.layout.places[piece.tensor];
            let elements = &piece.elements;
            let gradient = taken.gradients.slice::<f32>(elements.start * 4, elements.len())?;
            let probe = probe
                .filter(|(tensor, _)| *tensor == piece.tensor)
                .map(|(_, part)| part);
            let prepared = with_working!(working.slice, place, elements, copies => {
                state.prepare(gradient, taken.scale, copies, &self.optimizer, probe)?
            });
            out.push(PreparedPiece {
                tensor: piece.tensor,
                first_block: piece.blocks.start,
                prepared,
            });
        }
        Ok(out)
    }

    /// Steps everything owned along what was prepared and writes the working copies; returns what each block leaves.
    /// `steps` are by tensor.
    pub fn apply(
        &mut self,
        taken: Taken<'_>,
        working: &mut FlatBuffer,
        steps: &[TensorStep],
    ) -> Result<Vec<OfBlock<Applied>>, TrainerError> {
        let mut out = Vec::new();
        for Item { piece, state, .. } in &mut self.items {
            let (place, step) = (&taken.layout.places[piece.tensor], &steps[piece.tensor]);
            let elements = &piece.elements;
            let gradient = taken.gradients.slice::<f32>(elements.start * 4, elements.len())?;
            let applied = with_working!(working.slice_mut, place, elements, copies => {
                state.apply(gradient, taken.scale, step, &self.optimizer, copies)?
            });
            out.extend(piece.blocks.clone().zip(applied));
        }
        Ok(out)
    }

    /// Prepares and applies the hidden or the other pieces of a bucket in one go, where steps depend on nothing else.
    pub fn step_in(
        &mut self,
        bucket: &Range<usize>,
        kind: Kind,
        taken: Taken<'_>,
        working: &mut FlatBuffer,
        steps: &[TensorStep],
        probe: Probe,
    ) -> Result<(Vec<PreparedPiece>, Vec<OfBlock<Applied>>), TrainerError> {
        let (mut left, mut out) = (Vec::new(), Vec::new());
        for Item { piece, state, .. } in &mut self.items {
            let is = match state {
                Piece::Hidden(_) => Kind::Hidden,
                Piece::Other(_) => Kind::Other,
            };
            if is != kind || piece.elements.start < bucket.start || bucket.end < piece.elements.end {
                continue;
            }
            let (place, step) = (&taken.layout.places[piece.tensor], &steps[piece.tensor]);
            let elements = &piece.elements;
            let gradient = taken.gradients.slice::<f32>(elements.start * 4, elements.len())?;
            let probe = probe
                .filter(|(tensor, _)| *tensor == piece.tensor)
                .map(|(_, part)| part);
            let (prepared, applied) = with_working!(working.slice_mut, place, elements, copies => {
                state.step(gradient, taken.scale, step, &self.optimizer, copies, probe)?
            });
            left.push(PreparedPiece {
                tensor: piece.tensor,
                first_block: piece.blocks.start,
                prepared,
            });
            out.extend(piece.blocks.clone().zip(applied));
        }
        Ok((left, out))
    }

    /// The hash of every owned block.
    pub fn hashes(&self) -> Vec<OfBlock<u64>> {
        self.items
            .iter()
            .flat_map(|Item { piece, state, .. }| piece.blocks.clone().zip(state.hashes()))
            .collect()
    }

    /// Keeps the hash of every array but the masters, as it is now.
    pub fn note_written(&mut self) {
        for item in &mut self.items {
            item.written = item.hashes_but_master();
        }
    }

    /// The arrays but the masters that are not what was written.
    pub fn changed(&self) -> Vec<Change> {
        let of = |item: &Item| {
            let block = item.piece.blocks.start;
            let pairs = item.written.iter().zip(item.hashes_but_master());
            let changed = pairs.filter(|(before, now)| *before != now);
            changed
                .map(|((array, _), _)| Change { array: *array, block })
                .collect::<Vec<_>>()
        };
        self.items.iter().flat_map(of).collect()
    }

    /// Changes one bit of an array of a tensor, for a drill; of the first tensor that is owned where none is given. Which
    /// one, if it is owned. `steps` are those that the optimiser has made.
    pub fn flip(&mut self, steps: u64, tensor: Option<usize>, array: Array) -> Option<usize> {
        let wanted = |item: &&mut Item| tensor.is_none_or(|tensor| item.piece.tensor == tensor);
        let item = self.items.iter_mut().find(wanted)?;
        let mut flipped = None;
        item.state.fill(steps, &mut |name, values| {
            if Array::of_name(name) == Some(array) {
                let value = &mut values[values.len() / 2];
                *value = f32::from_bits(value.to_bits() ^ FLIPPED);
                flipped = Some(item.piece.tensor);
            }
        });
        flipped
    }

    /// Shows every array that outlives a step: the piece that it is of, its name, its values.
    pub fn show(&self, take: &mut dyn FnMut(&owners::Piece, &'static str, &[f32])) {
        for Item { piece, state, .. } in &self.items {
            state.show(&mut |name, values| take(piece, name, values));
        }
    }

    /// Fills every array that outlives a step, as after `steps` steps, and writes the working copies.
    pub fn fill(
        &mut self,
        steps: u64,
        layout: &Layout,
        working: &mut FlatBuffer,
        values: &mut dyn FnMut(&owners::Piece, &'static str, &mut [f32]),
    ) -> Result<(), TrainerError> {
        for Item { piece, state, .. } in &mut self.items {
            state.fill(steps, &mut |name, array| values(piece, name, array));
            let (place, elements) = (&layout.places[piece.tensor], &piece.elements);
            with_working!(working.slice_mut, place, elements, copies => {
                convert(state.master(), copies);
            });
        }
        Ok(())
    }

    /// Writes the masters into a float32 flat buffer, each at its place.
    pub fn write_masters(&self, buffer: &mut FlatBuffer) -> Result<(), TrainerError> {
        for Item { piece, state, .. } in &self.items {
            let master = state.master();
            buffer
                .slice_mut::<f32>(piece.elements.start * 4, master.len())?
                .copy_from_slice(master);
        }
        Ok(())
    }
}

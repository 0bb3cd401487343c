//! What a rank owns on its device, and the passes over it: what [`crate::step::owned`] does over slices.
//!
//! Every pass only enqueues work and leaves a [`Pending`]: results are read once an exchange, in the form in which the
//! host's passes give them.

use std::ops::Range;

use lockstep_autograd::{AutogradError, Element};
use lockstep_inventory::{TensorSpec, Treatment};
use lockstep_kernels::real::bf16;
use lockstep_optim::decision::TensorStep;
use lockstep_optim::results::{self, BlockSums};
use lockstep_optim::settings::Optimizer;
use lockstep_optim::tensors::piece::{GradientSum, TensorPiece};
use lockstep_optim::tensors::results::{Applied, Prepared};
use lockstep_optim::tensors::sums::BlockArithmetic;
use lockstep_optim::tensors::table::Table;
use tch::{Device, Kind, Tensor};

use crate::device::FlatTensors;
use crate::device::pending::Pending;
use crate::error::TrainerError;
use crate::sharding::layout::{Layout, Place};
use crate::sharding::owners::{self, OwnerMap};
use crate::step::drift::{Array, Change, FLIPPED};
use crate::step::owned::{self, OfBlock, PreparedPiece, Probe};

/// By block, Σ g² and the count of values that are not finite.
pub type Squares = Vec<OfBlock<(f64, u64)>>;

/// What preparing and applying in one go leaves.
pub type Stepped = (Vec<PreparedPiece>, Vec<OfBlock<results::Applied>>);

struct Item {
    piece: owners::Piece,
    state: TensorPiece,
    /// Its place in the gradient buffer that is reduced, flat.
    gradient: Tensor,
    /// Its working copy, flat.
    working: Tensor,
    /// The sums of the words of its arrays but the master, as they were written last; on the device.
    written: Vec<(Array, Tensor)>,
}

impl Item {
    /// One bit that changes changes the sum, and whole numbers have the same sum in any order.
    fn sums_but_master(&self) -> Result<Vec<(Array, Tensor)>, TrainerError> {
        let arrays = self.state.arrays().into_iter();
        let wanted = arrays.filter_map(|(name, array)| Some((Array::of_name(name)?, array)));
        wanted
            .filter(|(which, _)| *which != Array::Master)
            .map(|(which, array)| {
                let words = array.f_view([-1])?.f_view_dtype(Kind::Int)?;
                Ok((which, words.f_sum(Kind::Int64)?))
            })
            .collect()
    }
}

/// The pieces of one rank with their optimiser state on its device, in flat order.
pub struct DeviceOwned {
    map: OwnerMap,
    rank: u32,
    device: Device,
    items: Vec<Item>,
    optimizer: Optimizer,
    arithmetic: Box<dyn BlockArithmetic>,
}

impl DeviceOwned {
    /// The (still empty) pieces of `rank` on `device`, under an optimiser made for it, with sums and hashes by
    /// `arithmetic`.
    pub fn new(
        optimizer: Optimizer,
        map: OwnerMap,
        rank: u32,
        device: Device,
        arithmetic: Box<dyn BlockArithmetic>,
    ) -> DeviceOwned {
        DeviceOwned {
            map,
            rank,
            device,
            items: Vec::new(),
            optimizer,
            arithmetic,
        }
    }

    /// Takes the initial values of a tensor (all of it, row-major) for the pieces that this rank owns. `buffers` are the
    /// gradient buffer that is reduced and that of the working copies.
    pub fn start(
        &mut self,
        tensor: usize,
        (spec, treatment): (&TensorSpec, &Treatment),
        place: &Place,
        initial: &[f32],
        buffers: (&impl FlatTensors, &impl FlatTensors),
    ) -> Result<(), TrainerError> {
        let (gradients, working) = buffers;
        let owned = |piece: &&owners::Piece| piece.tensor == tensor && piece.owner == self.rank;
        for piece in self.map.pieces.iter().filter(owned) {
            let at = piece.elements.start - place.gradient.start..piece.elements.end - place.gradient.start;
            let master = Tensor::from_slice(&initial[at]).f_to_device(self.device)?;
            let bytes = Layout::working_bytes_of(place, &piece.elements);
            self.items.push(Item {
                state: TensorPiece::new(&spec.name, treatment, &master, &self.optimizer)?,
                gradient: flat::<f32>(gradients, piece.elements.start * 4, piece.elements.len())?,
                working: match place.bf16 {
                    true => flat::<bf16>(working, bytes.start, piece.elements.len())?,
                    false => flat::<f32>(working, bytes.start, piece.elements.len())?,
                },
                piece: piece.clone(),
                written: Vec::new(),
            });
        }
        self.items.sort_by_key(|item| item.piece.elements.start);
        Ok(())
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

    /// Shows every array that outlives a step: the piece that it is of, its name, its values. Waits for the device.
    pub fn show(&self, take: &mut dyn FnMut(&owners::Piece, &'static str, &[f32])) -> Result<(), TrainerError> {
        for item in &self.items {
            item.state.show(&mut |name, values| take(&item.piece, name, values))?;
        }
        Ok(())
    }

    /// Fills every array that outlives a step, as after `steps` steps, and writes the working copies.
    pub fn fill(
        &mut self,
        steps: u64,
        values: &mut dyn FnMut(&owners::Piece, &'static str, &mut [f32]),
    ) -> Result<(), TrainerError> {
        for item in &mut self.items {
            let piece = &item.piece;
            item.state.fill(steps, &mut |name, array| values(piece, name, array))?;
            item.working.f_copy_(&item.state.master().f_flatten(0, -1)?)?;
        }
        Ok(())
    }

    /// Σ g² (of the gradient sums) and the count of values that are not finite, by block.
    pub fn square_sums(&self) -> Result<Pending<Squares>, TrainerError> {
        let mut table = Table::new(self.device);
        let mut places = Vec::new();
        for item in &self.items {
            let (squares, bad) = item.state.square_sums(&item.gradient, &*self.arithmetic)?;
            let words = table.put(&squares)?.zip(table.put(&bad)?);
            places.extend(item.piece.blocks.clone().zip(words));
        }
        Pending::new(&table, move |words| {
            let value = |(square, bad): (usize, usize)| (f64::from_bits(words[square]), words[bad]);
            places.into_iter().map(|(block, at)| (block, value(at))).collect()
        })
    }

    /// Moments, polar factors and sums of everything owned. No parameter changes. `scale` is clip factor ÷ token count.
    pub fn prepare(&mut self, scale: f32, probe: Probe) -> Result<Pending<Vec<PreparedPiece>>, TrainerError> {
        let mut table = Table::new(self.device);
        let mut places = Vec::new();
        for item in &mut self.items {
            let gradient = GradientSum {
                sum: &item.gradient,
                scale,
            };
            let probe = part_of(probe, &item.piece);
            let (optimizer, arithmetic) = (&self.optimizer, &*self.arithmetic);
            let prepared = item
                .state
                .prepare(gradient, &item.working, optimizer, arithmetic, probe)?;
            places.push(PreparedPlace::new(&item.piece, &prepared, &mut table)?);
        }
        Pending::new(&table, move |words| {
            places.iter().map(|place| place.read(words)).collect()
        })
    }

    /// Steps everything owned along what was prepared and writes the working copies; what each block leaves. `steps` are
    /// by tensor.
    pub fn apply(
        &mut self,
        scale: f32,
        steps: &[TensorStep],
    ) -> Result<Pending<Vec<OfBlock<results::Applied>>>, TrainerError> {
        let mut table = Table::new(self.device);
        let mut places = Vec::new();
        for item in &mut self.items {
            let gradient = GradientSum {
                sum: &item.gradient,
                scale,
            };
            let (optimizer, arithmetic) = (&self.optimizer, &*self.arithmetic);
            let step = &steps[item.piece.tensor];
            let applied = item
                .state
                .apply(gradient, step, optimizer, arithmetic, &mut item.working)?;
            places.extend(applied_places(&item.piece, &applied, &mut table)?);
        }
        Pending::new(&table, move |words| read_applied(&places, words))
    }

    /// Prepares and applies the hidden or the other pieces of a bucket in one go, where steps depend on nothing else.
    pub fn step_in(
        &mut self,
        bucket: &Range<usize>,
        kind: owned::Kind,
        scale: f32,
        steps: &[TensorStep],
        probe: Probe,
    ) -> Result<Pending<Stepped>, TrainerError> {
        let mut table = Table::new(self.device);
        let (mut prepared_places, mut places) = (Vec::new(), Vec::new());
        for item in &mut self.items {
            let is = match item.state {
                TensorPiece::Hidden(_) => owned::Kind::Hidden,
                TensorPiece::Other(_) => owned::Kind::Other,
            };
            let elements = &item.piece.elements;
            if is != kind || elements.start < bucket.start || bucket.end < elements.end {
                continue;
            }
            let gradient = GradientSum {
                sum: &item.gradient,
                scale,
            };
            let probe = part_of(probe, &item.piece);
            let (optimizer, arithmetic) = (&self.optimizer, &*self.arithmetic);
            let step = &steps[item.piece.tensor];
            let (prepared, applied) =
                item.state
                    .step(gradient, step, optimizer, arithmetic, &mut item.working, probe)?;
            prepared_places.push(PreparedPlace::new(&item.piece, &prepared, &mut table)?);
            places.extend(applied_places(&item.piece, &applied, &mut table)?);
        }
        Pending::new(&table, move |words| {
            let prepared = prepared_places.iter().map(|place| place.read(words)).collect();
            (prepared, read_applied(&places, words))
        })
    }

    /// The hash of every owned block.
    pub fn hashes(&self) -> Result<Pending<Vec<OfBlock<u64>>>, TrainerError> {
        let mut table = Table::new(self.device);
        let mut places = Vec::new();
        for item in &self.items {
            let words = table.put(&item.state.hashes(&*self.arithmetic)?)?;
            places.extend(item.piece.blocks.clone().zip(words));
        }
        Pending::new(&table, move |words| {
            places.into_iter().map(|(block, at)| (block, words[at])).collect()
        })
    }

    /// As on the host; nothing waits for it.
    pub fn note_written(&mut self) -> Result<(), TrainerError> {
        for item in &mut self.items {
            item.written = item.sums_but_master()?;
        }
        Ok(())
    }

    /// As on the host.
    pub fn changed(&self) -> Result<Pending<Vec<Change>>, TrainerError> {
        let mut table = Table::new(self.device);
        let mut places = Vec::new();
        for item in &self.items {
            let block = item.piece.blocks.start;
            for ((array, before), (_, now)) in item.written.iter().zip(item.sums_but_master()?) {
                let differs = now.f_ne_tensor(before)?.f_to_kind(Kind::Int64)?;
                places.push((Change { array: *array, block }, table.put(&differs)?.start));
            }
        }
        Pending::new(&table, move |words| {
            let changed = places.into_iter().filter(|(_, at)| words[*at] != 0);
            changed.map(|(change, _)| change).collect()
        })
    }

    /// As on the host.
    pub fn flip(&mut self, tensor: Option<usize>, array: Array) -> Result<Option<usize>, TrainerError> {
        let wanted = |item: &&Item| tensor.is_none_or(|tensor| item.piece.tensor == tensor);
        let Some(item) = self.items.iter().find(wanted) else {
            return Ok(None);
        };
        for (name, values) in item.state.arrays() {
            if Array::of_name(name) == Some(array) {
                flip_a_bit(&values.f_view([-1])?)?;
                return Ok(Some(item.piece.tensor));
            }
        }
        Ok(None)
    }

    /// Writes the masters into a float32 flat buffer of the device, each at its place.
    pub fn write_masters(&self, buffer: &impl FlatTensors) -> Result<(), TrainerError> {
        for Item { piece, state, .. } in &self.items {
            let mut place = flat::<f32>(buffer, piece.elements.start * 4, piece.elements.len())?;
            place.f_copy_(&state.master().f_view([-1])?)?;
        }
        Ok(())
    }
}

/// Changes one bit in the middle of flat values, for a drill.
pub fn flip_a_bit(values: &Tensor) -> Result<(), TrainerError> {
    let (kind, bit) = match values.kind() {
        Kind::BFloat16 => (Kind::Int16, i64::from(FLIPPED >> 16)),
        _ => (Kind::Int, i64::from(FLIPPED)),
    };
    let mut value = values.f_narrow(0, values.numel() as i64 / 2, 1)?.f_view_dtype(kind)?;
    let _ = value.f_bitwise_xor_(bit)?;
    Ok(())
}

fn flat<T: Element>(buffer: &impl FlatTensors, byte_offset: usize, count: usize) -> Result<Tensor, AutogradError> {
    buffer.view::<T>(byte_offset, &[count as i64])
}

/// The part of a piece whose orthogonality error is wanted.
fn part_of(probe: Probe, piece: &owners::Piece) -> Option<usize> {
    probe
        .filter(|(tensor, _)| *tensor == piece.tensor)
        .map(|(_, part)| part)
}

/// Where a piece's prepared results stand in a table; empty ranges where there are none.
struct PreparedPlace {
    tensor: usize,
    first_block: usize,
    duals: Range<usize>,
    block_duals: Range<usize>,
    gradient_dots: Range<usize>,
    momentum_dots: Range<usize>,
    orthogonality: Range<usize>,
}

impl PreparedPlace {
    fn new(piece: &owners::Piece, prepared: &Prepared, table: &mut Table) -> Result<PreparedPlace, TrainerError> {
        let mut put = |result: &Option<Tensor>| match result {
            Some(result) => table.put(result),
            None => Ok(0..0),
        };
        Ok(PreparedPlace {
            tensor: piece.tensor,
            first_block: piece.blocks.start,
            duals: put(&prepared.duals)?,
            block_duals: put(&prepared.block_duals)?,
            gradient_dots: put(&prepared.gradient_dots)?,
            momentum_dots: put(&prepared.momentum_dots)?,
            orthogonality: put(&prepared.orthogonality)?,
        })
    }

    fn read(&self, words: &[u64]) -> PreparedPiece {
        let number = |range: &Range<usize>, index: usize| {
            let word = words[range.clone()].get(index);
            word.map(|word| f64::from_bits(*word))
        };
        let blocks = self.block_duals.len().max(self.gradient_dots.len());
        let of_block = |range: &Range<usize>, index| number(range, index).unwrap_or(0.0);
        PreparedPiece {
            tensor: self.tensor,
            first_block: self.first_block,
            prepared: results::Prepared {
                duals: words[self.duals.clone()]
                    .iter()
                    .map(|word| f64::from_bits(*word))
                    .collect(),
                blocks: (0..blocks)
                    .map(|index| BlockSums {
                        dual: of_block(&self.block_duals, index),
                        gradient_dot: of_block(&self.gradient_dots, index),
                        momentum_dot: of_block(&self.momentum_dots, index),
                    })
                    .collect(),
                orthogonality: number(&self.orthogonality, 0),
            },
        }
    }
}

/// By block, where its hash and its Σ update² stand.
fn applied_places(
    piece: &owners::Piece,
    applied: &Applied,
    table: &mut Table,
) -> Result<Vec<OfBlock<(usize, usize)>>, TrainerError> {
    let words = table.put(&applied.hashes)?.zip(table.put(&applied.square_sums)?);
    Ok(piece.blocks.clone().zip(words).collect())
}

fn read_applied(places: &[OfBlock<(usize, usize)>], words: &[u64]) -> Vec<OfBlock<results::Applied>> {
    let value = |(hash, square_sum): (usize, usize)| results::Applied {
        hash: words[hash],
        square_sum: f64::from_bits(words[square_sum]),
    };
    places.iter().map(|(block, at)| (*block, value(*at))).collect()
}

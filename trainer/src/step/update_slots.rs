//! The slots of a step's update: what was prepared (slots 2) and what was applied (slots 3), in one table.
//!
//! Where steps depend on sums over all tensors, the prepared part is exchanged before anything is applied; otherwise both
//! parts go in one exchange after it. Either way every rank checks that every planned polar factor was made, by name.
//!
//! Sections of the table, each with one writer a word: per polar factor the number of times it was computed and ⟨M, U⟩; one
//! orthogonality error; per block the dual sum (where a norm is measured), ⟨g, w⟩ and ⟨m, w⟩ (where there is a model of the
//! loss); then per block the hash of the new master, that of the working copy where it is rounded and drift is watched, and Σ
//! update².

use std::ops::Range;

use lockstep_inventory::TensorSpec;
use lockstep_optim::decision::Measured;
use lockstep_optim::results::Applied;
use lockstep_optim::settings::Optimizer;

use crate::error::TrainerError;
use crate::sharding::layout::Layout;
use crate::sharding::owners::OwnerMap;
use crate::step::owned::{OfBlock, PreparedPiece, Probe};
use lockstep_collective::communication::Communication;

/// Where each section lies.
#[derive(Clone, Debug)]
struct Sections {
    counts: Range<usize>,
    duals: Range<usize>,
    orthogonality: usize,
    block_duals: Range<usize>,
    gradient_dots: Range<usize>,
    momentum_dots: Range<usize>,
    hashes: Range<usize>,
    copies: Range<usize>,
    squares: Range<usize>,
}

/// The table of one rank.
pub struct UpdateSlots {
    words: Vec<u64>,
    owners: Vec<u32>,
    sections: Sections,
    owner_of_factor: Vec<u32>,
    /// By tensor: its factors and its blocks.
    places: Vec<(Range<usize>, Range<usize>)>,
    /// By block: whether its working copy is rounded.
    is_rounded: Vec<bool>,
    /// Whether the table holds the hashes of what was written last.
    is_known: bool,
}

/// What the prepared part says.
#[derive(Clone, Debug)]
pub struct PreparedTotals {
    /// By tensor.
    pub measured: Vec<Measured>,
    /// Polar factors computed by all ranks.
    pub polar_factors: u32,
    /// The name of the probed matrix and its orthogonality error.
    pub orthogonality: Option<(String, f64)>,
}

impl UpdateSlots {
    /// The table for a layout, its owners and an optimiser; `watches`: with what drift is found by.
    pub fn new(layout: &Layout, map: &OwnerMap, optimizer: &Optimizer, watches: bool) -> UpdateSlots {
        let of_block = map.owner_of_block(layout.blocks);
        let owner_of_factor = map.owner_of_factor(layout);
        let mut owners: Vec<u32> = Vec::new();
        let mut section = |of: &[u32], there: bool| {
            let start = owners.len();
            if there {
                owners.extend_from_slice(of);
            }
            start..owners.len()
        };
        let model = optimizer.momo().is_some();
        let sections = Sections {
            counts: section(&owner_of_factor, true),
            duals: section(&owner_of_factor, true),
            orthogonality: section(&[0], true).start,
            block_duals: section(&of_block, optimizer.is_global()),
            gradient_dots: section(&of_block, model),
            momentum_dots: section(&of_block, model),
            hashes: section(&of_block, true),
            copies: section(&of_block, watches && layout.places.iter().any(|place| place.bf16)),
            squares: section(&of_block, true),
        };
        let mut is_rounded = vec![false; layout.blocks];
        for place in layout.places.iter().filter(|place| place.bf16) {
            is_rounded[place.blocks.clone()].fill(true);
        }
        UpdateSlots {
            is_rounded,
            is_known: false,
            words: vec![0; owners.len()],
            owners,
            sections,
            owner_of_factor,
            places: layout
                .places
                .iter()
                .map(|p| (p.factors.clone(), p.blocks.clone()))
                .collect(),
        }
    }

    /// Empties the table for step `step`; returns the matrix whose orthogonality error that step reports: all in turn.
    pub fn begin(&mut self, step: u64) -> Probe {
        self.words.fill(0);
        self.is_known = false;
        let factors = self.owner_of_factor.len();
        if factors == 0 {
            return None;
        }
        let factor = (step % factors as u64) as usize;
        self.owners[self.sections.orthogonality] = self.owner_of_factor[factor];
        let tensor = self.places.iter().position(|(factors, _)| factors.contains(&factor))?;
        Some((tensor, factor - self.places[tensor].0.start))
    }

    /// What owned pieces have prepared.
    pub fn record_prepared(&mut self, pieces: &[PreparedPiece]) {
        for piece in pieces {
            let factors = self.places[piece.tensor].0.clone();
            for (factor, dual) in factors.zip(&piece.prepared.duals) {
                self.words[self.sections.counts.start + factor] += 1;
                self.words[self.sections.duals.start + factor] = dual.to_bits();
            }
            if let Some(error) = piece.prepared.orthogonality {
                self.words[self.sections.orthogonality] = error.to_bits();
            }
            for (block, sums) in (piece.first_block..).zip(&piece.prepared.blocks) {
                for (section, value) in [
                    (&self.sections.block_duals, sums.dual),
                    (&self.sections.gradient_dots, sums.gradient_dot),
                    (&self.sections.momentum_dots, sums.momentum_dot),
                ] {
                    if !section.is_empty() {
                        self.words[section.start + block] = value.to_bits();
                    }
                }
            }
        }
    }

    /// What owned blocks have become.
    pub fn record_applied(&mut self, blocks: &[OfBlock<Applied>]) {
        for &(block, applied) in blocks {
            self.words[self.sections.hashes.start + block] = applied.hash;
            self.words[self.sections.squares.start + block] = applied.square_sum.to_bits();
        }
    }

    /// Hashes of the working copies of owned blocks, where they are rounded.
    pub fn record_copies(&mut self, blocks: &[OfBlock<u64>]) {
        for &(block, hash) in blocks.iter().filter(|_| !self.sections.copies.is_empty()) {
            self.words[self.sections.copies.start + block] = hash;
        }
    }

    /// Whether the table holds the hashes of what was written last, of all owners.
    pub fn are_hashes_known(&self) -> bool {
        self.is_known
    }

    /// Something else was written.
    pub fn forget_hashes(&mut self) {
        self.is_known = false;
    }

    /// The hash of the master of a block, as its owner wrote it last.
    pub fn master_hash(&self, block: usize) -> u64 {
        self.words[self.sections.hashes.start + block]
    }

    /// The hash of the working copy of a block, as its owner wrote it last.
    pub fn copy_hash(&self, block: usize) -> u64 {
        match self.is_rounded[block] {
            true => self.words[self.sections.copies.start + block],
            false => self.master_hash(block),
        }
    }

    /// Hashes of owned blocks, when nothing was applied.
    pub fn record_hashes(&mut self, blocks: &[OfBlock<u64>]) {
        for &(block, hash) in blocks {
            self.words[self.sections.hashes.start + block] = hash;
        }
    }

    /// Slots 2, on their own.
    pub fn exchange_prepared(&mut self, communication: &mut Communication) -> Result<(), TrainerError> {
        self.exchange(communication, 0..self.sections.hashes.start)
    }

    /// Slots 3, on their own.
    pub fn exchange_applied(&mut self, communication: &mut Communication) -> Result<(), TrainerError> {
        self.exchange(communication, self.sections.hashes.start..self.words.len())
    }

    /// Both in one exchange.
    pub fn exchange_all(&mut self, communication: &mut Communication) -> Result<(), TrainerError> {
        self.exchange(communication, 0..self.words.len())
    }

    fn exchange(&mut self, communication: &mut Communication, range: Range<usize>) -> Result<(), TrainerError> {
        let has_hashes = range.end == self.words.len();
        let owners = &self.owners[range.clone()];
        communication.exchange_slots(&mut self.words[range], owners)?;
        self.is_known = has_hashes;
        Ok(())
    }

    /// Reads the prepared part, after its exchange: proves that every planned polar factor was made once and is finite, and
    /// adds each tensor's blocks in their order.
    pub fn prepared(&self, inventory: &[TensorSpec], probe: Probe) -> Result<PreparedTotals, TrainerError> {
        let float = |at: usize| f64::from_bits(self.words[at]);
        let name = |tensor: usize, part: usize| match self.places[tensor].0.len() {
            1 => inventory[tensor].name.clone(),
            _ => format!("{}[{part}]", inventory[tensor].name),
        };
        let mut measured = Vec::with_capacity(self.places.len());
        for (tensor, (factors, blocks)) in self.places.iter().enumerate() {
            let mut duals = Vec::with_capacity(factors.len().max(1));
            for (part, factor) in factors.clone().enumerate() {
                let count = self.words[self.sections.counts.start + factor];
                let dual = float(self.sections.duals.start + factor);
                if count != 1 {
                    return Err(TrainerError::Broken(format!(
                        "the hidden matrix {} has {count} polar factors in this step where one was planned; the step is not committed",
                        name(tensor, part)
                    )));
                }
                if !dual.is_finite() {
                    return Err(TrainerError::NotFinite(format!(
                        "the polar factor of the hidden matrix {} is not finite; the step is not committed. Try optimizer.polar.precision = \"fp32\" or another optimizer.polar.method",
                        name(tensor, part)
                    )));
                }
                duals.push(dual);
            }
            let sum = |section: &Range<usize>| match section.is_empty() {
                true => 0.0,
                false => blocks.clone().map(|block| float(section.start + block)).sum::<f64>(),
            };
            if factors.is_empty() {
                let dual = sum(&self.sections.block_duals);
                if !dual.is_finite() {
                    return Err(TrainerError::NotFinite(format!(
                        "the dual norm of {} is not finite; the step is not committed. Try a lower learning rate",
                        inventory[tensor].name
                    )));
                }
                duals.push(dual);
            }
            measured.push(Measured {
                duals,
                gradient_dot: sum(&self.sections.gradient_dots),
                momentum_dot: sum(&self.sections.momentum_dots),
            });
        }
        Ok(PreparedTotals {
            measured,
            polar_factors: self.owner_of_factor.len() as u32,
            orthogonality: probe.map(|(tensor, part)| (name(tensor, part), float(self.sections.orthogonality))),
        })
    }

    /// Reads the applied part, after its exchange: the `parameter_hash` (BLAKE3 over the block hashes, little-endian, in
    /// index order) and ‖update‖.
    pub fn applied(&self) -> ([u8; 32], f64) {
        let mut hasher = blake3::Hasher::new();
        for hash in &self.words[self.sections.hashes.clone()] {
            hasher.update(&hash.to_le_bytes());
        }
        let squares = &self.words[self.sections.squares.clone()];
        let square: f64 = squares.iter().map(|w| f64::from_bits(*w)).sum();
        (*hasher.finalize().as_bytes(), square.sqrt())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use lockstep_collective::communication::Overlap;
    use lockstep_collective::{Aborter, Backend, HostDevice, connect, new_id};
    use lockstep_config::{OptimizerSection, Precision};
    use lockstep_inventory::{Initial, Role, treatments};
    use lockstep_optim::results::{BlockSums, Prepared};

    use super::*;

    /// A tensor of two parts and a plain matrix under muonmax on one rank, after a step in which `pieces` were prepared.
    fn totals(pieces: &[PreparedPiece]) -> Result<PreparedTotals, TrainerError> {
        let spec = |name: &str, shape: &[i64], role| TensorSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
            layer: 0,
            role,
            initial: Initial::Zeros,
        };
        let inventory = [
            spec("qkv", &[6, 4], Role::Hidden),
            spec("up", &[8, 4], Role::Hidden),
            spec("gain", &[4], Role::Norm),
        ];
        let table = "method = \"muonmax\"\nhidden = [{ match = \"qkv\", split = 2 }, \"up\"]";
        let keys = OptimizerSection::parse(table.parse().unwrap(), "slots", Precision::Fp32).unwrap();
        let treatments = treatments(&keys, &inventory, None).unwrap();
        let layout = Layout::new(&inventory, &treatments, false);
        let map = OwnerMap::new(&treatments, &layout, 1);
        let mut slots = UpdateSlots::new(&layout, &map, &Optimizer::new(&keys), true);
        let probe = slots.begin(1);
        slots.record_prepared(pieces);
        let id = new_id(&[1; 32], 1).unwrap();
        let connect = move || connect(Backend::Solo, &id, 0, 1, Duration::from_secs(1), &Aborter::new());
        let mut solo = Communication::start(Arc::new(HostDevice), Overlap::None, connect).unwrap();
        slots.exchange_prepared(&mut solo).unwrap();
        slots.prepared(&inventory, probe)
    }

    fn piece(tensor: usize, first_block: usize, duals: &[f64], dual: f64) -> PreparedPiece {
        PreparedPiece {
            tensor,
            first_block,
            prepared: Prepared {
                duals: duals.to_vec(),
                blocks: vec![BlockSums {
                    dual,
                    ..BlockSums::default()
                }],
                orthogonality: Some(0.125),
            },
        }
    }

    #[test]
    fn factors_are_counted_and_sums_go_to_their_tensors() {
        // Blocks are numbered in backward order.
        let totals = totals(&[
            piece(2, 0, &[], 9.0),
            piece(1, 1, &[5.0], 0.0),
            piece(0, 2, &[3.0, 4.0], 0.0),
        ])
        .unwrap();
        let duals: Vec<_> = totals.measured.iter().map(|m| m.duals.clone()).collect();
        assert_eq!(duals, [vec![3.0, 4.0], vec![5.0], vec![9.0]]);
        assert_eq!(totals.polar_factors, 3);
        assert!(matches!(totals.orthogonality, Some((_, 0.125))));
    }

    #[test]
    fn a_hidden_matrix_that_was_not_orthogonalised_or_twice_stops_the_step_by_name() {
        let up = || piece(1, 1, &[5.0], 0.0);
        for (pieces, name, count) in [
            (vec![up()], "qkv[0]", "has 0"),
            (vec![up(), piece(0, 2, &[3.0], 0.0)], "qkv[1]", "has 0"),
            (vec![up(), up(), piece(0, 2, &[3.0, 4.0], 0.0)], "up", "has 2"),
        ] {
            let sentence = totals(&pieces).unwrap_err().to_string();
            assert!(
                sentence.contains(&format!("the hidden matrix {name} {count} polar factors")),
                "{sentence}"
            );
        }
    }

    #[test]
    fn what_is_not_finite_is_named() {
        let sentence = totals(&[piece(1, 1, &[f64::NAN], 0.0), piece(0, 2, &[1.0, 2.0], 0.0)])
            .unwrap_err()
            .to_string();
        assert!(sentence.contains("polar factor of the hidden matrix up"), "{sentence}");
        let all = [
            piece(2, 0, &[], f64::INFINITY),
            piece(1, 1, &[5.0], 0.0),
            piece(0, 2, &[3.0, 4.0], 0.0),
        ];
        let sentence = totals(&all).unwrap_err().to_string();
        assert!(sentence.contains("dual norm of gain"), "{sentence}");
    }
}

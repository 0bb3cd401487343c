//! The slot tables of a step's three exchanges. Every slot has one writer; tables are gathered and read in index order,
//! so every total has the same bits on every rank and in every world.
//!
//! 1. step: per lane Σ loss and token count, per rank the newest directive, per block Σ g² and non-finite count
//! 2. polar: per hidden matrix the number of polar factors computed and ⟨M, U⟩
//! 3. applied: per block the hash of the new master and Σ update²

use std::ops::Range;

use lockstep_kernels::update::Applied;
use lockstep_proto::domain::Plan;

use crate::error::TrainerError;
use crate::inventory::TensorSpec;
use crate::sharding::layout::Layout;
use crate::sharding::owners::OwnerMap;
use crate::step::owned::OfBlock;
use crate::step::{SharedCollective, locked};

/// What a lane adds up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lane {
    /// Σ loss over its counted tokens.
    pub loss: f64,
    /// Its counted tokens.
    pub tokens: u64,
}

/// A table of words and who writes which.
struct Table {
    words: Vec<u64>,
    owners: Vec<u32>,
}

impl Table {
    fn new(owners: Vec<u32>) -> Table {
        Table {
            words: vec![0; owners.len()],
            owners,
        }
    }

    fn exchange(&mut self, collective: &SharedCollective) -> Result<(), TrainerError> {
        Ok(locked(collective).exchange_slots(&mut self.words, &self.owners)?)
    }
}

/// The tables of one rank.
pub struct Slots {
    lanes: u32,
    ranks: usize,
    blocks: usize,
    /// Indices (in the inventory) of hidden matrices, in the order of their slots.
    hidden: Vec<usize>,
    step: Table,
    polar: Table,
    applied: Table,
}

/// Slots 1, read.
#[derive(Clone, Debug)]
pub struct StepTotals {
    /// Mean loss.
    pub loss: f64,
    /// Counted tokens.
    pub tokens: u64,
    /// ‖g‖ of the mean gradient.
    pub grad_norm: f64,
    /// The highest directive.
    pub directive: u64,
    /// Count of gradient values that are not finite, by block.
    not_finite: Vec<u64>,
}

/// What becomes of a step, decided the same way on every rank before any state has changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Applied, with the factor that turns gradient sums into the (clipped) mean.
    Accepted {
        /// Clip factor ÷ token count.
        scale: f32,
    },
    /// The run stops.
    Refused {
        /// A sentence: what, where.
        reason: String,
    },
}

impl StepTotals {
    /// Accepts, clips or refuses the step.
    pub fn verdict(&self, layout: &Layout, inventory: &[TensorSpec], clip_norm: Option<f64>, plan: &Plan) -> Verdict {
        let bad: u64 = self.not_finite.iter().sum();
        if bad > 0 {
            let spoilt = |place: &&crate::sharding::layout::Place| {
                self.not_finite[place.blocks.clone()].iter().any(|count| *count > 0)
            };
            let names: Vec<&str> = layout
                .places
                .iter()
                .zip(inventory)
                .filter(|(place, _)| spoilt(place))
                .map(|(_, spec)| spec.name.as_str())
                .collect();
            let more = if names.len() > 1 {
                format!(" and {} more tensors", names.len() - 1)
            } else {
                String::new()
            };
            return Verdict::Refused {
                reason: format!(
                    "step {}: {bad} gradient values of {}{more} are not finite (loss {}); no parameter has changed. \
                     Try a lower learning rate or set optimizer.clip_norm",
                    plan.step,
                    names.first().unwrap_or(&"no tensor"),
                    self.loss
                ),
            };
        }
        if !self.loss.is_finite() {
            return Verdict::Refused {
                reason: format!(
                    "step {}: the loss is {}; no parameter has changed. Try a lower learning rate",
                    plan.step, self.loss
                ),
            };
        }
        let clip = match clip_norm {
            Some(limit) if self.grad_norm > limit => limit / self.grad_norm,
            _ => 1.0,
        };
        Verdict::Accepted {
            scale: (clip / self.tokens as f64) as f32,
        }
    }
}

impl Slots {
    /// Tables for a layout, its owners, and the lanes of every rank.
    pub fn new(layout: &Layout, owners: &OwnerMap, rank_lanes: &[Range<u32>], lanes: u32) -> Slots {
        let of_block = owners.owner_of_block(layout.blocks);
        let mut of_lane = vec![0u32; lanes as usize];
        for (rank, hosted) in rank_lanes.iter().enumerate() {
            of_lane[hosted.start as usize..hosted.end as usize].fill(rank as u32);
        }
        let ranks = rank_lanes.len();
        let hidden: Vec<usize> = (0..layout.places.len()).filter(|t| layout.places[*t].hidden).collect();
        let of_matrix: Vec<u32> = hidden
            .iter()
            .map(|t| of_block[layout.places[*t].blocks.start])
            .collect();
        let step = [
            of_lane.clone(),
            of_lane,
            (0..ranks as u32).collect(),
            of_block.clone(),
            of_block.clone(),
        ];
        Slots {
            lanes,
            ranks,
            blocks: layout.blocks,
            hidden,
            step: Table::new(step.concat()),
            polar: Table::new([of_matrix.clone(), of_matrix].concat()),
            applied: Table::new([of_block.clone(), of_block].concat()),
        }
    }

    /// The number of lanes.
    pub fn lanes(&self) -> u32 {
        self.lanes
    }

    /// Empties the tables for a new step.
    pub fn begin(&mut self) {
        for table in [&mut self.step, &mut self.polar, &mut self.applied] {
            table.words.fill(0);
        }
    }

    /// A hosted lane has run.
    pub fn record_lane(&mut self, lane: u32, sums: Lane) {
        self.step.words[lane as usize] = sums.loss.to_bits();
        self.step.words[(self.lanes + lane) as usize] = sums.tokens;
    }

    /// Σ g² and non-finite counts of owned blocks.
    pub fn record_gradients(&mut self, blocks: &[OfBlock<(f64, u64)>]) {
        let at = 2 * self.lanes as usize + self.ranks;
        for &(block, (sum, bad)) in blocks {
            self.step.words[at + block] = sum.to_bits();
            self.step.words[at + self.blocks + block] = bad;
        }
    }

    /// Slots 1.
    pub fn exchange_step(
        &mut self,
        collective: &SharedCollective,
        rank: u32,
        directive: u64,
    ) -> Result<StepTotals, TrainerError> {
        let lanes = self.lanes as usize;
        self.step.words[2 * lanes + rank as usize] = directive;
        self.step.exchange(collective)?;
        let words = &self.step.words;
        let loss: f64 = words[..lanes].iter().map(|w| f64::from_bits(*w)).sum();
        let tokens: u64 = words[lanes..2 * lanes].iter().sum();
        let directives = &words[2 * lanes..][..self.ranks];
        let squares = &words[2 * lanes + self.ranks..][..self.blocks];
        let square: f64 = squares.iter().map(|w| f64::from_bits(*w)).sum();
        let not_finite = words[2 * lanes + self.ranks + self.blocks..].to_vec();
        Ok(StepTotals {
            loss: loss / tokens as f64,
            tokens,
            grad_norm: square.sqrt() / tokens as f64,
            directive: directives.iter().copied().max().unwrap_or(0),
            not_finite,
        })
    }

    /// Owned hidden matrices have their polar factors: ⟨M, U⟩ by tensor.
    pub fn record_polar(&mut self, duals: &[OfBlock<f64>]) {
        for &(tensor, dual) in duals {
            if let Some(at) = self.hidden.iter().position(|t| *t == tensor) {
                self.polar.words[at] += 1;
                self.polar.words[self.hidden.len() + at] = dual.to_bits();
            }
        }
    }

    /// Slots 2: proves that every hidden matrix has one polar factor of this step; returns how many there are.
    pub fn exchange_polar(
        &mut self,
        collective: &SharedCollective,
        inventory: &[TensorSpec],
    ) -> Result<u32, TrainerError> {
        self.polar.exchange(collective)?;
        for (at, &tensor) in self.hidden.iter().enumerate() {
            let (count, dual) = (
                self.polar.words[at],
                f64::from_bits(self.polar.words[self.hidden.len() + at]),
            );
            let name = &inventory[tensor].name;
            if count != 1 {
                return Err(TrainerError::Broken(format!(
                    "the hidden matrix {name} has {count} polar factors in this step where one was planned; no parameter has changed"
                )));
            }
            if !dual.is_finite() {
                return Err(TrainerError::NotFinite(format!(
                    "the polar factor of the hidden matrix {name} is not finite; no parameter has changed"
                )));
            }
        }
        Ok(self.hidden.len() as u32)
    }

    /// Hashes and Σ update² of owned blocks.
    pub fn record_applied(&mut self, blocks: &[OfBlock<Applied>]) {
        for &(block, applied) in blocks {
            self.applied.words[block] = applied.hash;
            self.applied.words[self.blocks + block] = applied.square_sum.to_bits();
        }
    }

    /// Hashes of owned blocks, when nothing was applied.
    pub fn record_hashes(&mut self, blocks: &[OfBlock<u64>]) {
        for &(block, hash) in blocks {
            self.applied.words[block] = hash;
        }
    }

    /// Slots 3: the `parameter_hash` (BLAKE3 over the block hashes, little-endian, in index order) and ‖update‖.
    pub fn exchange_applied(&mut self, collective: &SharedCollective) -> Result<([u8; 32], f64), TrainerError> {
        self.applied.exchange(collective)?;
        let mut hasher = blake3::Hasher::new();
        for hash in &self.applied.words[..self.blocks] {
            hasher.update(&hash.to_le_bytes());
        }
        let square: f64 = self.applied.words[self.blocks..]
            .iter()
            .map(|w| f64::from_bits(*w))
            .sum();
        Ok((*hasher.finalize().as_bytes(), square.sqrt()))
    }
}

//! The slots of a step's first exchange: per lane Σ loss, token count and Σ g² of its own sum, per rank the newest directive and what has changed
//! in its memory, per block Σ g² and
//! non-finite count. Every slot has one writer; tables are gathered and read in index order, so every total has the same
//! bits on every rank and in every world. The other exchanges are in `update_slots`.

use std::ops::Range;

use crate::error::TrainerError;
use crate::sharding::layout::{Layout, Place};
use crate::sharding::owners::OwnerMap;
use crate::step::drift::Change;
use crate::step::lane_norms::Spread;
use crate::step::owned::OfBlock;
use crate::step::skipping::Finding;
use lockstep_collective::communication::Communication;
use lockstep_inventory::TensorSpec;

/// What a lane adds up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lane {
    /// Σ loss over its counted tokens.
    pub loss: f64,
    /// Its counted tokens.
    pub tokens: u64,
    /// Σ g² of its gradient sum; 0 where lanes are not measured.
    pub square: f64,
}

/// The table of one rank.
pub struct Slots {
    lanes: u32,
    ranks: usize,
    blocks: usize,
    words: Vec<u64>,
    owners: Vec<u32>,
    measures: bool,
}

/// The table, read.
#[derive(Clone, Debug)]
pub struct StepTotals {
    /// Mean loss.
    pub loss: f64,
    /// Counted tokens.
    pub tokens: u64,
    /// ‖g‖ of the mean gradient.
    pub grad_norm: f64,
    /// How far the lanes' gradients differ, where they are measured and more than one has tokens.
    pub spread: Option<Spread>,
    /// The highest directive.
    pub directive: u64,
    /// What has changed in the memory of each rank by itself.
    pub changes: Vec<Option<Change>>,
    /// Count of gradient values that are not finite, by block.
    not_finite: Vec<u64>,
}

impl StepTotals {
    /// What the numbers are.
    pub fn finding(&self, layout: &Layout, inventory: &[TensorSpec]) -> Finding {
        let bad: u64 = self.not_finite.iter().sum();
        if bad == 0 && self.loss.is_finite() {
            return Finding::Finite { loss: self.loss };
        }
        if bad == 0 {
            return Finding::NotFinite(format!("the loss is {}", self.loss));
        }
        let spoilt = |place: &&Place| self.not_finite[place.blocks.clone()].iter().any(|count| *count > 0);
        let places = layout.places.iter().zip(inventory);
        let names: Vec<&str> = places
            .filter(|(place, _)| spoilt(place))
            .map(|(_, spec)| spec.name.as_str())
            .collect();
        let more = match names.len() {
            0 | 1 => String::new(),
            count => format!(" and {} more tensors", count - 1),
        };
        let first = names.first().unwrap_or(&"no tensor");
        Finding::NotFinite(format!(
            "{bad} gradient values of {first}{more} are not finite (loss {})",
            self.loss
        ))
    }

    /// The factor that turns gradient sums into the (clipped) mean.
    pub fn scale(&self, clip_norm: Option<f64>) -> f32 {
        let clip = match clip_norm {
            Some(limit) if self.grad_norm > limit => limit / self.grad_norm,
            _ => 1.0,
        };
        (clip / self.tokens as f64) as f32
    }
}

impl Slots {
    /// The table for a layout, its owners, and the lanes of every rank.
    pub fn new(layout: &Layout, owners: &OwnerMap, rank_lanes: &[Range<u32>], lanes: u32) -> Slots {
        let of_block = owners.owner_of_block(layout.blocks);
        let mut of_lane = vec![0u32; lanes as usize];
        for (rank, hosted) in rank_lanes.iter().enumerate() {
            of_lane[hosted.start as usize..hosted.end as usize].fill(rank as u32);
        }
        let ranks = rank_lanes.len();
        let owners = [
            of_lane.clone(),
            of_lane.clone(),
            of_lane,
            (0..ranks as u32).collect(),
            (0..ranks as u32).collect(),
            of_block.clone(),
            of_block,
        ]
        .concat();
        Slots {
            lanes,
            ranks,
            blocks: layout.blocks,
            words: vec![0; owners.len()],
            owners,
            measures: false,
        }
    }

    /// With the Σ g² of every lane.
    pub fn with_squares(self, measures: bool) -> Slots {
        Slots { measures, ..self }
    }

    /// The number of lanes.
    pub fn lanes(&self) -> u32 {
        self.lanes
    }

    /// Empties the table for a new step.
    pub fn begin(&mut self) {
        self.words.fill(0);
    }

    /// A hosted lane has run.
    pub fn record_lane(&mut self, lane: u32, sums: Lane) {
        self.words[lane as usize] = sums.loss.to_bits();
        self.words[(self.lanes + lane) as usize] = sums.tokens;
        self.words[(2 * self.lanes + lane) as usize] = sums.square.to_bits();
    }

    /// Σ g² and non-finite counts of owned blocks.
    pub fn record_gradients(&mut self, blocks: &[OfBlock<(f64, u64)>]) {
        let at = 3 * self.lanes as usize + 2 * self.ranks;
        for &(block, (sum, bad)) in blocks {
            self.words[at + block] = sum.to_bits();
            self.words[at + self.blocks + block] = bad;
        }
    }

    /// Something in the memory of this rank has changed by itself.
    pub fn record_change(&mut self, rank: u32, change: Change) {
        self.words[3 * self.lanes as usize + self.ranks + rank as usize] = change.to_word();
    }

    /// Exchanges the table and reads it.
    pub fn exchange_step(
        &mut self,
        communication: &mut Communication,
        rank: u32,
        directive: u64,
    ) -> Result<StepTotals, TrainerError> {
        let lanes = self.lanes as usize;
        self.words[3 * lanes + rank as usize] = directive;
        communication.exchange_slots(&mut self.words, &self.owners)?;
        let words = &self.words;
        let loss: f64 = words[..lanes].iter().map(|w| f64::from_bits(*w)).sum();
        let tokens: u64 = words[lanes..2 * lanes].iter().sum();
        let directives = &words[3 * lanes..][..self.ranks];
        let changes = words[3 * lanes + self.ranks..][..self.ranks].iter();
        let blocks = &words[3 * lanes + 2 * self.ranks..];
        let squares = &blocks[..self.blocks];
        let square: f64 = squares.iter().map(|w| f64::from_bits(*w)).sum();
        let not_finite = blocks[self.blocks..].to_vec();
        let lane_squares = words[2 * lanes..3 * lanes].iter().map(|word| f64::from_bits(*word));
        let of_lanes = lane_squares.zip(words[lanes..2 * lanes].iter().copied());
        let mean_square = square / (tokens as f64 * tokens as f64);
        Ok(StepTotals {
            loss: loss / tokens as f64,
            tokens,
            grad_norm: square.sqrt() / tokens as f64,
            spread: self.measures.then(|| Spread::of(of_lanes, mean_square)).flatten(),
            directive: directives.iter().copied().max().unwrap_or(0),
            changes: changes.map(|word| Change::of_word(*word)).collect(),
            not_finite,
        })
    }
}

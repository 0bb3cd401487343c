//! What a step is for each rank, counted: pure arithmetic of config and world.
//!
//! Way of data: config, vocabulary, world → layout, owners, lanes → [`RankWork`] of every rank: how many micro-batches it runs,
//! what it adds, orthogonalises, applies, receives, and keeps in memory.

use lockstep_collective::LaneTree;
use lockstep_config::{Precision, Reduction, RunConfig};
use lockstep_data::{lane_micro_batches, rank_lanes};
use lockstep_inventory::treatments_of;

use crate::error::TrainerError;
use crate::memory_account::{MemoryAccount, wire_of};
use crate::model::choice::from_config;
use crate::sharding::layout::Layout;
use crate::sharding::owners::OwnerMap;
use crate::sharding::program::{Action, LaneProgram};

/// A step of one rank.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RankWork {
    /// Its lanes that have work.
    pub(super) lanes: u32,
    /// Its micro-batches.
    pub(super) micro_batches: u32,
    /// Additions of whole gradient buffers before its last lane ends; those after it hide behind backward.
    pub(super) additions: u32,
    /// Multiplications of its polar factors, up to a constant.
    pub(super) polar_cost: u64,
    /// Elements whose masters it holds.
    pub(super) owned: u64,
    /// Bytes of partial sums that it receives as an owner.
    pub(super) received: u64,
    /// Bytes of parameters that it gathers from other owners.
    pub(super) gathered: u64,
    /// Its memory, without activations.
    pub(super) account: MemoryAccount,
    /// Bytes of the snapshots that it may hold at once, its own and its neighbour's.
    pub(super) snapshots: u64,
}

/// A step of a world.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Work {
    /// By rank.
    pub(super) ranks: Vec<RankWork>,
    /// Parameters of the model.
    pub(super) parameters: u64,
    /// Parameters of hidden matrices.
    pub(super) hidden: u64,
    /// Elements of a gradient buffer.
    pub(super) gradient_elements: u64,
    /// Tokens of the step.
    pub(super) tokens: u64,
}

impl Work {
    /// The work of a step of `micro_batches` on `ranks` ranks.
    ///
    /// # Errors
    /// Rules of the optimiser that fit no tensor.
    pub(super) fn of(
        config: &RunConfig,
        vocabulary: u32,
        (ranks, micro_batches): (u32, u32),
    ) -> Result<Work, TrainerError> {
        let model = from_config(config, vocabulary);
        let treatments = treatments_of(config, vocabulary).map_err(|error| TrainerError::Refused(error.to_string()))?;
        let layout = Layout::new(model.inventory(), &treatments, config.run.precision == Precision::Bf16);
        let owners = OwnerMap::new(&treatments, &layout, ranks);
        let lanes = config.run.lanes;
        let working: Vec<bool> = (0..lanes)
            .map(|lane| !lane_micro_batches(lane, lanes, micro_batches).is_empty())
            .collect();
        let deal: Vec<_> = (0..ranks).map(|rank| rank_lanes(rank, ranks, lanes)).collect();
        let tree = match config.run.reduction {
            Reduction::Invariant => LaneTree::new(&working),
            Reduction::Fast => LaneTree::by_rank(&working, &deal),
        };
        let partials: Vec<u64> = deal
            .iter()
            .map(|hosted| tree.maximal_subtrees(hosted.clone()).len() as u64)
            .collect();
        let accounts = (0..ranks)
            .map(|rank| MemoryAccount::of(config, vocabulary, rank, ranks))
            .collect::<Result<Vec<_>, _>>()?;
        let mut owned = vec![0u64; ranks as usize];
        let mut copies = vec![0u64; ranks as usize];
        for piece in &owners.pieces {
            let size = if layout.places[piece.tensor].bf16 { 2 } else { 4 };
            owned[piece.owner as usize] += piece.elements.len() as u64;
            copies[piece.owner as usize] += size * piece.elements.len() as u64;
        }
        let all_copies: u64 = copies.iter().sum();
        let keeps_snapshots = config.fault.snapshot_every > 0 && (ranks > 1 || config.fault.may_rewind());
        let mut works = Vec::new();
        for (rank, hosted) in deal.iter().enumerate() {
            let program = match config.run.reduction {
                Reduction::Invariant => LaneProgram::new(&working, hosted.clone(), wire_of(config)),
                Reduction::Fast => LaneProgram::fast(&working, hosted.clone(), wire_of(config)),
            };
            let additions = program
                .actions
                .iter()
                .filter(|action| !matches!(action, Action::Run { .. }));
            let others: u64 = partials
                .iter()
                .enumerate()
                .filter(|(r, _)| *r != rank)
                .map(|(_, n)| n)
                .sum();
            let neighbour = (rank + ranks as usize - 1) % ranks as usize;
            let own = accounts[rank].state as u64;
            let kept = if neighbour == rank {
                own
            } else {
                own + accounts[neighbour].state as u64
            };
            works.push(RankWork {
                lanes: hosted.clone().filter(|lane| working[*lane as usize]).count() as u32,
                micro_batches: hosted
                    .clone()
                    .map(|lane| lane_micro_batches(lane, lanes, micro_batches).len() as u32)
                    .sum(),
                additions: additions.count() as u32,
                polar_cost: owners.hidden_cost[rank],
                owned: owned[rank],
                received: 4 * owned[rank] * others,
                gathered: all_copies - copies[rank],
                account: accounts[rank],
                // The newest one is made while the one before it still stands.
                snapshots: if keeps_snapshots { 2 * kept } else { 0 },
            });
        }
        let hidden = layout.places.iter().filter(|place| place.hidden);
        Ok(Work {
            parameters: model.inventory().iter().map(|spec| spec.elements() as u64).sum(),
            hidden: hidden.map(|place| place.gradient.len() as u64).sum(),
            gradient_elements: layout.gradient_elements as u64,
            tokens: u64::from(micro_batches)
                * u64::from(config.batch.micro_batch)
                * u64::from(config.data.sequence_length),
            ranks: works,
        })
    }

    /// The largest of what each rank has.
    pub(super) fn most(&self, of: impl Fn(&RankWork) -> u64) -> u64 {
        self.ranks.iter().map(of).max().unwrap_or(0)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A small run on six lanes.
    pub(in crate::plan) fn config(sets: &[&str]) -> RunConfig {
        let text = "[run]\nname = \"a\"\nsteps = 1\nlanes = 6\n[data]\npath = \"unused\"\nsequence_length = 16\n\
                    [model]\nkind = \"gpt2\"\nlayers = 2\nheads = 2\nwidth = 32\n[batch]\nmicro_batch = 1\nschedule = 6\n\
                    [learning_rate]\nschedule = 0.5\n[optimizer]\nmethod = \"muon\"\n";
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        RunConfig::parse(text, "work.toml", &sets).unwrap()
    }

    #[test]
    fn every_micro_batch_matrix_and_element_is_somebodys_once() {
        for ranks in 1..=6 {
            let work = Work::of(&config(&[]), 61, (ranks, 11)).unwrap();
            let sum = |of: fn(&RankWork) -> u64| work.ranks.iter().map(of).sum::<u64>();
            assert_eq!(sum(|rank| u64::from(rank.micro_batches)), 11);
            assert_eq!(sum(|rank| rank.owned), work.parameters);
            assert_eq!(sum(|rank| u64::from(rank.lanes)), 6);
            let alone = Work::of(&config(&[]), 61, (1, 11)).unwrap();
            assert_eq!(sum(|rank| rank.polar_cost), alone.ranks[0].polar_cost);
        }
    }

    #[test]
    fn a_rank_alone_receives_nothing_and_two_exchange_what_the_other_owns() {
        let alone = &Work::of(&config(&[]), 61, (1, 6)).unwrap().ranks[0];
        assert_eq!((alone.received, alone.gathered, alone.snapshots), (0, 0, 0));
        let work = Work::of(&config(&["run.precision=fp32"]), 61, (2, 6)).unwrap();
        let [first, second] = &work.ranks[..] else {
            panic!("{work:?}")
        };
        // Lanes 0..3 and 3..6 are the subtrees 0..2 and 2, and 3 and 4..6: two partial sums each.
        assert_eq!(first.received, 4 * first.owned * 2);
        assert_eq!(first.gathered, 4 * second.owned);
        assert_eq!(first.snapshots, 2 * (first.account.state + second.account.state) as u64);
        // 0 + 1 before lane 2 runs.
        assert_eq!((first.additions, second.additions), (1, 0));
    }
}

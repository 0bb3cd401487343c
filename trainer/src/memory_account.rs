//! What a rank's memory is for, in bytes: what is known before anything is allocated.

use std::fmt;

use lockstep_collective::communication::Program;
use lockstep_collective::{BufferId, Wire, nccl_scratch_bytes};
use lockstep_config::{Precision, Reduction, RunConfig};
use lockstep_data::rank_lanes;
use lockstep_inventory::{Treatment, treatments_of};
use lockstep_optim::piece::planned_bytes;

use crate::error::TrainerError;
use crate::model::choice::from_config;
use crate::sharding::layout::Layout;
use crate::sharding::owners::OwnerMap;
use crate::sharding::program::gradient_buffers;

/// Bytes of one rank, without activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryAccount {
    /// Working copies of all parameters.
    pub working_copies: usize,
    /// One gradient buffer.
    pub gradients: usize,
    /// How many there are.
    pub gradient_buffers: usize,
    /// Masters and optimiser state of what the rank owns.
    pub state: usize,
    /// What the NCCL backend needs beside its buffers; 0 where another one serves.
    pub nccl_scratch: usize,
}

impl MemoryAccount {
    /// All of it.
    pub fn bytes(&self) -> usize {
        self.working_copies + self.gradients * self.gradient_buffers + self.state + self.nccl_scratch
    }

    /// The account of rank `rank` of `ranks`.
    ///
    /// # Errors
    /// Rules of the optimiser that fit no tensor.
    pub fn of(config: &RunConfig, vocabulary: u32, rank: u32, ranks: u32) -> Result<MemoryAccount, TrainerError> {
        let model = from_config(config, vocabulary);
        let treatments = treatments_of(config, vocabulary).map_err(|error| TrainerError::Refused(error.to_string()))?;
        let layout = Layout::new(model.inventory(), &treatments, config.run.precision == Precision::Bf16);
        let owners = OwnerMap::new(&treatments, &layout, ranks);
        let deal: Vec<_> = (0..ranks).map(|r| rank_lanes(r, ranks, config.run.lanes)).collect();
        let gradient_buffers = gradient_buffers(config.run.reduction, config.run.lanes, &deal);
        let nccl_scratch = match config.backend_name(ranks) {
            "nccl" => {
                let program = Program {
                    wire: wire_of(config),
                    by_rank: config.run.reduction == Reduction::Fast,
                    rank_lanes: deal,
                    partials: (0..gradient_buffers).map(BufferId::from_index).collect(),
                    owners: owners.by_bucket(&layout),
                    ..Program::default()
                };
                nccl_scratch_bytes(&program, rank)?
            }
            _ => 0,
        };
        Ok(MemoryAccount {
            working_copies: layout.working_bytes,
            gradients: layout.gradient_elements * 4,
            gradient_buffers,
            state: state_bytes(config, &treatments, &owners, rank),
            nccl_scratch,
        })
    }
}

/// How partial sums of a run travel.
pub(crate) fn wire_of(config: &RunConfig) -> Wire {
    match config.collective.wire {
        lockstep_config::Wire::Fp32 => Wire::Float32,
        lockstep_config::Wire::Bf16 => Wire::Bf16,
    }
}

/// Bytes of the masters and the optimiser state of a rank.
pub fn state_bytes(config: &RunConfig, treatments: &[Treatment], owners: &OwnerMap, rank: u32) -> usize {
    let owned = owners.pieces.iter().filter(|piece| piece.owner == rank);
    owned
        .map(|piece| planned_bytes(&treatments[piece.tensor], piece.elements.len(), &config.optimizer))
        .sum()
}

/// Bytes as MiB, in words.
pub fn mib(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

impl fmt::Display for MemoryAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "working copies {}, gradient buffers {} × {}, masters and state {}",
            mib(self.working_copies),
            self.gradient_buffers,
            mib(self.gradients),
            mib(self.state)
        )?;
        match self.nccl_scratch {
            0 => Ok(()),
            bytes => write!(f, ", NCCL's scratch {}", mib(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(sets: &[&str], rank: u32, ranks: u32) -> MemoryAccount {
        let text = "[run]\nname = \"a\"\nsteps = 1\nlanes = 6\n[data]\npath = \"unused\"\nsequence_length = 16\n\
                    [model]\nkind = \"gpt2\"\nlayers = 2\nheads = 2\nwidth = 32\n[batch]\nmicro_batch = 1\nschedule = 6\n\
                    [learning_rate]\nschedule = 0.5\n";
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let config = RunConfig::parse(text, "memory_account.toml", &sets).unwrap();
        MemoryAccount::of(&config, 61, rank, ranks).unwrap()
    }

    #[test]
    fn the_scratch_of_nccl_is_in_the_account_of_a_gpu_only() {
        assert_eq!(account(&[], 0, 2).nccl_scratch, 0);
        assert_eq!(
            account(&["run.device=cuda"], 0, 1).nccl_scratch,
            0,
            "one rank receives nothing"
        );
        let two = account(&["run.device=cuda"], 1, 2);
        assert!(two.nccl_scratch > 0 && two.nccl_scratch.is_multiple_of(256), "{two:?}");
        let said = two.to_string();
        assert!(
            said.ends_with(&format!("NCCL's scratch {}", mib(two.nccl_scratch))),
            "{said}"
        );
        // Half of what is received, but sums that need a place of their own, and what is sent.
        let halves = account(&["run.device=cuda", "collective.wire=bf16"], 1, 2).nccl_scratch;
        assert!(halves > 0 && halves != two.nccl_scratch, "{halves}");
        // Lanes 3..6 are the subtrees 3 and 4..6, and the second is added up beside the first; a fast run has one buffer.
        let fast = account(&["run.device=cuda", "run.reduction=fast"], 1, 2);
        assert_eq!((two.gradient_buffers, fast.gradient_buffers), (3, 1));
        assert!(
            fast.nccl_scratch > 0 && fast.nccl_scratch < two.nccl_scratch,
            "{fast:?}"
        );
    }
}

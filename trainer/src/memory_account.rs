//! What a rank's memory is for, in bytes: what is known before anything is allocated.

use std::fmt;

use lockstep_config::{Precision, RunConfig};
use lockstep_data::rank_lanes;
use lockstep_inventory::{Treatment, treatments_of};
use lockstep_optim::piece::planned_bytes;

use crate::error::TrainerError;
use crate::model::choice::from_config;
use crate::sharding::layout::Layout;
use crate::sharding::owners::OwnerMap;
use crate::sharding::program::gradient_buffers;

/// Bytes of one rank, without activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAccount {
    /// Working copies of all parameters.
    pub working_copies: usize,
    /// One gradient buffer.
    pub gradients: usize,
    /// How many there are.
    pub gradient_buffers: usize,
    /// Masters and optimiser state of what the rank owns.
    pub state: usize,
}

impl MemoryAccount {
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
        Ok(MemoryAccount {
            working_copies: layout.working_bytes,
            gradients: layout.gradient_elements * 4,
            gradient_buffers: gradient_buffers(config.run.reduction, config.run.lanes, &deal),
            state: state_bytes(config, &treatments, &owners, rank),
        })
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
        )
    }
}

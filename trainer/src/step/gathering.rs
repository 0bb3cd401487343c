//! The gates: after a step each layer's working copies are gathered when the next forward first needs them.
//!
//! Layers are opened in order on every rank, each by one all-gather; a gather overwrites working copies, so it runs only
//! after this rank's last use of them in backward (the step is over), and an owner writes its next ones only after the
//! slot exchange of the next step, which every rank enters after it has copied.

use lockstep_collective::{BufferId, GatherRange};

use crate::error::TrainerError;
use crate::model::Model;
use crate::sharding::layout::Layout;
use crate::sharding::owners::OwnerMap;
use crate::step::{SharedCollective, locked};

/// The gathers of all layers.
pub struct Gathers {
    ranges: Vec<Vec<GatherRange>>,
    next: usize,
    collective: SharedCollective,
    working: BufferId,
}

impl Gathers {
    /// Gates for the layers of a model, all open.
    pub fn new(
        model: &dyn Model,
        layout: &Layout,
        owners: &OwnerMap,
        collective: SharedCollective,
        working: BufferId,
    ) -> Gathers {
        let mut ranges: Vec<Vec<GatherRange>> = vec![Vec::new(); model.layers()];
        for piece in &owners.pieces {
            let bytes = Layout::working_bytes_of(&layout.places[piece.tensor], &piece.elements);
            ranges[model.inventory()[piece.tensor].layer].push((bytes, piece.owner));
        }
        Gathers {
            next: ranges.len(),
            ranges,
            collective,
            working,
        }
    }

    /// Owners have applied a step: every gate is closed until its layer is gathered.
    pub fn close_all(&mut self) {
        self.next = 0;
    }

    /// Gathers every layer up to and with `layer` that is still closed.
    pub fn open_through(&mut self, layer: usize) -> Result<(), TrainerError> {
        while self.next <= layer && self.next < self.ranges.len() {
            locked(&self.collective).all_gather_v(self.working, &self.ranges[self.next])?;
            self.next += 1;
        }
        Ok(())
    }

    /// Gathers every layer that is still closed.
    pub fn open_all(&mut self) -> Result<(), TrainerError> {
        self.open_through(self.ranges.len().saturating_sub(1))
    }
}

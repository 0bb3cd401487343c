//! The gates: after a step each layer's working copies are gathered before the next forward first needs them.
//!
//! Layers are gathered in forward order on every rank, by the communication thread, and a gate opens when its layer is there.
//! A gather overwrites working copies, so it begins only after this rank's last use of them in backward (the step is over),
//! and an owner writes its next ones only after the slot exchange of the next step, which every rank enters after it has
//! copied.

use lockstep_collective::GatherRange;
use lockstep_collective::communication::Communication;

use crate::error::TrainerError;
use crate::model::{Gate, Model};
use crate::sharding::layout::Layout;
use crate::sharding::owners::OwnerMap;

/// By layer: the bytes of its working copies with their owners.
pub fn ranges(model: &dyn Model, layout: &Layout, owners: &OwnerMap) -> Vec<Vec<GatherRange>> {
    let mut ranges: Vec<Vec<GatherRange>> = vec![Vec::new(); model.layers()];
    for piece in &owners.pieces {
        let bytes = Layout::working_bytes_of(&layout.places[piece.tensor], &piece.elements);
        ranges[model.inventory()[piece.tensor].layer].push((bytes, piece.owner));
    }
    ranges
}

/// Which layers' gathers were waited for.
pub struct Gates {
    layers: usize,
    open: usize,
}

impl Gates {
    /// Gates for `layers` layers, all open.
    pub fn new(layers: usize) -> Gates {
        Gates { layers, open: layers }
    }

    /// Owners have applied a step: every gate is closed until its layer is gathered.
    pub fn close_all(&mut self, communication: &mut Communication) -> Result<(), TrainerError> {
        communication.gather()?;
        self.open = 0;
        Ok(())
    }

    /// The gates, for a forward pass.
    pub fn with<'a>(&'a mut self, communication: &'a mut Communication) -> WaitingGate<'a> {
        WaitingGate {
            gates: self,
            communication,
        }
    }
}

/// Waits at gates that are still closed.
pub struct WaitingGate<'a> {
    gates: &'a mut Gates,
    communication: &'a mut Communication,
}

impl WaitingGate<'_> {
    /// Waits for every layer.
    pub fn open_all(&mut self) -> Result<(), TrainerError> {
        self.open(self.gates.layers.saturating_sub(1))
    }
}

impl Gate for WaitingGate<'_> {
    fn open(&mut self, layer: usize) -> Result<(), TrainerError> {
        while self.gates.open <= layer && self.gates.open < self.gates.layers {
            self.communication.wait_gathered(self.gates.open)?;
            self.gates.open += 1;
        }
        Ok(())
    }
}

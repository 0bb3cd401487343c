//! A rank's shard of the optimiser, on the host or on a device, with one face: what the engine calls.

use std::ops::Range;

use lockstep_autograd::FlatBuffer;
use lockstep_optim::decision::TensorStep;
use lockstep_optim::results::Applied;
use lockstep_optim::settings::Optimizer;

use crate::device::memory::Flat;
use crate::device::owned::{DeviceOwned, Squares, Stepped};
use crate::device::pending::Pending;
use crate::error::TrainerError;
use crate::sharding::layout::Layout;
use crate::sharding::owners::{OwnerMap, Piece};
use crate::step::drift::{Array, Change};
use crate::step::owned::{Kind, OfBlock, Owned, PreparedPiece, Probe, Taken};

/// What a rank owns on the host, with the memory that its passes are over.
pub struct HostShard {
    /// The pieces.
    pub owned: Owned,
    /// Where every tensor lies.
    pub layout: Layout,
    /// The gradient buffer that is reduced.
    pub gradients: FlatBuffer,
    /// The working copies.
    pub working: FlatBuffer,
}

impl HostShard {
    /// The pieces, and what their passes are over.
    fn parts(&mut self, scale: f32) -> (&mut Owned, Taken<'_>, &mut FlatBuffer) {
        let taken = Taken {
            layout: &self.layout,
            gradients: &self.gradients,
            scale,
        };
        (&mut self.owned, taken, &mut self.working)
    }
}

/// What a rank owns. The passes are described in [`crate::step::owned`]; the host's results are known at once.
pub enum Shard {
    /// Over slices.
    Host(Box<HostShard>),
    /// Over tensors.
    Device(Box<DeviceOwned>),
}

impl Shard {
    /// Who owns what.
    pub fn map(&self) -> &OwnerMap {
        match self {
            Shard::Host(host) => host.owned.map(),
            Shard::Device(owned) => owned.map(),
        }
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &Optimizer {
        match self {
            Shard::Host(host) => host.owned.optimizer(),
            Shard::Device(owned) => owned.optimizer(),
        }
    }

    /// Has the optimiser take a step's momentum and weight decay.
    pub fn follow(&mut self, momentum: Option<f64>, weight_decay: Option<f64>) {
        let optimizer = match self {
            Shard::Host(host) => host.owned.optimizer_mut(),
            Shard::Device(owned) => owned.optimizer_mut(),
        };
        optimizer.follow(momentum, weight_decay);
    }

    /// Bytes of masters and state of this rank.
    pub fn state_bytes(&self) -> usize {
        match self {
            Shard::Host(host) => host.owned.state_bytes(),
            Shard::Device(owned) => owned.state_bytes(),
        }
    }

    /// Σ g² (of the gradient sums) and the count of values that are not finite, by block.
    pub fn square_sums(&self) -> Result<Pending<Squares>, TrainerError> {
        match self {
            Shard::Host(host) => host.owned.square_sums(&host.gradients).map(Pending::Known),
            Shard::Device(owned) => owned.square_sums(),
        }
    }

    /// Moments, polar factors and sums of everything owned. No parameter changes.
    pub fn prepare(&mut self, scale: f32, probe: Probe) -> Result<Pending<Vec<PreparedPiece>>, TrainerError> {
        match self {
            Shard::Host(host) => {
                let (owned, taken, working) = host.parts(scale);
                owned.prepare(taken, working, probe).map(Pending::Known)
            }
            Shard::Device(owned) => owned.prepare(scale, probe),
        }
    }

    /// Steps everything owned along what was prepared and writes the working copies.
    pub fn apply(&mut self, scale: f32, steps: &[TensorStep]) -> Result<Pending<Vec<OfBlock<Applied>>>, TrainerError> {
        match self {
            Shard::Host(host) => {
                let (owned, taken, working) = host.parts(scale);
                owned.apply(taken, working, steps).map(Pending::Known)
            }
            Shard::Device(owned) => owned.apply(scale, steps),
        }
    }

    /// Prepares and applies the hidden or the other pieces of a bucket in one go, where steps depend on nothing else.
    pub fn step_in(
        &mut self,
        bucket: &Range<usize>,
        kind: Kind,
        scale: f32,
        steps: &[TensorStep],
        probe: Probe,
    ) -> Result<Pending<Stepped>, TrainerError> {
        match self {
            Shard::Host(host) => {
                let (owned, taken, working) = host.parts(scale);
                let stepped = owned.step_in(bucket, kind, taken, working, steps, probe)?;
                Ok(Pending::Known(stepped))
            }
            Shard::Device(owned) => owned.step_in(bucket, kind, scale, steps, probe),
        }
    }

    /// Shows every array that outlives a step: the piece that it is of, its name, its values.
    pub fn show(&self, take: &mut dyn FnMut(&Piece, &'static str, &[f32])) -> Result<(), TrainerError> {
        match self {
            Shard::Host(host) => {
                host.owned.show(take);
                Ok(())
            }
            Shard::Device(owned) => owned.show(take),
        }
    }

    /// Fills every array that outlives a step, as after `steps` steps, and writes the working copies of what is owned.
    pub fn fill(
        &mut self,
        steps: u64,
        values: &mut dyn FnMut(&Piece, &'static str, &mut [f32]),
    ) -> Result<(), TrainerError> {
        match self {
            Shard::Host(host) => host.owned.fill(steps, &host.layout, &mut host.working, values),
            Shard::Device(owned) => owned.fill(steps, values),
        }
    }

    /// The hash of every owned block.
    pub fn hashes(&self) -> Result<Pending<Vec<OfBlock<u64>>>, TrainerError> {
        match self {
            Shard::Host(host) => Ok(Pending::Known(host.owned.hashes())),
            Shard::Device(owned) => owned.hashes(),
        }
    }

    /// Keeps the hash of every array but the masters, as it is now; nothing waits for it.
    pub fn note_written(&mut self) -> Result<(), TrainerError> {
        match self {
            Shard::Host(host) => {
                host.owned.note_written();
                Ok(())
            }
            Shard::Device(owned) => owned.note_written(),
        }
    }

    /// The arrays but the masters that are not what was written.
    pub fn changed(&self) -> Result<Pending<Vec<Change>>, TrainerError> {
        match self {
            Shard::Host(host) => Ok(Pending::Known(host.owned.changed())),
            Shard::Device(owned) => owned.changed(),
        }
    }

    /// Changes one bit of an array of a tensor, for a drill; of the first tensor that is owned where none is given. Which
    /// one, if it is owned. `steps` are those that the optimiser has made.
    pub fn flip(&mut self, steps: u64, tensor: Option<usize>, array: Array) -> Result<Option<usize>, TrainerError> {
        match self {
            Shard::Host(host) => Ok(host.owned.flip(steps, tensor, array)),
            Shard::Device(owned) => owned.flip(tensor, array),
        }
    }

    /// Writes the masters into the gradient buffer that is reduced, each at its place: `gradients`.
    pub fn write_masters(&mut self, gradients: &Flat) -> Result<(), TrainerError> {
        match self {
            Shard::Host(host) => host.owned.write_masters(&mut host.gradients),
            Shard::Device(owned) => owned.write_masters(gradients),
        }
    }
}

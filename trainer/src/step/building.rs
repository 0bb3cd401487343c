//! The engine of a rank is made: its buffers, initial values, owners, hooks, and what its communication does each step.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use lockstep_autograd::on_gradient_ready;
use lockstep_checkpoint::of_model;
use lockstep_collective::communication::{Communication, Program};
use lockstep_collective::{BufferId, Wire};
use lockstep_config::{Precision, Reduction, RunConfig};
use lockstep_inventory::{TensorSpec, Treatment, treatments};
use lockstep_kernels::real::{bf16, convert};
use lockstep_optim::decision::ModelState;
use lockstep_optim::settings::Optimizer;
use lockstep_optim::tensors::sums::Halving;

use crate::device::compute::Compute;
use crate::device::memory::Flat;
use crate::device::owned::DeviceOwned;
use crate::device::reading::Reader;
use crate::device::shard::{HostShard, Shard};
use crate::device::write_copy;
use crate::drill::Drill;
use crate::error::TrainerError;
use crate::memory_account::wire_of;
use crate::model::Model;
use crate::model::initial::values;
use crate::model::lane_losses::LaneLosses;
use crate::model::weights::Weights;
use crate::sharding::layout::{BUCKET_BYTES, Layout, Place};
use crate::sharding::owners::OwnerMap;
use crate::sharding::program::gradient_buffers;
use crate::step::Engine;
use crate::step::copies::WorkingCopies;
use crate::step::filling::Filling;
use crate::step::gathering::{self, Gates};
use crate::step::lane_norms::LaneNorms;
use crate::step::lane_sums::LaneSums;
use crate::step::owned::Owned;
use crate::step::skipping::{LossRecord, Policy};
use crate::step::slots::Slots;
use crate::step::update_slots::UpdateSlots;

impl Engine {
    /// Allocates the buffers of this rank in `communication`, draws the initial values and closes no gate. `rank_lanes` are
    /// the lanes of every rank; `compute` is where this one computes, and where the memory of `communication` lies.
    pub fn new(
        config: &RunConfig,
        model: Box<dyn Model>,
        communication: Communication,
        rank_lanes: Vec<Range<u32>>,
        compute: &Compute,
    ) -> Result<Engine, TrainerError> {
        Engine::with_buckets(config, model, communication, rank_lanes, compute, BUCKET_BYTES)
    }

    /// As [`Engine::new`], with buckets that are full from `bucket_bytes` float32 bytes on; equal on all ranks.
    pub fn with_buckets(
        config: &RunConfig,
        model: Box<dyn Model>,
        mut communication: Communication,
        rank_lanes: Vec<Range<u32>>,
        compute: &Compute,
        bucket_bytes: usize,
    ) -> Result<Engine, TrainerError> {
        compute.enter()?;
        let rank = communication.rank();
        let bf16 = config.run.precision == Precision::Bf16;
        let head_width = i64::from(config.model.width / config.model.heads);
        let treatments = treatments(&config.optimizer, model.inventory(), Some(head_width))
            .map_err(|error| TrainerError::Refused(error.to_string()))?;
        let layout = Layout::with_buckets(model.inventory(), &treatments, bf16, bucket_bytes);
        let owners = OwnerMap::new(&treatments, &layout, communication.size());
        let buffers = gradient_buffers(config.run.reduction, config.run.lanes, &rank_lanes);
        let (mut gradient_ids, mut gradients) = (Vec::new(), Vec::new());
        for index in 0..buffers {
            let name = format!("gradients {index}");
            let (id, memory) = allocate(&mut communication, compute, &name, layout.gradient_elements * 4)?;
            gradient_ids.push(id);
            gradients.push(memory);
        }
        let (working_id, mut working) = allocate(&mut communication, compute, "working copies", layout.working_bytes)?;
        let optimizer = Optimizer::for_device(&config.optimizer, compute.device());
        let mut shard = match (&gradients[0], &working) {
            (Flat::Host(gradients), Flat::Host(working)) => Shard::Host(Box::new(HostShard {
                owned: Owned::new(optimizer, owners, rank),
                layout: layout.clone(),
                gradients: gradients.clone(),
                working: working.clone(),
            })),
            _ => {
                let sums = Box::new(Halving);
                Shard::Device(Box::new(DeviceOwned::new(
                    optimizer,
                    owners,
                    rank,
                    compute.device(),
                    sums,
                )))
            }
        };
        for (index, spec) in model.inventory().iter().enumerate() {
            let tensor = (index, spec, &treatments[index], &layout.places[index]);
            start(
                &mut shard,
                tensor,
                &values(spec, config.run.seed),
                (&gradients[0], &mut working),
            )?;
        }
        let weights = Weights::in_buffers(
            (model.inventory(), &layout),
            compute.products(bf16),
            compute.arithmetic(),
            &working,
            &gradients,
        )?;
        let wire = wire_of(config);
        communication.set_program(Program {
            wire,
            rank_lanes: rank_lanes.clone(),
            by_rank: config.run.reduction == Reduction::Fast,
            partials: gradient_ids.clone(),
            owners: shard.map().by_bucket(&layout),
            working: Some(working_id),
            layers: gathering::ranges(&*model, &layout, shard.map()),
        });
        let sums = LaneSums::new(gradients.clone(), &layout, compute, wire == Wire::Bf16)?;
        // Fast sums have no lane of its own.
        let norms = (config.run.reduction == Reduction::Invariant && config.run.lanes > 1)
            .then(|| LaneNorms::new(gradients.clone(), &layout, compute, config.run.lanes))
            .transpose()?;
        let filling = Filling::new(&layout, sums.clone(), norms.clone(), communication.ready());
        let filling = Arc::new(Mutex::new(filling));
        for tensor in 0..model.inventory().len() {
            let filling = Arc::clone(&filling);
            on_gradient_ready(weights.leaf(tensor), move || {
                filling
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner())
                    .ready(tensor);
            })?;
        }
        if config.fault.drift_every > 0 {
            shard.note_written()?;
        }
        let lanes = config.run.lanes;
        Ok(Engine {
            copies: WorkingCopies::new(working, &layout),
            slots: Slots::new(&layout, shard.map(), &rank_lanes, lanes).with_squares(norms.is_some()),
            update_slots: UpdateSlots::new(&layout, shard.map(), shard.optimizer(), config.fault.drift_every > 0),
            gates: Gates::new(model.layers()),
            losses: LaneLosses::new(lanes, compute.device())?,
            reader: Reader::new(compute, communication.aborter().clone()),
            checkpoint_tensors: of_model(model.inventory(), &treatments, config.optimizer.method),
            model,
            layout,
            rank,
            rank_lanes,
            reduction: config.run.reduction,
            wire,
            weights,
            communication,
            gradients,
            gradient_ids,
            steps: 0,
            sums,
            norms,
            filling,
            shard,
            treatments,
            loss_model: ModelState::default(),
            policy: Policy::of(&config.fault),
            losses_so_far: LossRecord::default(),
            known_hash: None,
            last_step: 0,
            drift_every: config.fault.drift_every,
            drill: Drill::default(),
            activity: Arc::default(),
            missing_named: Vec::new(),
        })
    }
}

fn allocate(
    communication: &mut Communication,
    compute: &Compute,
    name: &str,
    bytes: usize,
) -> Result<(BufferId, Flat), TrainerError> {
    let (id, memory) = communication.allocate(name, bytes)?;
    Ok((id, Flat::of(memory, compute)?))
}

/// Takes a tensor's initial values (all of it, row-major): into its working copy, and into what this rank owns of it.
fn start(
    shard: &mut Shard,
    (index, spec, treatment, place): (usize, &TensorSpec, &Treatment, &Place),
    initial: &[f32],
    (gradients, working): (&Flat, &mut Flat),
) -> Result<(), TrainerError> {
    match working {
        Flat::Host(working) if place.bf16 => {
            let copies = working.slice_mut::<bf16>(place.working.start, initial.len())?;
            convert::<f32, bf16>(initial, copies);
        }
        Flat::Host(working) => working
            .slice_mut::<f32>(place.working.start, initial.len())?
            .copy_from_slice(initial),
        Flat::Device(working) => write_copy(working, place, initial)?,
    }
    match shard {
        Shard::Host(host) => {
            host.owned.start(index, spec, treatment, place, initial);
            Ok(())
        }
        Shard::Device(owned) => owned.start(index, (spec, treatment), place, initial, (gradients, &*working)),
    }
}

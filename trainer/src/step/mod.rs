//! A step on one rank: from a plan and its micro-batches to new parameters and a report.
//!
//! - this file: [`Engine`], the order of a step's phases; `building` makes it
//! - [`filling`]: buckets fill by gradient-ready hooks, close in index order, and are handed to the communication thread
//! - [`lane_sums`]: the rank's own additions; [`lane_norms`]: how large each lane's gradient is before them
//! - [`gathering`]: the gates, behind which the next forward waits for a layer's gather
//! - [`owned`]: what this rank owns, and the passes over it, on the host; on a device it is [`crate::device::owned`]
//! - `resuming`: what an owner holds, frozen and loaded again
//! - [`slots`]: the slots of the first exchange
//! - [`drift`]: whether memory still holds what was written; [`copies`]: the working copies
//! - [`skipping`]: the ruling on a step whose numbers cannot be used
//! - [`updating`]: from accepted gradients to new parameters
//! - `validating`: the loss over the validation set
//! - [`update_slots`]: the slots of what was prepared and applied
//!
//! Data flows: lanes run into gradient buffers → the communication thread reduces complete buckets: the owner finishes the
//! lane tree →
//! slots 1 (loss, tokens, ‖g‖², non-finite counts, directive) → accepted, clipped, skipped or refused → moments and polar factors
//! → slots 2 (counts, dual norms, inner products) → step sizes → application → slots 3 (block hashes, Σ update²) → gathers
//! at the gates. Where steps depend on no sum over all tensors, each bucket is prepared and applied in one go, and slots 2
//! and 3 are one exchange.

mod building;
mod clock;
pub mod copies;
pub mod drift;
pub mod filling;
pub mod gathering;
pub mod lane_norms;
pub mod lane_sums;
pub mod owned;
mod resuming;
pub mod skipping;
pub mod slots;
pub mod update_slots;
mod updating;
mod validating;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use lockstep_autograd::run_backward;
use lockstep_checkpoint::TensorEntry;
use lockstep_collective::communication::Communication;
use lockstep_collective::{BufferId, LaneTree, Transport, Wire};
use lockstep_config::Reduction;
use lockstep_data::{MicroBatch, lane_micro_batches, micro_batch_samples};
use lockstep_inventory::Treatment;
use lockstep_optim::decision::{LossModel, ModelState};
use lockstep_proto::domain::Plan;
use lockstep_session::Activity;

use crate::device::memory::Flat;
use crate::device::pending::Pending;
use crate::device::reading::Reader;
use crate::device::shard::Shard;
use crate::drill::Drill;
use crate::error::TrainerError;
use crate::model::lane_losses::LaneLosses;
use crate::model::weights::Weights;
use crate::model::{Batch, Model};
use crate::sharding::layout::Layout;
use crate::sharding::program::{Action, LaneProgram};
use crate::step::clock::Clock;
use crate::step::copies::WorkingCopies;
use crate::step::filling::Filling;
use crate::step::gathering::Gates;
use crate::step::lane_norms::LaneNorms;
use crate::step::lane_sums::LaneSums;
use crate::step::skipping::{LossRecord, Policy, Ruling};
use crate::step::slots::{Lane, Slots};
use crate::step::update_slots::UpdateSlots;

/// What a step leaves.
#[derive(Clone, Debug)]
pub struct StepOutcome {
    /// Mean loss over counted tokens.
    pub loss: f64,
    /// Counted tokens.
    pub tokens: u64,
    /// ‖g‖ of the mean gradient, before clipping.
    pub grad_norm: f64,
    /// The variance of one sample's gradient (the trace of its covariance) and ‖G‖² of the expected one, as this step's lanes
    /// estimate them.
    pub noise: Option<GradientNoise>,
    /// ‖new − old parameters‖.
    pub update_norm: f64,
    /// BLAKE3 over the slot table of block hashes.
    pub parameter_hash: [u8; 32],
    /// The highest directive that any rank has seen.
    pub directive: u64,
    /// The learning rate after truncation by the model of the loss.
    pub effective_learning_rate: f64,
    /// The model of the loss, where there is one.
    pub model: Option<LossModel>,
    /// G, the dual norm of the momentum, where one was measured.
    pub dual_norm: Option<f64>,
    /// Polar factors computed by all ranks.
    pub polar_factors: u32,
    /// A hidden matrix and the orthogonality error of its factor: another one each step.
    pub orthogonality: Option<(String, f64)>,
    /// Why the step changed nothing, if it was skipped.
    pub skipped: Option<String>,
    /// Milliseconds of each phase on this rank.
    pub phases: Vec<(String, f64)>,
    /// Milliseconds of the step on this rank.
    pub step_ms: f64,
}

/// What one step's lanes say of the gradient's noise, per sample (arXiv 1812.06162). One step's estimate is itself noisy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradientNoise {
    /// tr σ², (nats a token)² by parameter unit².
    pub variance: f64,
    /// ‖G‖², in the same unit; may be below zero.
    pub square: f64,
}

/// Everything one rank needs to make steps.
pub struct Engine {
    model: Box<dyn Model>,
    layout: Layout,
    rank: u32,
    rank_lanes: Vec<Range<u32>>,
    reduction: Reduction,
    wire: Wire,
    weights: Weights,
    communication: Communication,
    gradients: Vec<Flat>,
    gradient_ids: Vec<BufferId>,
    /// Steps that the optimiser has made.
    steps: u64,
    sums: LaneSums,
    /// None where sums are fast or there is one lane.
    norms: Option<LaneNorms>,
    filling: Arc<Mutex<Filling>>,
    gates: Gates,
    shard: Shard,
    losses: LaneLosses,
    reader: Reader,
    slots: Slots,
    update_slots: UpdateSlots,
    treatments: Vec<Treatment>,
    /// The model of the loss, equal on every rank.
    loss_model: ModelState,
    /// What becomes of steps whose numbers cannot be used.
    policy: Policy,
    /// What is known of the losses so far, equal on every rank.
    losses_so_far: LossRecord,
    /// The hash of the parameters as they are, where it is known.
    known_hash: Option<[u8; 32]>,
    /// The step that was begun last; 0 before.
    last_step: u64,
    /// Steps between two comparisons of memory with what was written; 0: none.
    drift_every: u64,
    copies: WorkingCopies,
    drill: Drill,
    /// Where this thread writes down what it does.
    activity: Arc<Activity>,
    /// What a checkpoint holds of each tensor.
    checkpoint_tensors: Vec<TensorEntry>,
    missing_named: Vec<usize>,
}

impl Engine {
    /// Orders faults, to see what becomes of them.
    pub fn order(&mut self, drill: Drill) {
        self.drill = drill;
    }

    /// Where this thread writes down what it does from now on.
    pub fn watch(&mut self, activity: Arc<Activity>) {
        if self.communication.size() > 1 {
            let told = Arc::clone(&activity);
            self.communication.tell_waits(Box::new(move |waits| told.waits(waits)));
        }
        self.activity = activity;
    }

    /// The hash of the parameters as they are.
    pub fn parameter_hash(&mut self) -> Result<[u8; 32], TrainerError> {
        let hashes = self.reader.read(self.shard.hashes()?)?;
        self.update_slots.record_hashes(&hashes);
        self.note_copies()?;
        self.update_slots.exchange_applied(&mut self.communication)?;
        let hash = self.update_slots.applied().0;
        self.known_hash = Some(hash);
        Ok(hash)
    }

    /// How this rank reaches each rank, by rank; empty for itself.
    pub fn transports(&self) -> Vec<String> {
        let name = |transport: &Option<Transport>| transport.map_or("", Transport::name).to_owned();
        self.communication.transports().iter().map(name).collect()
    }

    /// Bytes of the masters and the optimiser state of this rank.
    pub fn state_bytes(&self) -> usize {
        self.shard.state_bytes()
    }

    /// The highest directive that any rank has seen: the ranks agree again, outside a step.
    pub fn agree(&mut self, directive: u64) -> Result<u64, TrainerError> {
        let mut table = vec![0; self.rank_lanes.len()];
        let owners: Vec<u32> = (0..self.rank_lanes.len() as u32).collect();
        table[self.rank as usize] = directive;
        self.communication.exchange_slots(&mut table, &owners)?;
        Ok(table.into_iter().max().unwrap_or(0))
    }

    /// The micro-batches that this rank needs for a plan, in the order in which [`Engine::step`] takes them.
    pub fn micro_batches_of(&self, plan: &Plan) -> Vec<u32> {
        let lanes = self.slots.lanes();
        self.rank_lanes[self.rank as usize]
            .clone()
            .flat_map(|lane| lane_micro_batches(lane, lanes, plan.micro_batches))
            .collect()
    }

    /// Makes one step. `next` hands out this rank's micro-batches in the order of [`Engine::micro_batches_of`];
    /// `directive` is the newest one this rank has seen.
    pub fn step(
        &mut self,
        plan: &Plan,
        directive: u64,
        next: &mut dyn FnMut() -> Result<MicroBatch, TrainerError>,
    ) -> Result<StepOutcome, TrainerError> {
        self.last_step = plan.step;
        self.carry_out(plan.step)?;
        self.follow(plan);
        let began = Instant::now();
        let mut clock = Clock::new(Arc::clone(&self.activity));
        let lanes = self.slots.lanes();
        let working: Vec<bool> = (0..lanes)
            .map(|l| !lane_micro_batches(l, lanes, plan.micro_batches).is_empty())
            .collect();
        let hosted = self.rank_lanes[self.rank as usize].clone();
        let (program, tree) = match self.reduction {
            Reduction::Invariant => (LaneProgram::new(&working, hosted, self.wire), LaneTree::new(&working)),
            Reduction::Fast => (
                LaneProgram::fast(&working, hosted, self.wire),
                LaneTree::by_rank(&working, &self.rank_lanes),
            ),
        };
        self.communication.begin_step(tree);
        self.slots.begin();
        self.losses.clear()?;
        let mut tokens = Vec::new();
        let last = program.actions.iter().rposition(|a| matches!(a, Action::Run { .. }));
        let last_lane = last.and_then(|at| match program.actions[at] {
            Action::Run { lane, buffer, .. } => Some((lane, buffer)),
            _ => None,
        });
        self.fill().begin(program.closing.clone(), last_lane);
        if let Some(norms) = &self.norms {
            norms.clear()?;
        }
        for (index, action) in program.actions.iter().enumerate() {
            match *action {
                Action::Run { lane, buffer, adds } => {
                    let is_last = last == Some(index);
                    let counted = self.run_lane(plan, lane, (buffer, adds), is_last, next, &mut clock)?;
                    tokens.push((lane, counted));
                    if let (Some(norms), false) = (&self.norms, is_last) {
                        norms.measure_all(lane, buffer)?;
                        clock.lap("norms_ms");
                    }
                }
                Action::Add { .. } | Action::Round { .. } => {
                    self.sums.close(action, &(0..self.layout.gradient_elements))?;
                    clock.lap("lanes_ms");
                }
            }
        }
        self.gates.with(&mut self.communication).open_all()?;
        self.fill().flush()?;
        clock.lap("backward_ms");
        for bucket in 0..self.layout.buckets.len() as u32 {
            self.communication.wait_reduced(bucket)?;
        }
        clock.lap("reduce_ms");
        self.activity.goes_on("update");
        let of_lanes = match &self.norms {
            Some(norms) => norms.sums()?,
            None => Pending::Known(vec![0.0; lanes as usize]),
        };
        let of_lanes = self.losses.sums()?.and(of_lanes)?;
        let left = of_lanes.and(self.shard.square_sums()?)?;
        clock.lap("norms_ms");
        let held = self.held(plan.step)?;
        clock.lap("drift_ms");
        let (((losses, lane_squares), squares), held) = self.reader.read(left.and(held)?)?;
        if let Some(change) = self.change_in(&held) {
            self.slots.record_change(self.rank, change);
        }
        for (lane, tokens) in tokens {
            let (loss, square) = (losses[lane as usize], lane_squares[lane as usize]);
            self.slots.record_lane(lane, Lane { loss, tokens, square });
        }
        self.slots.record_gradients(&squares);
        clock.lap("norms_ms");
        let first = self
            .slots
            .exchange_step(&mut self.communication, self.rank, directive)?;
        clock.lap("slots_ms");
        let clip_norm = self.shard.optimizer().keys().clip_norm;
        if let Some(drift) = self.drift(plan.step, &first.changes) {
            return Err(TrainerError::Drift(drift));
        }
        let finding = first.finding(&self.layout, self.model.inventory());
        match self.policy.rule(plan.step, finding, &mut self.losses_so_far) {
            Ruling::Go => {}
            Ruling::Skip(reason) => return self.skip(reason, &first, (began, clock)),
            Ruling::Rewind(reason) => {
                let step = plan.step;
                return Err(TrainerError::Unusable { step, reason });
            }
            Ruling::Stop(sentence) => return Err(TrainerError::NotFinite(sentence)),
        }
        let scale = first.scale(clip_norm);
        let (decision, totals) = match self.shard.optimizer().is_global() {
            true => self.update_together(plan, first.loss, scale, &mut clock)?,
            false => self.update_by_bucket(plan, scale, &mut clock)?,
        };
        self.steps += 1;
        let (parameter_hash, update_norm) = self.update_slots.applied();
        self.known_hash = Some(parameter_hash);
        clock.hidden(self.communication.take_shares());
        self.gates.close_all(&mut self.communication)?;
        Ok(StepOutcome {
            loss: first.loss,
            tokens: first.tokens,
            grad_norm: first.grad_norm,
            noise: first.spread.map(|spread| GradientNoise {
                variance: spread.variance_of_mean * plan.samples as f64,
                square: spread.square,
            }),
            update_norm,
            parameter_hash,
            directive: first.directive,
            effective_learning_rate: decision.effective_learning_rate,
            model: decision.model,
            dual_norm: decision.dual_norm,
            polar_factors: totals.polar_factors,
            orthogonality: totals.orthogonality,
            skipped: None,
            phases: clock.phases,
            step_ms: began.elapsed().as_secs_f64() * 1e3,
        })
    }

    fn fill(&self) -> MutexGuard<'_, Filling> {
        self.filling.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Runs the micro-batches of a lane into a gradient buffer and returns its count of tokens.
    fn run_lane(
        &mut self,
        plan: &Plan,
        lane: u32,
        (buffer, adds): (usize, bool),
        is_last_lane: bool,
        next: &mut dyn FnMut() -> Result<MicroBatch, TrainerError>,
        clock: &mut Clock,
    ) -> Result<u64, TrainerError> {
        self.weights.begin_lane(buffer, adds)?;
        let mut tokens = 0;
        let indices = lane_micro_batches(lane, self.slots.lanes(), plan.micro_batches);
        for index in indices.clone() {
            self.activity.goes_on("data");
            let batch = next()?;
            clock.lap("data_ms");
            self.activity.goes_on("forward");
            let mut gate = self.gates.with(&mut self.communication);
            let mut loss = self.model.loss(&self.weights, view(&batch), &mut gate)?;
            let samples = micro_batch_samples(plan.first_sample, batch.rows, index);
            if let Some(factor) = self.drill.factor((plan.step, index), &samples) {
                loss = loss.f_mul_scalar(factor)?;
                self.spoil(factor)?;
            }
            self.losses.add(lane, &loss)?;
            tokens += batch.counted;
            clock.lap("forward_ms");
            self.activity.goes_on("backward");
            if is_last_lane && index + 1 == indices.end {
                self.fill().arm();
            }
            run_backward(&loss)?;
            clock.lap("backward_ms");
        }
        for tensor in self.weights.end_lane()? {
            // Named once: a parameter that takes no part is legal, and its gradient counts as zero.
            if !self.missing_named.contains(&tensor) {
                self.missing_named.push(tensor);
                tracing::warn!(
                    "no gradient reached {}; it counts as zero",
                    self.model.inventory()[tensor].name
                );
            }
        }
        Ok(tokens)
    }

    /// Makes a gradient value of the lane NaN where a drill's loss is: backward does not, since the head's gradient is made
    /// with the loss.
    fn spoil(&self, factor: f64) -> Result<(), TrainerError> {
        match self.weights.slot(0).filter(|_| factor.is_nan()) {
            Some(slot) => Ok(slot.add_in_place(|gradient| {
                let _ = gradient.f_view([-1])?.f_narrow(0, 0, 1)?.f_fill_(factor)?;
                Ok(())
            })?),
            None => Ok(()),
        }
    }

    /// Collects the float32 masters of all owners and hands each tensor's name, shape and values to `take`, in forward
    /// order. A collective: every rank calls it. The gradient buffer serves as the place: a step is over.
    pub fn gather_masters(
        &mut self,
        mut take: impl FnMut(&str, &[i64], &[f32]) -> Result<(), TrainerError>,
    ) -> Result<(), TrainerError> {
        self.communication.barrier()?;
        self.shard.write_masters(&self.gradients[0])?;
        self.check_owned(self.last_step)?;
        let ranges: Vec<_> = self
            .shard
            .map()
            .pieces
            .iter()
            .map(|p| (p.elements.start * 4..p.elements.end * 4, p.owner))
            .collect();
        self.communication.all_gather_v(self.gradient_ids[0], &ranges)?;
        for (spec, place) in self.model.inventory().iter().zip(&self.layout.places) {
            let values = self.gradients[0].floats(place.gradient.start * 4, spec.elements())?;
            take(&spec.name, &spec.shape, &values)?;
        }
        // Nobody writes into these buffers again before all have read.
        self.communication.barrier()?;
        Ok(())
    }

    /// Waits at every gate, so that all working copies are those of the last step.
    pub fn settle(&mut self) -> Result<(), TrainerError> {
        self.gates.with(&mut self.communication).open_all()
    }
}

fn view(batch: &MicroBatch) -> Batch<'_> {
    Batch {
        rows: batch.rows as usize,
        columns: batch.columns as usize,
        inputs: &batch.inputs,
        targets: &batch.targets,
    }
}

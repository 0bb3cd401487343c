//! From accepted gradients to new parameters, in one of two ways: together, where steps depend on sums over all tensors, or
//! bucket by bucket.
//!
//! Data flows: gradient sums and the scale that makes them the mean → owners prepare → (slots 2 → step sizes) → owners
//! apply → slots 3. Together, polar factors are proven before any parameter changes; by bucket, before the step is reported.

use lockstep_optim::decision::{Decision, ModelState, decide, local_steps};
use lockstep_proto::domain::Plan;

use crate::device::pending::Pending;
use crate::error::TrainerError;
use crate::step::owned::Kind;
use crate::step::update_slots::PreparedTotals;
use crate::step::{Clock, Engine};

impl Engine {
    /// Takes the momentum and weight decay of a step.
    pub(super) fn follow(&mut self, plan: &Plan) {
        self.shard.follow(plan.momentum, plan.weight_decay);
        let weight_decay = self.shard.optimizer().keys().weight_decay;
        for treatment in self.treatments.iter_mut().filter(|treatment| treatment.follows_plan) {
            treatment.weight_decay = weight_decay;
        }
    }

    /// The update where steps depend on sums over all tensors: nothing moves before they are known on every rank.
    pub(super) fn update_together(
        &mut self,
        plan: &Plan,
        loss: f64,
        scale: f32,
        clock: &mut Clock,
    ) -> Result<(Decision, PreparedTotals), TrainerError> {
        let probe = self.update_slots.begin(plan.step);
        let prepared = self.reader.read(self.shard.prepare(scale, probe)?)?;
        self.update_slots.record_prepared(&prepared);
        clock.lap("polar_ms");
        self.update_slots.exchange_prepared(&mut self.communication)?;
        let totals = self.update_slots.prepared(self.model.inventory(), probe)?;
        clock.lap("slots_ms");
        let optimizer = self.shard.optimizer();
        let first_step = self.loss_model == ModelState::default();
        let (decision, next) = decide(
            optimizer,
            &self.treatments,
            self.loss_model,
            plan.learning_rate,
            loss,
            &totals.measured,
        )?;
        if let (true, Some(model)) = (first_step, decision.model)
            && model.value <= model.lower_bound
        {
            return Err(TrainerError::Refused(format!(
                "optimizer.momo.lower_bound is {}, but the loss starts at {loss:.4}: a loss that is below its lower bound leaves no step to take. Set a bound below the loss that the run is to reach, such as 0",
                model.lower_bound
            )));
        }
        self.loss_model = next;
        let applied = self.reader.read(self.shard.apply(scale, &decision.steps)?)?;
        self.update_slots.record_applied(&applied);
        clock.lap("apply_ms");
        self.note_written()?;
        clock.lap("drift_ms");
        self.update_slots.exchange_applied(&mut self.communication)?;
        clock.lap("slots_ms");
        Ok((decision, totals))
    }

    /// The update where each tensor's step follows from the learning rate alone: bucket by bucket, with one exchange.
    pub(super) fn update_by_bucket(
        &mut self,
        plan: &Plan,
        scale: f32,
        clock: &mut Clock,
    ) -> Result<(Decision, PreparedTotals), TrainerError> {
        let probe = self.update_slots.begin(plan.step);
        let decision = local_steps(self.shard.optimizer(), &self.treatments, plan.learning_rate);
        let mut left = Vec::new();
        for bucket in &self.layout.buckets {
            for (kind, phase) in [(Kind::Hidden, "polar_ms"), (Kind::Other, "apply_ms")] {
                let steps = &decision.steps;
                left.push(self.shard.step_in(&bucket.elements, kind, scale, steps, probe)?);
                clock.lap(phase);
            }
        }
        for (prepared, applied) in self.reader.read(Pending::joined(left)?)? {
            self.update_slots.record_prepared(&prepared);
            self.update_slots.record_applied(&applied);
        }
        clock.lap("apply_ms");
        self.note_written()?;
        clock.lap("drift_ms");
        self.update_slots.exchange_all(&mut self.communication)?;
        let totals = self.update_slots.prepared(self.model.inventory(), probe)?;
        clock.lap("slots_ms");
        Ok((decision, totals))
    }
}

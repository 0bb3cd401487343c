//! Plan windows: how far ahead plans are issued, and issuing them.
//!
//! Way of data: committed steps and their time → how many plans a window holds, never beyond the last step whose batch the policy
//! has decided on → what it decided becomes a change → plans, durable and sent.

use lockstep_proto::domain::{CoordinatorBody, Plan};

use crate::changes::{Ask, Change};
use crate::run::{Directive, Phase, Record, Run};

/// Plans that may be issued ahead of the committed step, however fast the steps are.
pub const LONGEST_WINDOW: u64 = 4096;
/// Plans ahead while no step was measured yet.
const FIRST_WINDOW: u64 = 4;
/// Plans ahead however slow the steps are: the one that runs and the next.
const SHORTEST_WINDOW: u64 = 2;
/// Weight of the newest step in the smoothed step time.
const NEWEST: f64 = 0.3;

impl Run {
    /// Plans that a full window holds.
    fn window(&self) -> u64 {
        match self.step_ms {
            None => FIRST_WINDOW,
            Some(step_ms) => {
                let steps = (self.facts.window.as_secs_f64() * 1e3 / step_ms).ceil();
                // A float beyond the range of u64 becomes its largest value, which the clamp brings down.
                (steps as u64).clamp(SHORTEST_WINDOW, LONGEST_WINDOW)
            }
        }
    }

    pub(super) fn measure(&mut self, step_ms: f64) {
        if step_ms.is_finite() && step_ms > 0.0 {
            let before = self.step_ms.unwrap_or(step_ms);
            self.step_ms = Some(before + NEWEST * (step_ms - before));
        }
    }

    /// Issues plans when less than half a window is ahead: made durable in one record, then sent to everybody.
    pub(super) fn issue_plans(&mut self, directives: &mut Vec<Directive>) {
        let ends_in_order = self.regroup.as_ref().is_some_and(|regroup| !regroup.is_aborted);
        let issues = match self.phase {
            Phase::Training | Phase::Stopping => true,
            // The last step of the generation needs its plan, also where a pause was asked for that no rank knows of yet.
            Phase::Regrouping => ends_in_order,
            _ => false,
        };
        if !issues || self.ends_as_planned() {
            return;
        }
        let window = self.window();
        let ahead = self.issued_through - self.committed;
        if ahead >= SHORTEST_WINDOW.max(window.div_ceil(2)) {
            return;
        }
        let last = self.changes.stops_at(self.issued_through, &self.branches);
        let last = last.unwrap_or(u64::MAX).min(self.planner().total_steps());
        let through = (self.committed + window).min(last).min(self.known_through());
        self.issue(through, false, directives);
    }

    /// Whether the ranks end, or have ended, with a step after which operators wanted the run to stop. Where it is made again
    /// it ends nothing.
    fn ends_as_planned(&self) -> bool {
        #[cfg(test)]
        if self.fault == Some(super::simulator::Fault::PlanBehindTheStop) {
            return false;
        }
        let replayed = self
            .generation
            .as_ref()
            .map_or(0, |generation| generation.replay_through);
        let last = self.past.last();
        self.issued.iter().any(|plan| plan.stop) || last.is_some_and(|past| past.plan.stop && past.plan.step > replayed)
    }

    /// The last step whose batch is known.
    pub(super) fn known_through(&self) -> u64 {
        #[cfg(test)]
        if self.fault == Some(super::simulator::Fault::PlanBeforeTheDecision) {
            return u64::MAX;
        }
        self.policy.known_through()
    }

    /// Whether the policy has decided on another batch for a step than the one that is in force.
    fn is_adapted_at(&self, step: u64) -> bool {
        #[cfg(test)]
        if self.fault == Some(super::simulator::Fault::AdaptAtOnce) {
            return self.policy.at(u64::MAX).and_then(|adapted| adapted.batch) != self.changes.adapted();
        }
        self.policy.at(step).and_then(|adapted| adapted.batch) != self.changes.adapted()
    }

    /// Takes what the policy has decided on the batch of a step.
    fn adapt(&mut self, step: u64, directives: &mut Vec<Directive>) {
        let back = || self.policy.back(self.changes.adapted().unwrap_or(0));
        #[cfg(test)]
        let step_decided = match self.fault {
            Some(super::simulator::Fault::AdaptAtOnce) => u64::MAX,
            _ => step,
        };
        #[cfg(not(test))]
        let step_decided = step;
        let adapted = self.policy.at(step_decided).copied().unwrap_or_else(back);
        let change = Change {
            number: self.changes.count() + 1,
            branch: self.branches.newest(),
            from_step: step,
            cursor: self.changes.skip(self.cursor),
            ask: Ask {
                adapted: Some(adapted),
                ..Ask::default()
            },
        };
        let mut reason = adapted.sentence(step);
        match self.changes.make(change.clone()) {
            Ok(()) => directives.push(Directive::Persist(Record::Changed(Box::new(change)))),
            // The schedules cannot be laid out with it: the batch stays, and people learn why.
            Err(error) => reason = format!("{reason}; that cannot be: {error}"),
        }
        directives.push(Directive::Persist(Record::Decision { reason }));
    }

    /// Issues the plans up to step `through`, or to the run's end where the batch makes that an earlier one; with `checkpoint`
    /// one is written after that step.
    pub(super) fn issue(&mut self, through: u64, checkpoint: bool, directives: &mut Vec<Directive>) {
        let mut plans: Vec<Plan> = Vec::new();
        for step in self.issued_through + 1..=through {
            if self.is_adapted_at(step) {
                // What is planned before it comes before it.
                self.send_plans(std::mem::take(&mut plans), directives);
                self.adapt(step, directives);
            }
            if step > self.planner().total_steps() {
                break;
            }
            let stops = self.changes.stops_at(step - 1, &self.branches) == Some(step);
            let begins = self.changes.skip(self.cursor);
            #[cfg(test)]
            let planner = match self.fault {
                Some(super::simulator::Fault::ForgetChanges) => &self.facts.planner,
                _ => self.planner(),
            };
            #[cfg(not(test))]
            let planner = self.planner();
            let mut plan = self.branches.change(planner.plan(step, begins));
            plan.version += self.changes.count();
            plan.stop = stops && !plan.last;
            plan.checkpoint |= checkpoint && step == through && !plan.last;
            self.cursor = begins.saturating_add(plan.samples);
            plans.push(plan);
        }
        self.send_plans(plans, directives);
    }

    fn send_plans(&mut self, plans: Vec<Plan>, directives: &mut Vec<Directive>) {
        let Some(last) = plans.last() else {
            return;
        };
        self.issued_through = last.step;
        self.issued.extend(plans.iter().cloned());
        directives.push(Directive::Persist(Record::Plans(plans.clone())));
        self.broadcast(CoordinatorBody::PlanWindow(plans), directives);
    }
}

//! What becomes of trainers' streams when they break or the coordinator is gone, and what trainers may know then.

use std::collections::BTreeSet;

use lockstep_proto::domain::{CoordinatorBody, Outcome};
use rand::Rng;
use rand::rngs::StdRng;

use super::{EPOCH, State, Trainer, Trainers};
use crate::run::simulator::Violation;
use crate::run::{Event, Recorded};

impl Trainer {
    /// Everything that a message of a coordinator can change.
    pub(super) fn knowledge(&self) -> impl PartialEq + use<> {
        (
            self.generation.as_ref().map(|own| own.stamp),
            (self.comm_id.clone(), self.state, self.has_plans, self.urgent),
            self.plans.iter().map(|plan| plan.step).collect::<Vec<_>>(),
            self.parts.clone(),
            self.unacknowledged.len(),
            (self.released, self.finished, self.acknowledged, self.outcome.clone()),
        )
    }
}

impl Trainers {
    /// Who answers a trainer that looks for its coordinator: one that was replaced answers those who have not heard of the
    /// new one.
    pub(super) fn who_answers(&self, index: usize, rng: &mut StdRng) -> (u64, u64) {
        match self.zombie {
            Some((epoch, term)) if self.all[index].term <= term && rng.random_ratio(1, 4) => (epoch, term),
            _ => (self.epoch, self.term),
        }
    }

    /// Whether a trainer's stream is one to a coordinator that was replaced.
    pub(in super::super) fn is_with_the_zombie(&self, index: usize) -> bool {
        self.all[index].stream / EPOCH != self.epoch
    }

    /// Those that speak to a coordinator that was replaced.
    pub(in super::super) fn of_the_zombie(&self) -> Vec<usize> {
        let is_its = |index: &usize| self.is_with_the_zombie(*index) && self.all[*index].attached;
        (0..self.all.len()).filter(is_its).collect()
    }

    /// The coordinator is about to be replaced and will live on: whose streams stay with it.
    pub(in super::super) fn who_stays(&mut self, rng: &mut StdRng) -> BTreeSet<usize> {
        self.zombie = Some((self.epoch, self.term));
        let is_there = |trainer: &Trainer| trainer.alive && trainer.joined && trainer.attached && !trainer.refused;
        let all = self.all.iter().enumerate();
        let stay: BTreeSet<usize> = all
            .filter(|(_, trainer)| is_there(trainer) && rng.random())
            .map(|(index, _)| index)
            .collect();
        self.broke |= !stay.is_empty();
        stay
    }

    /// A coordinator that was replaced is gone at last, and its streams with it.
    pub(in super::super) fn lose_the_zombie(&mut self) {
        self.zombie = None;
        for index in self.of_the_zombie() {
            let trainer = &mut self.all[index];
            trainer.to_coordinator.clear();
            self.died |= trainer.released;
            trainer.alive &= !trainer.released;
            trainer.late.extend(trainer.to_trainer.drain(..));
            trainer.attached = false;
        }
    }

    /// The stream of a trainer breaks, and both ends live on. The coordinator has heard some of what was said on it, and
    /// learns later that it is gone.
    pub(in super::super) fn break_stream(&mut self, index: usize, rng: &mut StdRng) -> bool {
        let is_elsewhere = self.is_with_the_zombie(index);
        let peer = self.peer(index);
        let trainer = &mut self.all[index];
        if !trainer.alive
            || !trainer.joined
            || !trainer.attached
            || trainer.refused
            || trainer.acknowledged
            || is_elsewhere
        {
            return false;
        }
        trainer.attached = false;
        trainer.to_trainer.clear();
        let mut rest = std::mem::take(&mut trainer.to_coordinator);
        rest.truncate(rng.random_range(0..=rest.len()));
        rest.push_back(Event::MemberLost { peer });
        self.broken.push(rest);
        self.broke = true;
        true
    }

    /// A rank cannot go on, and says so: its device is out of order.
    pub(in super::super) fn fail(&mut self, index: usize) -> bool {
        let trainer = &mut self.all[index];
        if !trainer.is_present() || trainer.state == State::Idle {
            return false;
        }
        trainer.state = State::Idle;
        self.failed = true;
        let reason = "the device is out of order".to_owned();
        self.say_farewell(index, Outcome::Failed { reason });
        true
    }
}

impl Trainers {
    /// A trainer is not let in.
    pub(in super::super) fn refuse(&mut self, index: usize) {
        if let Some(trainer) = self.all.get_mut(index) {
            trainer.refused = true;
        }
    }

    /// There is no coordinator any more, and no other one comes: who has still something to say gives up in the end.
    pub(in super::super) fn forsake(&mut self) {
        for trainer in &mut self.all {
            trainer.alive &= trainer.is_done();
        }
    }

    /// Who could still hear that its part is over, and has not.
    pub(in super::super) fn unanswered(&self) -> Option<&str> {
        let waits = |trainer: &&Trainer| !trainer.is_done() && !trainer.hangs;
        self.all.iter().find(waits).map(|trainer| trainer.name.as_str())
    }

    /// Whatever a trainer was told, or is about to be told, is durable when another coordinator begins.
    pub(in super::super) fn know_only(&self, ledger: &Recorded) -> Result<(), Violation> {
        // What was said on a branch that is closed was durable once.
        let closed = ledger.rewinds.last().map_or(0, |rewind| rewind.generation);
        let newest = ledger.generations.last().map_or(0, |last| last.stamp.generation);
        let planned = ledger.plans.last().map_or(0, |plan| plan.step);
        let committed = ledger.committed.last().map_or(0, |commit| commit.plan.step);
        for trainer in &self.all {
            let said = trainer.to_trainer.iter().chain(&trainer.late);
            let known = trainer.generation.as_ref().map(|own| own.stamp.generation);
            let mut wrong = known.filter(|known| *known > newest && !ledger.generations.is_empty());
            let mut what = "generation";
            for (stamp, body) in said.filter(|(stamp, _)| stamp.generation > closed) {
                let (word, number, durable) = match body {
                    CoordinatorBody::Generation(_) => ("generation", stamp.generation, newest),
                    CoordinatorBody::PlanWindow(plans) => ("plan", plans.last().map_or(0, |plan| plan.step), planned),
                    CoordinatorBody::Acknowledged { step, .. } => ("acknowledgement of step", *step, committed),
                    _ => continue,
                };
                if number > durable {
                    (what, wrong) = (word, Some(number));
                }
            }
            if let Some(number) = wrong {
                let what = format!("{} knows of {what} {number}, which is lost", trainer.name);
                return Err(Violation::new(6, what));
            }
        }
        Ok(())
    }
}

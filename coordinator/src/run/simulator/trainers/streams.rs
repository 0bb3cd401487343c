//! What becomes of trainers' streams when the coordinator is gone, and what trainers may know then.

use lockstep_proto::domain::CoordinatorBody;

use super::{Trainer, Trainers};
use crate::run::Recorded;
use crate::run::simulator::Violation;

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

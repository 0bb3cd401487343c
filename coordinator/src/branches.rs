//! The branches of a run. A rewind closes one and begins the next: the steps after the one that it goes back to are made anew,
//! by other plans. Pure.
//!
//! Way of data: the machine decides on a [`Rewind`] and the ledger keeps it → [`Branches`] say of every step which branch it
//! is of, of every snapshot and checkpoint whether it is of the live branch, and of every plan how it is changed.
//!
//! Branch 0 is what the run begins with, branch n what its n-th rewind began. The *live branch* is the way from the first step
//! to the newest: of each branch the steps up to the one that the next rewind went back to. On it every sample is trained or
//! skipped, once.

use std::ops::Range;

use lockstep_proto::domain::Plan;
use serde::{Deserialize, Serialize};

/// Bits of a row's key that hold the step; those above hold the branch.
const STEP_BITS: u32 = 40;

/// How far a run goes back before a step that cannot be used, and what is other then.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rewinds {
    /// So many times; the next time ends the run.
    pub most: u32,
    /// So many steps before the last good one.
    pub steps: u64,
    /// Whether the samples of the steps that are left behind are not trained again.
    pub skips: bool,
    /// What every later learning rate is multiplied by.
    pub rate_factor: f64,
}

/// The end of a branch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rewind {
    /// 1 for the first of the run.
    pub number: u64,
    /// The step that could not be used; where an operator asked for the rewind, the one after the last committed one. It was
    /// never committed.
    pub unusable: u64,
    /// The step whose parameters the run goes on from; 0: the initial ones.
    pub to: u64,
    /// Samples that the live branch does not train: from the end of step `to` on. Empty where they are trained by other plans.
    pub skipped: Range<u64>,
    /// Every later learning rate is multiplied by this.
    pub rate_factor: f64,
    /// The term that decided it.
    pub term: u64,
    /// The last generation of the branch that it closes.
    pub generation: u64,
    /// Samples of the run after step `to`.
    pub samples: u64,
    /// Counted tokens of the run after step `to`.
    pub tokens: u64,
    /// Hash of the parameters after step `to`.
    pub parameter_hash: Option<[u8; 32]>,
    /// Why the step could not be used: one sentence.
    pub reason: String,
    /// Whether an operator asked for it: then no policy did, and nothing is changed by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_operator: bool,
    /// The step after which the run has stopped, as operators planned, where the rewind leaves it behind: that plan is done with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_after: Option<u64>,
}

/// Every rewind of a run so far, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Branches {
    rewinds: Vec<Rewind>,
}

impl Branches {
    /// The branches that these rewinds, in order, make.
    pub fn of(rewinds: Vec<Rewind>) -> Branches {
        Branches { rewinds }
    }

    /// The rewinds, in order.
    pub fn rewinds(&self) -> &[Rewind] {
        &self.rewinds
    }

    /// A branch is closed, and the next one begins.
    pub fn close(&mut self, rewind: Rewind) {
        self.rewinds.push(rewind);
    }

    /// The branches as they were before any rewind but the first `number`.
    pub fn up_to(&self, number: u64) -> Branches {
        Branches {
            rewinds: self.rewinds.iter().take(number as usize).cloned().collect(),
        }
    }

    /// The branches as a generation knew them.
    pub fn at_generation(&self, generation: u64) -> Branches {
        let before = self.rewinds.iter().filter(|rewind| rewind.generation < generation);
        Branches {
            rewinds: before.cloned().collect(),
        }
    }

    /// The newest branch.
    pub fn newest(&self) -> u64 {
        self.rewinds.len() as u64
    }

    /// How many rewinds the run's policy has made since an operator asked for one: what led to those before may come again.
    pub fn made_by_policy(&self) -> u64 {
        let newest = self.rewinds.iter().rev();
        newest.take_while(|rewind| !rewind.by_operator).count() as u64
    }

    /// Whether the run has stopped after this step, as was planned on some branch from `branch` on, and went back before it.
    pub fn has_stopped_after(&self, step: u64, branch: u64) -> bool {
        let left_behind = |rewind: &Rewind| rewind.number > branch && rewind.stopped_after == Some(step);
        self.rewinds.iter().any(left_behind)
    }

    /// The branch of which the live branch has this step.
    pub fn branch_of(&self, step: u64) -> u64 {
        let begins_before = |rewind: &&Rewind| rewind.to < step;
        self.rewinds
            .iter()
            .rev()
            .find(begins_before)
            .map_or(0, |rewind| rewind.number)
    }

    /// The step after which a branch begins.
    pub fn begins_after(&self, branch: u64) -> u64 {
        self.rewind(branch).map_or(0, |rewind| rewind.to)
    }

    /// The rewind that began a branch; none for branch 0.
    pub fn rewind(&self, branch: u64) -> Option<&Rewind> {
        self.rewinds.get(usize::try_from(branch.checked_sub(1)?).ok()?)
    }

    /// Whether what a generation made of a step is of the live branch.
    pub fn is_live(&self, step: u64, generation: u64) -> bool {
        self.rewinds
            .iter()
            .all(|rewind| generation > rewind.generation || step <= rewind.to)
    }

    /// The first sample after a step of the live branch that ended before sample `end`: where a rewind went back to that step,
    /// it may be a later one.
    pub fn cursor_after(&self, step: u64, end: u64) -> u64 {
        match self.rewinds.last().filter(|rewind| rewind.to == step) {
            Some(rewind) => rewind.skipped.end,
            None => end,
        }
    }

    /// The plan that the config makes, as the newest branch has it.
    pub fn change(&self, mut plan: Plan) -> Plan {
        plan.version += self.newest();
        for rewind in &self.rewinds {
            plan.learning_rate *= rewind.rate_factor;
        }
        plan
    }

    /// The key of a step of the live branch in the ledger's tables. Keys rise in the order in which steps were committed.
    pub fn key(&self, step: u64) -> u64 {
        Branches::key_of(self.branch_of(step), step)
    }

    /// The key of a step of some branch.
    pub fn key_of(branch: u64, step: u64) -> u64 {
        branch << STEP_BITS | step
    }

    /// Branch and step of a key.
    pub fn of_key(key: u64) -> (u64, u64) {
        (key >> STEP_BITS, key & ((1 << STEP_BITS) - 1))
    }

    /// Whether the row of this key is of the live branch.
    pub fn has(&self, key: u64) -> bool {
        self.key(Branches::of_key(key).1) == key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewind(number: u64, to: u64, generation: u64) -> Rewind {
        Rewind {
            number,
            unusable: to + 9,
            to,
            skipped: to * 4..(to + 9) * 4,
            rate_factor: 0.5,
            term: 1,
            generation,
            samples: to * 4,
            tokens: to * 40,
            parameter_hash: None,
            reason: "a spike".to_owned(),
            by_operator: false,
            stopped_after: None,
        }
    }

    #[test]
    fn the_live_branch_has_each_step_of_one_branch() {
        let mut branches = Branches::default();
        assert_eq!([1, 50].map(|step| branches.branch_of(step)), [0, 0]);
        branches.close(rewind(1, 80, 2));
        assert_eq!([80, 81, 95].map(|step| branches.branch_of(step)), [0, 1, 1]);
        branches.close(rewind(2, 70, 5));
        assert_eq!([70, 71, 80, 81].map(|step| branches.branch_of(step)), [0, 2, 2, 2]);
        branches.close(rewind(3, 75, 6));
        assert_eq!([70, 71, 75, 76].map(|step| branches.branch_of(step)), [0, 2, 2, 3]);
        assert_eq!(branches.at_generation(6).newest(), 2);
        assert_eq!(branches.begins_after(3), 75);
    }

    #[test]
    fn what_a_closed_branch_made_is_not_of_the_live_one() {
        let branches = Branches::of(vec![rewind(1, 80, 2), rewind(2, 70, 5)]);
        assert!(branches.is_live(70, 1) && branches.is_live(99, 6));
        assert!(
            !branches.is_live(71, 1),
            "generation 1 made it before the second rewind"
        );
        assert!(!branches.is_live(85, 4), "on the second branch, which went on from 80");
    }

    #[test]
    fn a_rewind_of_an_older_build_is_read_and_written_as_it_was() {
        let row = serde_json::to_value(rewind(1, 80, 2)).unwrap();
        let keys: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
        assert!(
            !keys.contains(&"by_operator") && !keys.contains(&"stopped_after"),
            "{keys:?}"
        );
        assert_eq!(serde_json::from_value::<Rewind>(row).unwrap(), rewind(1, 80, 2));
    }

    #[test]
    fn a_stop_that_was_made_is_done_with_until_it_is_planned_again() {
        let stopped = Rewind {
            by_operator: true,
            stopped_after: Some(90),
            ..rewind(1, 80, 2)
        };
        let branches = Branches::of(vec![stopped, rewind(2, 70, 5)]);
        assert!(branches.has_stopped_after(90, 0) && !branches.has_stopped_after(91, 0));
        assert!(
            !branches.has_stopped_after(90, 1),
            "planned on the branch that followed"
        );
        assert_eq!(branches.made_by_policy(), 1);
    }

    #[test]
    fn keys_rise_as_steps_are_committed_and_tell_branch_and_step() {
        let first = Branches::default().key(90);
        let branches = Branches::of(vec![rewind(1, 80, 2)]);
        assert!(first == 90 && branches.key(81) > first);
        assert_eq!(Branches::of_key(branches.key(81)), (1, 81));
        assert!(branches.has(80) && !branches.has(90) && branches.has(branches.key(90)));
    }

    #[test]
    fn each_rewind_lowers_the_rate_once_more_and_makes_another_version() {
        let plan = Plan {
            step: 90,
            learning_rate: 8.0,
            micro_batches: 1,
            first_sample: 0,
            samples: 4,
            validate: false,
            last: false,
            version: 1,
            checkpoint: false,
            momentum: None,
            weight_decay: None,
            stop: false,
        };
        let branches = Branches::of(vec![rewind(1, 80, 2), rewind(2, 70, 5)]);
        let changed = branches.change(plan.clone());
        assert_eq!((changed.learning_rate, changed.version), (2.0, 3));
        assert_eq!(Branches::default().change(plan.clone()), plan);
        assert_eq!(
            branches.cursor_after(70, 280),
            316,
            "the samples after step 70 are skipped"
        );
        assert_eq!(branches.cursor_after(71, 320), 320);
    }
}

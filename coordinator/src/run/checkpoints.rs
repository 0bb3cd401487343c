//! Checkpoints as the machine knows them: which parts are written, which checkpoint may be committed, which can be loaded.
//!
//! Way of data: each rank says that its part lies in the store → when every part of a committed step is there, the service is
//! told to commit the manifest → it says what became of it → from then on a generation can resume from it.

use lockstep_checkpoint::{CheckpointName, to_delete};
use lockstep_proto::domain::{Checkpoint, Resume, Stamp, Written};
use serde::{Deserialize, Serialize};

use crate::run::machine::Answer;
use crate::run::{Commission, Directive, Peer, Phase, Record, Refusal, Run};

/// Which checkpoints stay in the store when another one is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeps {
    /// So many of the newest.
    pub last: u64,
    /// And every one whose step is a multiple of this; 0: none more.
    pub every: u64,
}

impl Keeps {
    /// Those of all that were ever committed that are deleted by now.
    pub(super) fn deleted(self, committed: &[Checkpoint]) -> Vec<CheckpointName> {
        let names: Vec<CheckpointName> = committed.iter().map(name).collect();
        to_delete(&names, usize::try_from(self.last).unwrap_or(usize::MAX), self.every)
    }
}

/// The name that a checkpoint has in the store.
pub(crate) fn name(checkpoint: &Checkpoint) -> CheckpointName {
    CheckpointName {
        term: checkpoint.term,
        generation: checkpoint.generation,
        step: checkpoint.step,
    }
}

impl Run {
    /// A rank's part of the checkpoint of a step is written, or is not.
    pub(super) fn wrote(
        &mut self,
        peer: Peer,
        stamp: Stamp,
        step: u64,
        written: Result<Box<Written>, String>,
        directives: &mut Vec<Directive>,
    ) -> Answer {
        let Some((rank, _)) = self.present(peer, stamp) else {
            return Ok(None);
        };
        let is_known = self.checkpoints.iter().any(|checkpoint| checkpoint.step == step);
        let is_under_way = self.committing.iter().any(|checkpoint| checkpoint.step == step);
        if self.phase == Phase::Ended || is_known || is_under_way || step > self.issued_through {
            return Ok(None);
        }
        match written {
            Ok(written) => {
                self.writing.entry(step).or_default().insert(rank, *written);
                self.commission(directives);
            }
            Err(failure) => {
                self.writing.remove(&step);
                self.give_up(
                    step,
                    &format!("rank {rank} could not write its part: {failure}"),
                    directives,
                );
            }
        }
        Ok(None)
    }

    /// Has every checkpoint committed of which all parts are written and whose step is committed.
    pub(super) fn commission(&mut self, directives: &mut Vec<Directive>) {
        let (ranks, committed) = (self.parts_of_checkpoint(), self.committed);
        let is_whole = |(step, parts): (&u64, &std::collections::BTreeMap<u32, Written>)| {
            (*step <= committed && *step > 0 && parts.len() >= ranks).then_some(*step)
        };
        let whole: Vec<u64> = self.writing.iter().filter_map(is_whole).collect();
        for step in whole {
            // Parts of older steps that are not whole by now never will be, but for a rank that is late with its own.
            let Some(parts) = self.writing.remove(&step) else {
                continue;
            };
            let parts: Vec<Written> = parts.into_values().collect();
            if let Some(other) = parts.iter().position(|part| part.words != parts[0].words) {
                let what = format!("ranks 0 and {other} wrote other values of the run into it");
                self.give_up(step, &what, directives);
                continue;
            }
            let (Some(past), Some(parameter_hash)) = (self.past.get(step as usize - 1), self.hash_of(step)) else {
                continue;
            };
            let stamp = self.stamp();
            let checkpoint = Checkpoint {
                term: stamp.term,
                generation: stamp.generation,
                step,
            };
            self.committing.insert(checkpoint);
            directives.push(Directive::Commit(Box::new(Commission {
                checkpoint,
                cursor: past.plan.first_sample.saturating_add(past.plan.samples),
                schedule_version: past.plan.version,
                parameter_hash,
                parts,
                known: self.stored.clone(),
            })));
        }
    }

    /// Parts that make a checkpoint whole.
    fn parts_of_checkpoint(&self) -> usize {
        #[cfg(test)]
        if self.fault == Some(super::simulator::Fault::CommissionBeforeAllAreWritten) {
            return 1;
        }
        self.ranks() as usize
    }

    /// What became of a manifest that was to be committed.
    pub(super) fn commissioned(
        &mut self,
        checkpoint: Checkpoint,
        result: Result<(), String>,
        directives: &mut Vec<Directive>,
    ) -> Answer {
        if !self.committing.remove(&checkpoint) || self.phase == Phase::Ended {
            return Ok(None);
        }
        match result {
            Ok(()) => {
                self.checkpoints.push(checkpoint);
                self.stored.push(checkpoint);
                directives.push(Directive::Persist(Record::Checkpoint(checkpoint)));
            }
            Err(failure) => self.give_up(checkpoint.step, &failure, directives),
        }
        self.end_if_all_finished(directives);
        Ok(None)
    }

    fn give_up(&self, step: u64, why: &str, directives: &mut Vec<Directive>) {
        let reason = format!("there will be no checkpoint of step {step}: {why}. The one before stands");
        directives.push(Directive::Persist(Record::Decision { reason }));
    }

    /// A rank could not load the checkpoint that its generation began with: it is damaged, or not there. The one before is
    /// taken.
    pub(super) fn refuse_checkpoint(&mut self, cause: &str, directives: &mut Vec<Directive>) {
        let resume = self
            .generation
            .as_ref()
            .and_then(|generation| generation.resume.as_ref());
        let Some(checkpoint) = resume.and_then(|resume| resume.checkpoint) else {
            return;
        };
        if !self.checkpoints.contains(&checkpoint) {
            return; // another rank said so already
        }
        self.checkpoints.retain(|known| *known != checkpoint);
        self.stored.retain(|known| *known != checkpoint);
        // Each one is refused once, so this ends.
        self.fruitless = 0;
        directives.push(Directive::Persist(Record::CheckpointRefused {
            checkpoint,
            reason: cause.to_owned(),
        }));
        let reason = format!(
            "the checkpoint of step {} cannot be loaded and will not be used again: {cause}",
            checkpoint.step
        );
        directives.push(Directive::Persist(Record::Decision { reason }));
    }

    /// What a generation that is formed now begins with: the newest snapshot that members hold, else the newest checkpoint.
    pub(super) fn what_to_resume(&self) -> Option<Resume> {
        self.newer_of(self.newest_whole_snapshot(0, self.committed), self.committed)
    }

    /// What a generation could begin with that goes back to step `to`, as far as is known before the ranks have stopped: of the
    /// snapshots only those count that nobody was told to free.
    pub(super) fn resume_at_or_before(&self, to: u64) -> Option<Resume> {
        let kept_from = self.free_before(self.snapshot);
        self.newer_of(self.newest_whole_snapshot(kept_from, to), to)
    }

    /// A snapshot, or the newest checkpoint up to step `through`, whichever is of a later step.
    fn newer_of(&self, snapshot: Option<Resume>, through: u64) -> Option<Resume> {
        let total = self.planner().total_steps();
        // Newest by step: those of closed branches are not known any more.
        let deleted = self.facts.keeps.map(|keeps| keeps.deleted(&self.stored));
        let is_there = |checkpoint: &Checkpoint| !deleted.iter().flatten().any(|gone| *gone == name(checkpoint));
        let is_usable =
            |checkpoint: &&Checkpoint| checkpoint.step < total && checkpoint.step <= through && is_there(checkpoint);
        let newest = self.checkpoints.iter().filter(is_usable);
        let Some(checkpoint) = newest.max_by_key(|checkpoint| checkpoint.step) else {
            return snapshot;
        };
        if snapshot
            .as_ref()
            .is_some_and(|snapshot| snapshot.step >= checkpoint.step)
        {
            return snapshot;
        }
        Some(Resume {
            step: checkpoint.step,
            generation: checkpoint.generation,
            parts: Vec::new(),
            checkpoint: Some(*checkpoint),
            secret: [0; 32],
        })
    }

    /// An operator wants a checkpoint: of the first step that is not issued yet.
    pub(super) fn ask_for_checkpoint(&mut self, directives: &mut Vec<Directive>) -> Answer {
        match self.phase {
            Phase::Ended => Err(self.over("write a checkpoint")),
            Phase::Training if self.issued.back().is_some_and(|plan| plan.stop) => Ok(Some(
                "a checkpoint is written when the run stops, after the last step that is planned".to_owned(),
            )),
            Phase::Training if self.issued_through >= self.known_through() => {
                let reason = format!(
                    "the steps up to {} are planned, and the batch of those after them is decided on when more are made: ask again",
                    self.issued_through
                );
                Err(Refusal::new("NOT_YET", "checkpoint", reason))
            }
            Phase::Training if self.issued_through < self.planner().total_steps() => {
                let step = self.issued_through + 1;
                self.issue(step, true, directives);
                Ok(Some(format!("a checkpoint will be written after step {step}")))
            }
            Phase::Training | Phase::Finishing => Ok(Some(
                "every step is issued: the run ends with its final weights, and no checkpoint is needed".to_owned(),
            )),
            Phase::Stopping => Ok(Some("a checkpoint is written when the run has stopped".to_owned())),
            _ => {
                let reason = format!("no checkpoint now, since no steps are made: {}", self.reason());
                Err(Refusal::new("NOT_TRAINING", "checkpoint", reason))
            }
        }
    }
}

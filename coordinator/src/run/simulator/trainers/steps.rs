//! What the ranks of a generation make together: steps, snapshots, checkpoints, and what they do at the end of a step.

use std::collections::BTreeSet;

use lockstep_proto::domain::{
    Directive as Urgent, DirectiveKind, Generation, Outcome, StepMetrics, StepReport, Validation, Written,
};

use super::{State, Trainers, hash, part};
use crate::run::Event;
use crate::run::simulator::Fault;

impl Trainers {
    /// What all ranks of the newest generation do together.
    pub(in super::super) fn make_a_step(&mut self, odd: Option<u64>, not_finite: Option<u64>) {
        let Some(generation) = self
            .all
            .iter()
            .filter_map(|trainer| trainer.generation.clone())
            .max_by_key(|generation| generation.stamp)
        else {
            return;
        };
        let index_of = |name: &str| self.all.iter().position(|trainer| trainer.name == name);
        let ranks: Vec<usize> = generation
            .members
            .iter()
            .filter_map(|place| index_of(&place.member))
            .collect();
        let of_ranks = || ranks.iter().map(|index| &self.all[*index]);
        let together = of_ranks().all(|trainer| {
            trainer.is_present()
                && trainer.stamp() == Some(generation.stamp)
                && !matches!(trainer.state, State::Idle | State::Meeting)
        });
        if !together || self.is_split(&generation) {
            return;
        }
        if let State::Paused(sequence) = self.all[ranks[0]].state {
            if of_ranks().all(|trainer| trainer.urgent.sequence > sequence) {
                self.act_on_directive(&ranks, &generation);
            }
            return;
        }
        let step = self.all[ranks[0]].at + 1;
        if of_ranks().any(|trainer| trainer.plans.front().is_none_or(|plan| plan.step != step)) {
            return;
        }
        let Some(plan) = self.all[ranks[0]].plans.front() else {
            return;
        };
        let end = plan.first_sample + plan.samples;
        if self.bad_samples.range(plan.first_sample..end).next().is_some() {
            self.unusable += 1;
            for index in ranks {
                let cause = format!("step {step}: the loss is 99");
                self.leave(index, Some(cause), false, None, Some(step));
            }
            return;
        }
        self.ends.insert(step, end);
        let made = hash(step, end);
        self.replayed += u64::from(step <= generation.replay_through);
        let (mut last, mut checkpoint, mut stops) = (false, false, false);
        for (rank, index) in ranks.iter().enumerate() {
            let peer = self.peer(*index);
            let trainer = &mut self.all[*index];
            let Some(plan) = trainer.plans.pop_front() else {
                continue;
            };
            let metrics = StepMetrics {
                loss: if not_finite == Some(step) { f64::NAN } else { 2.0 },
                tokens: plan.samples,
                step_ms: 20.0,
                // Equal whenever the step is made again, and now and then with no gradient to be told from its noise.
                gradient_variance: Some(((end * 7919 + step) % 23) as f64),
                gradient_square: Some(((end * 31) % 7) as f64 / 6.0 - 0.1),
                ..StepMetrics::default()
            };
            let is_odd = odd == Some(step) && rank == ranks.len() - 1;
            let report = StepReport {
                stamp: generation.stamp,
                rank: rank as u32,
                step,
                parameter_hash: if is_odd { [199; 32] } else { made },
                metrics: (rank == 0).then_some(metrics),
                validation: (rank == 0 && plan.validate).then_some(Validation { loss: 1.0, tokens: 5 }),
                peak_memory_mib: 10,
            };
            trainer.at = step;
            trainer.say(Event::Report { peer, report });
            last |= plan.last;
            checkpoint |= plan.checkpoint;
            // Where it is made again it ends nothing.
            stops |= plan.stop && step > generation.replay_through;
        }
        if last {
            for index in ranks {
                self.say_farewell(index, Outcome::Completed);
            }
            return;
        }
        if self.snapshot_every > 0 && step.is_multiple_of(self.snapshot_every) {
            self.take_snapshot(&ranks, &generation, step);
        }
        if checkpoint {
            self.write_checkpoint(&ranks, &generation, step);
        }
        if stops {
            for index in ranks {
                self.say_farewell(index, Outcome::Stopped);
            }
            return;
        }
        if step >= generation.replay_through {
            self.act_on_directive(&ranks, &generation);
        }
    }

    /// Each owner writes its part into the store. Now and then rank 0 cannot.
    fn write_checkpoint(&mut self, ranks: &[usize], generation: &Generation, step: u64) {
        for (rank, index) in ranks.iter().enumerate() {
            let peer = self.peer(*index);
            let written = match rank == 0 && step % 5 == 4 {
                true => Err("the disk is full".to_owned()),
                false => Ok(Box::new(Written {
                    words: Vec::new(),
                    hash: [rank as u8; 32],
                    bytes: step,
                    runs: Vec::new(),
                })),
            };
            self.all[*index].say(Event::Wrote {
                peer,
                stamp: generation.stamp,
                step,
                written,
            });
        }
    }

    /// Each owner keeps its part and that of the rank before it, its ward.
    fn take_snapshot(&mut self, ranks: &[usize], generation: &Generation, step: u64) {
        let frees_at_once = self.fault == Some(Fault::FreeSnapshotsTooEarly);
        for (rank, index) in ranks.iter().enumerate() {
            let ward = (rank + ranks.len() - 1) % ranks.len();
            let peer = self.peer(*index);
            let trainer = &mut self.all[*index];
            for of in BTreeSet::from([rank, ward]) {
                let part = part(step, generation, of);
                if frees_at_once {
                    trainer.parts.retain(|older| older.step >= step);
                }
                trainer.parts.insert(part);
                trainer.say(Event::Holds {
                    peer,
                    stamp: generation.stamp,
                    part,
                });
            }
        }
    }

    /// The ranks exchange their directives at the end of a step; the newest counts.
    fn act_on_directive(&mut self, ranks: &[usize], generation: &Generation) {
        let words = ranks.iter().map(|index| self.all[*index].urgent.to_word());
        let newest = words.max().and_then(Urgent::from_word).unwrap_or_default();
        if newest.sequence <= self.all[ranks[0]].handled {
            return;
        }
        for (rank, index) in ranks.iter().enumerate() {
            let trainer = &mut self.all[*index];
            trainer.handled = newest.sequence;
            trainer.state = State::Training;
            match newest.kind {
                DirectiveKind::None | DirectiveKind::Resume => {}
                DirectiveKind::Pause => trainer.state = State::Paused(newest.sequence),
                DirectiveKind::Stop => self.say_farewell(*index, Outcome::Stopped),
                DirectiveKind::Regroup => {
                    let live = part(trainer.at, generation, rank);
                    trainer.parts.insert(live);
                    self.stop(*index, None);
                }
            }
        }
    }

    pub(super) fn say_farewell(&mut self, index: usize, outcome: Outcome) {
        let peer = self.peer(index);
        let trainer = &mut self.all[index];
        if !trainer.finished {
            trainer.finished = true;
            trainer.outcome = Some(outcome.clone());
            let step = trainer.at;
            let stamp = trainer.stamp().unwrap_or_default();
            trainer.say(Event::Finished {
                peer,
                stamp,
                outcome,
                step,
            });
        }
    }
}

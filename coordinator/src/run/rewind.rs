//! Going back before a step that cannot be used.
//!
//! Way of data: a rank leaves the collectives and names the step ([`Run::note_unusable`]); all ranks have come to it by the same
//! exchanged words, and none has made it → when nobody is in the collectives any more, the branch is closed
//! ([`Run::rewind_if_due`]) → the next generation begins at the newest snapshot or checkpoint that is not behind that step,
//! makes again what lies between, and goes on by other plans.
//!
//! An operator may ask for the same at any time ([`Run::rewind_to`]): then the branch is closed first, and the ranks leave it
//! after that. It changes nothing by itself, and is not one of the rewinds that the policy may make.
//!
//! Where it goes back to depends on the step, the config and what operators ask only, never on which snapshots there happen to be: so the bits stay
//! the same on any world, and through any failure.

use crate::branches::Rewind;
use crate::run::machine::Answer;
use crate::run::{Directive, Phase, Record, Refusal, Run, Wish};

impl Run {
    /// A rank says that a step cannot be used.
    pub(super) fn note_unusable(&mut self, step: u64, cause: &str) {
        self.unusable.get_or_insert_with(|| (step, cause.to_owned()));
    }

    /// Closes the branch, if a step was named and all before it are committed. If some are not, a rank was lost with its reports:
    /// then they are made again, and the step is come to once more.
    pub(super) fn rewind_if_due(&mut self, directives: &mut Vec<Directive>) {
        let Some((step, cause)) = self.unusable.take() else {
            return;
        };
        if step != self.committed + 1 {
            return;
        }
        let Some(rewinds) = self.facts.rewinds else {
            self.fail(format!("{cause}; no policy of the run lets it go back"), directives);
            return;
        };
        let made = self.branches.made_by_policy();
        if made >= u64::from(rewinds.most) {
            let reason = format!(
                "{cause}; the run has gone back {made} times, and fault.max_rewinds allows no more. The parameters of step {} are \
                 the last good ones. Lower the learning rate, or look at the samples of that step",
                self.committed
            );
            self.fail(reason, directives);
            return;
        }
        let to = self.committed.saturating_sub(rewinds.steps);
        let from = self.end_of(to);
        let unusable = self.issued.front();
        let through = unusable.map_or(self.cursor, |plan| plan.first_sample.saturating_add(plan.samples));
        let (samples, tokens) = self.totals_after(to);
        let rewind = Rewind {
            number: self.branches.newest() + 1,
            unusable: step,
            to,
            skipped: from..if rewinds.skips { through } else { from },
            rate_factor: rewinds.rate_factor,
            term: self.facts.term,
            generation: self.stamp().generation,
            samples,
            tokens,
            parameter_hash: self.hash_of(to),
            reason: cause,
            by_operator: false,
            stopped_after: self.stopped_after(to),
        };
        let reason = sentence(&rewind, made + 1, rewinds.most);
        directives.push(Directive::Persist(Record::Rewound(rewind.clone())));
        directives.push(Directive::Persist(Record::Decision { reason }));
        self.go_back(rewind);
    }

    /// An operator wants the run to go back to a committed step. The branch is closed at once, so that the answer stands whoever
    /// is lost meanwhile; what the ranks still say of it does not count, and they are told to leave it.
    pub(super) fn rewind_to(&mut self, to: u64, directives: &mut Vec<Directive>) -> Answer {
        let refuse = |kind, reason| Err(Refusal::new(kind, "rewind", reason));
        let planned_stop = self.issued.iter().find(|plan| plan.stop).map(|plan| plan.step);
        match self.phase {
            Phase::Ended => return Err(self.over("go back")),
            Phase::Stopping | Phase::Failing | Phase::Finishing => {
                return refuse(
                    "NOT_TRAINING",
                    format!("no step is planned any more: {}", self.reason()),
                );
            }
            _ if self.wish == Wish::Stop => {
                return refuse(
                    "NOT_TRAINING",
                    "no step is planned any more: the run is being stopped. Resume it, and then let it go back"
                        .to_owned(),
                );
            }
            // Nobody is in the collectives, and the world that is formed next begins wherever it is told to.
            Phase::WaitingForMembers => {}
            _ if !self.facts.worlds.are_elastic() => {
                let reason = "its world cannot be formed anew: stop the run, resume its coordinator alone, let it go back, and start \
                              the trainers then"
                    .to_owned();
                return refuse("FIXED_WORLD", reason);
            }
            _ => {}
        }
        if let Some(step) = planned_stop {
            let reason =
                format!("the plan of step {step}, after which the run stops, is issued already: let it stop first");
            return refuse("NOT_TRAINING", reason);
        }
        let committed = self.committed;
        if to > committed || committed == 0 {
            let reason = match committed {
                0 => "no step is committed yet".to_owned(),
                _ => format!("step {to} is not committed yet: the last step that is, is {committed}"),
            };
            return refuse("NOT_COMMITTED", reason);
        }
        let Some(begins) = self.beginning_at_or_before(to) else {
            let reason = format!(
                "there is no checkpoint of step {to} or of an earlier one that could be loaded (checkpoint.keep_last and \
                 checkpoint.keep_every say which stay). --to 0 begins with the initial parameters"
            );
            return refuse("NO_CHECKPOINT", reason);
        };
        #[cfg(test)]
        let to = to.saturating_sub(u64::from(self.fault == Some(super::simulator::Fault::GoBackTooFar)));
        let (samples, tokens) = self.totals_after(to);
        let end = self.end_of(to);
        let rewind = Rewind {
            number: self.branches.newest() + 1,
            unusable: committed + 1,
            to,
            skipped: end..end,
            rate_factor: 1.0,
            term: self.facts.term,
            generation: self.stamp().generation,
            samples,
            tokens,
            parameter_hash: self.hash_of(to),
            reason: "an operator asked for it".to_owned(),
            by_operator: true,
            stopped_after: self.stopped_after(to),
        };
        let again = match to.saturating_sub(begins.0) {
            0 => String::new(),
            1 => format!(", step {to} is made again as it was"),
            _ => format!(", steps {} to {to} are made again as they were", begins.0 + 1),
        };
        let said = format!(
            "the run goes back from step {committed} to step {to}: every rank begins with {}{again}, and step {} is the first that \
             is made anew",
            begins.1,
            to + 1
        );
        directives.push(Directive::Persist(Record::Rewound(rewind.clone())));
        directives.push(Directive::Persist(Record::Decision {
            reason: format!("an operator's rewind: {said}"),
        }));
        self.go_back(rewind);
        let reason = format!("the run goes back to step {to}, as an operator asked");
        match self.phase {
            Phase::WaitingForMembers => {}
            Phase::WaitingForReturn => self.cannot_go_on_as_it_was(reason, directives),
            _ => self.abort_generation(reason, directives),
        }
        Ok(Some(said))
    }

    /// Whether the branch that the present generation has trained is closed: what its ranks say of later steps does not count.
    pub(super) fn has_gone_back(&self) -> bool {
        #[cfg(test)]
        if self.fault == Some(super::simulator::Fault::HearAClosedBranch) {
            return false;
        }
        let closed = self.branches.rewinds().last();
        closed.is_some_and(|rewind| rewind.generation == self.stamp().generation)
    }

    /// The step that a world would begin with which goes back to step `to`, and in words what it loads.
    fn beginning_at_or_before(&self, to: u64) -> Option<(u64, String)> {
        let found = self.resume_at_or_before(to);
        match found {
            Some(resume) if resume.checkpoint.is_some() => {
                Some((resume.step, format!("the checkpoint of step {}", resume.step)))
            }
            Some(resume) => Some((resume.step, format!("the snapshot of step {}", resume.step))),
            None => (to == 0).then(|| (0, "the initial parameters".to_owned())),
        }
    }

    /// The step behind `to` after which the run has stopped as operators planned, if there is one.
    fn stopped_after(&self, to: u64) -> Option<u64> {
        let behind = self.past.iter().skip(to as usize);
        let stops = behind.filter(|past| self.facts.stops_once && past.plan.stop);
        stops.map(|past| past.plan.step).next_back()
    }

    /// The sample before which a committed step of the live branch ended.
    fn end_of(&self, step: u64) -> u64 {
        let past = step.checked_sub(1).and_then(|index| self.past.get(index as usize));
        past.map_or(0, |past| past.plan.first_sample.saturating_add(past.plan.samples))
    }

    /// Samples and counted tokens of the run after a committed step.
    fn totals_after(&self, step: u64) -> (u64, u64) {
        let past = step.checked_sub(1).and_then(|index| self.past.get(index as usize));
        past.map_or((0, 0), |past| (past.samples, past.tokens))
    }

    /// The run is where it was after step `to`, on a new branch.
    fn go_back(&mut self, rewind: Rewind) {
        let to = rewind.to;
        self.cursor = rewind.skipped.end;
        (self.samples, self.tokens) = (rewind.samples, rewind.tokens);
        self.branches.close(rewind);
        self.past.truncate(to as usize);
        // What is left behind has no say in what comes.
        self.policy = self.policy.anew();
        self.past.iter().for_each(|past| self.policy.observe(&past.seen));
        (self.committed, self.issued_through) = (to, to);
        self.issued.clear();
        self.reports.clear();
        self.writing.clear();
        self.committing.clear();
        self.checkpoints.retain(|checkpoint| checkpoint.step <= to);
        self.newest_validation = self.newest_validation.min(to);
        self.unusable = None;
        // The plan has changed: what comes now is not the same again.
        self.fruitless = 0;
    }
}

fn sentence(rewind: &Rewind, number: u64, most: u32) -> String {
    let Rewind {
        to,
        skipped,
        rate_factor,
        reason,
        ..
    } = rewind;
    let mut changes = Vec::new();
    if !skipped.is_empty() {
        let (first, last) = (skipped.start, skipped.end - 1);
        changes.push(format!("samples {first} to {last} are skipped"));
    }
    if *rate_factor != 1.0 {
        changes.push(format!("every later learning rate is {rate_factor} times as large"));
    }
    format!(
        "{reason}. The run goes back to step {to}, and goes on from there by another plan: {} (rewind {number} of at most {most})",
        changes.join(", and ")
    )
}

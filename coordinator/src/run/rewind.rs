//! Going back before a step that cannot be used.
//!
//! Way of data: a rank leaves the collectives and names the step ([`Run::note_unusable`]); all ranks have come to it by the same
//! exchanged words, and none has made it → when nobody is in the collectives any more, the branch is closed
//! ([`Run::rewind_if_due`]) → the next generation begins at the newest snapshot or checkpoint that is not behind that step,
//! makes again what lies between, and goes on by other plans.
//!
//! Where it goes back to depends on the step and the config only, never on which snapshots there happen to be: so the bits stay
//! the same on any world, and through any failure.

use crate::branches::Rewind;
use crate::run::{Directive, Record, Run};

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
        let made = self.branches.newest();
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
            number: made + 1,
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
        };
        let reason = sentence(&rewind, rewinds.most);
        directives.push(Directive::Persist(Record::Rewound(rewind.clone())));
        directives.push(Directive::Persist(Record::Decision { reason }));
        self.go_back(rewind);
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
        // The plan has changed: what comes now is not the same again.
        self.fruitless = 0;
    }
}

fn sentence(rewind: &Rewind, most: u32) -> String {
    let Rewind {
        number,
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

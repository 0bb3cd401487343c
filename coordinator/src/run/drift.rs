//! A rank in whose memory a bit has changed by itself: the others go on without it, where they are enough.
//!
//! Every rank of the generation says the same of the step in which it was found, and none has made it. The generation is
//! aborted as after any other failure, and the next one loads the newest snapshot, whose parts are known by their hashes.

use crate::run::{Directive, Phase, Record, Run};

impl Run {
    /// Notes that the memory of `rank` has changed. Its member is part of no further generation if enough others remain: it is
    /// released when they train, and whoever starts trainers may start another one.
    pub(super) fn set_apart(&mut self, rank: u32, cause: &str, directives: &mut Vec<Directive>) {
        let Some((peer, member)) = self.members.of_rank(rank) else {
            return;
        };
        if self.phase == Phase::Ended || !member.is_candidate() {
            return; // said twice
        }
        let others = self.members.candidates().saturating_sub(1);
        let least = self.facts.worlds.least.max(1) as usize;
        let name = self.name(peer);
        let is_apart = self.facts.worlds.are_elastic() && others >= least;
        let reason = match is_apart {
            true => format!("{name} is set apart, and the others go on without it: {cause}"),
            false => format!(
                "the memory of {name} has changed, and it stays, since without it {others} of at least {least} ranks would be left: {cause}"
            ),
        };
        directives.push(Directive::Persist(Record::Decision { reason }));
        if is_apart {
            let leaving = Some(format!("its memory has changed: {cause}"));
            self.members.change(&peer, |member| member.leaving = leaving);
        }
    }

    /// Whether the ranks of the present generation make steps, as far as is known.
    pub(super) fn is_making_steps(&self) -> bool {
        matches!(
            self.phase,
            Phase::Training | Phase::Paused | Phase::Stopping | Phase::Finishing | Phase::Regrouping
        )
    }
}

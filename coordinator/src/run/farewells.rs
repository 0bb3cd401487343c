//! How members end their part.
//!
//! A member goes away when its farewell is acknowledged. Before that, every step that it made must be committed: its reports
//! may be the only ones of their kind, and a later term asks for them again. If the generation is aborted before, the member
//! is told so, and is there for the next one.

use lockstep_proto::domain::{CoordinatorBody, Outcome, Stamp};

use crate::run::machine::Answer;
use crate::run::{Directive, Peer, Phase, Record, Run};

impl Run {
    /// A member's part is over.
    pub(super) fn finished(
        &mut self,
        (peer, stamp): (Peer, Stamp),
        outcome: Outcome,
        step: u64,
        directives: &mut Vec<Directive>,
    ) -> Answer {
        let Some(member) = self.members.get(&peer) else {
            // It failed before it joined. Its launcher sees it end; the ledger keeps why, and it need not wait for an answer.
            if self.phase != Phase::Ended {
                let reason = format!("a trainer ended before it joined: {}", in_words(&outcome));
                directives.push(Directive::Persist(Record::Decision { reason }));
            }
            directives.push(self.heard(peer));
            return Ok(None);
        };
        let is_trained = matches!(outcome, Outcome::Completed | Outcome::Stopped);
        let is_aborted =
            self.phase == Phase::Regrouping && self.regroup.as_ref().is_some_and(|regroup| regroup.is_aborted);
        let is_older =
            member.rank.is_some() && stamp.generation < self.generation.as_ref().map_or(0, |g| g.stamp.generation);
        // The abort is on its way to it, before any answer: it takes its farewell back, even if its steps stand.
        let takes_back = match member.rank {
            Some(_) => is_aborted || member.stopped,
            None => member.stopped && member.is_candidate(),
        };
        // After the end every farewell is one: nothing is made again. So is one that was acknowledged before.
        let stands = self.phase == Phase::Ended || member.finished.is_some() && member.is_heard;
        if is_trained && !stands && (is_older || takes_back || member.astray.is_some()) {
            return Ok(None);
        }
        if member.finished.is_none() {
            let farewell = Some((outcome.clone(), step));
            self.members.change(&peer, |member| member.finished = farewell);
            if self.phase != Phase::Ended {
                let reason = format!("{} ended after step {step}: {}", self.name(peer), in_words(&outcome));
                directives.push(Directive::Persist(Record::Decision { reason }));
            }
        } else if member.is_heard {
            directives.push(self.heard(peer)); // said twice
        }
        let at_once = !is_trained || self.phase == Phase::Ended;
        #[cfg(test)]
        let at_once = at_once || self.fault == Some(super::simulator::Fault::HearFarewellsEarly);
        self.hear_farewells(at_once, directives);
        match outcome {
            Outcome::Failed { reason } => self.member_failed(peer, &reason, self.now, directives),
            Outcome::Completed | Outcome::Stopped => self.end_if_all_finished(directives),
        }
        Ok(None)
    }

    /// Acknowledges the farewells of members whose steps are all committed; with `all` those of the others too, since their
    /// steps will be made again, or the run is over.
    pub(super) fn hear_farewells(&mut self, all: bool, directives: &mut Vec<Directive>) {
        let (committed, is_over) = (self.committed, self.phase == Phase::Ended);
        let number = self.stamp().generation;
        // What somebody has made who is no rank any more is made again by others, and not asked for.
        let heard = self.members.unheard(if all { u64::MAX } else { committed });
        for peer in &heard {
            let said = self.members.change(peer, |member| {
                member.is_heard = true;
                (member.rank, member.finished.clone())
            });
            if let (Some((Some(rank), Some(farewell))), false) = (said, is_over) {
                directives.push(Directive::Persist(Record::Farewell {
                    generation: number,
                    rank,
                    farewell,
                }));
            }
        }
        let finished = true;
        self.send_all(
            &heard,
            CoordinatorBody::Acknowledged {
                step: committed,
                finished,
            },
            directives,
        );
    }

    /// The generation is aborted before the last steps of these members were committed: they have not ended after all.
    pub(super) fn take_back_farewells(&mut self) {
        self.members
            .retain(|member| member.is_heard || !(member.is_gone || member.is_missed));
        for peer in self.members.unheard(u64::MAX) {
            self.members.change(&peer, |member| member.finished = None);
        }
    }

    fn heard(&self, peer: Peer) -> Directive {
        self.send(
            peer,
            CoordinatorBody::Acknowledged {
                step: self.committed,
                finished: true,
            },
        )
    }
}

fn in_words(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Stopped => "stopped",
        Outcome::Failed { reason } => reason,
    }
}

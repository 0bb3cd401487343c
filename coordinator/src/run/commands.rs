//! What operators, and members that must leave, ask for: pause, resume, stop, abandon.

use lockstep_proto::domain::{CoordinatorBody, Directive as Urgent, DirectiveKind, Outcome};

use crate::run::machine::Answer;
use crate::run::{Directive, Peer, Phase, Record, Refusal, Run};

impl Run {
    pub(super) fn leaving(&mut self, peer: Peer, reason: &str, directives: &mut Vec<Directive>) -> Answer {
        let Some(member) = self.members.get(&peer) else {
            return Ok(None);
        };
        let who = format!("member {}, which must leave ({reason})", member.info.member);
        self.stop(&who, directives)
    }

    pub(super) fn pause(&mut self, directives: &mut Vec<Directive>) -> Answer {
        match self.phase {
            Phase::Ended => Err(self.over("pause")),
            Phase::Stopping | Phase::Finishing | Phase::Failing => {
                Ok(Some(format!("nothing to pause: {}", self.reason())))
            }
            _ if self.urgent.kind == DirectiveKind::Pause => Ok(Some(format!("nothing to do: {}", self.paused()))),
            _ => {
                self.give(DirectiveKind::Pause, "an operator asked for a pause", directives);
                if self.phase == Phase::Training {
                    self.phase = Phase::Paused;
                }
                Ok(Some(self.paused()))
            }
        }
    }

    fn paused(&self) -> String {
        match self.phase {
            Phase::Paused => self.reason(),
            _ => "the run will pause as soon as it trains".to_owned(),
        }
    }

    pub(super) fn resume(&mut self, directives: &mut Vec<Directive>) -> Answer {
        if self.phase == Phase::Ended {
            return Err(self.over("resume"));
        }
        if self.urgent.kind != DirectiveKind::Pause {
            return Ok(Some(format!("the run is not paused: {}", self.reason())));
        }
        self.give(DirectiveKind::Resume, "an operator resumed the run", directives);
        if self.phase == Phase::Paused {
            self.phase = Phase::Training;
        }
        self.issue_plans(directives);
        Ok(None)
    }

    pub(super) fn stop(&mut self, who: &str, directives: &mut Vec<Directive>) -> Answer {
        match self.phase {
            Phase::Ended => Err(self.over("stop")),
            Phase::WaitingForMembers | Phase::WaitingForCommId | Phase::WaitingForReady => {
                let reason = format!("the run was stopped before its first step by {who}");
                self.end_with(Outcome::Stopped, reason, directives);
                Ok(None)
            }
            Phase::Training | Phase::Paused => {
                self.give(
                    DirectiveKind::Stop,
                    &format!("the run is being stopped by {who}"),
                    directives,
                );
                self.phase = Phase::Stopping;
                // A rank may be waiting for its next plan, and learns of the stop only in that step.
                self.issue_plans(directives);
                Ok(None)
            }
            Phase::Stopping | Phase::Finishing | Phase::Failing => Ok(None),
        }
    }

    pub(super) fn abandon(&mut self, directives: &mut Vec<Directive>) -> Answer {
        if self.phase == Phase::Ended {
            return Err(self.over("abandon the run"));
        }
        let (committed, total) = (self.committed, self.facts.planner.total_steps());
        let reason = format!("the run was abandoned by an operator after step {committed} of {total}");
        self.end_with(Outcome::Stopped, reason, directives);
        Ok(None)
    }

    fn give(&mut self, kind: DirectiveKind, reason: &str, directives: &mut Vec<Directive>) {
        self.urgent = Urgent {
            sequence: self.urgent.sequence + 1,
            kind,
        };
        directives.push(Directive::Persist(Record::Decision {
            reason: reason.to_owned(),
        }));
        directives.push(Directive::Persist(Record::Urgent(self.urgent)));
        self.broadcast(CoordinatorBody::Directive(self.urgent), directives);
    }

    fn over(&self, wish: &str) -> Refusal {
        Refusal::new(
            "RUN_OVER",
            "run",
            format!("cannot {wish}: the run is over ({})", self.reason()),
        )
    }
}

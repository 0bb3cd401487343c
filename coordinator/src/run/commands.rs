//! What operators, and members that must leave, ask for: pause, resume, stop, abandon, and the wish that stands while
//! generations come and go.

use lockstep_proto::domain::{CoordinatorBody, Directive as Urgent, DirectiveKind, Outcome};

use crate::run::machine::Answer;
use crate::run::{Directive, Peer, Phase, Record, Refusal, Run, Wish};

impl Run {
    /// A member must leave. The others go on without it if they are enough, and lose no step; else the run stops.
    pub(super) fn leaving(&mut self, peer: Peer, reason: &str, directives: &mut Vec<Directive>) -> Answer {
        let Some(member) = self.members.get(&peer) else {
            return Ok(None);
        };
        let who = format!("member {}, which must leave ({reason})", member.info.member);
        if !self.facts.worlds.are_elastic() || self.phase == Phase::Ended {
            return self.stop(&who, directives);
        }
        let is_rank = member.rank.is_some();
        let said = self
            .members
            .change(&peer, |member| member.leaving.replace(reason.to_owned()));
        if said.flatten().is_some() {
            return Ok(None); // said twice
        }
        let remain = self.members.candidates();
        if is_rank && remain < self.facts.worlds.least.max(1) as usize {
            return self.stop(&who, directives);
        }
        match (is_rank, self.phase) {
            (true, Phase::Training | Phase::Paused) => {
                self.end_in_order(format!("the world shrinks: {who}"), directives);
            }
            (true, Phase::WaitingForCommId | Phase::WaitingForReady) => {
                self.abort_generation(format!("the world shrinks: {who}"), directives);
            }
            // What goes on already ends the generation, and forms the next one without it.
            _ => {}
        }
        Ok(None)
    }

    pub(super) fn pause(&mut self, directives: &mut Vec<Directive>) -> Answer {
        match self.phase {
            Phase::Ended => Err(self.over("pause")),
            Phase::Stopping | Phase::Finishing | Phase::Failing => {
                Ok(Some(format!("nothing to pause: {}", self.reason())))
            }
            _ if self.wish == Wish::Pause => Ok(Some(format!("nothing to do: {}", self.paused()))),
            _ if self.wish == Wish::Stop => Ok(Some("nothing to pause: the run is being stopped".to_owned())),
            _ => {
                self.wants(Wish::Pause, directives);
                if !self.waits_for_ranks() {
                    self.give(DirectiveKind::Pause, "an operator asked for a pause", directives);
                }
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
        if self.wish != Wish::Pause {
            return Ok(Some(format!("the run is not paused: {}", self.reason())));
        }
        self.wants(Wish::Train, directives);
        if !self.waits_for_ranks() {
            self.give(DirectiveKind::Resume, "an operator resumed the run", directives);
        }
        if self.phase == Phase::Paused {
            self.phase = Phase::Training;
        }
        self.issue_plans(directives);
        Ok(None)
    }

    pub(super) fn stop(&mut self, who: &str, directives: &mut Vec<Directive>) -> Answer {
        let begun = self.initial.is_some();
        match self.phase {
            Phase::Ended => Err(self.over("stop")),
            Phase::WaitingForMembers if begun => {
                let reason = format!(
                    "the run was stopped by {who} after step {}, while it waited for trainers",
                    self.committed
                );
                self.end_with(Outcome::Stopped, reason, directives);
                Ok(None)
            }
            Phase::WaitingForMembers | Phase::WaitingForCommId | Phase::WaitingForReady if !begun => {
                let reason = format!("the run was stopped before its first step by {who}");
                self.end_with(Outcome::Stopped, reason, directives);
                Ok(None)
            }
            Phase::Training | Phase::Paused => {
                self.wants(Wish::Stop, directives);
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
            Phase::WaitingForMembers
            | Phase::WaitingForReturn
            | Phase::WaitingForCommId
            | Phase::WaitingForReady
            | Phase::Regrouping => {
                // The next generation is told.
                self.wants(Wish::Stop, directives);
                let reason = format!("the run is being stopped by {who}");
                directives.push(Directive::Persist(Record::Decision { reason }));
                if !self.waits_for_ranks() {
                    self.say_the_wish(directives);
                }
                Ok(None)
            }
            Phase::Stopping | Phase::Finishing | Phase::Failing => Ok(None),
        }
    }

    pub(super) fn abandon(&mut self, directives: &mut Vec<Directive>) -> Answer {
        if self.phase == Phase::Ended {
            return Err(self.over("abandon the run"));
        }
        let (committed, total) = (self.committed, self.planner().total_steps());
        let reason = format!("the run was abandoned by an operator after step {committed} of {total}");
        self.end_with(Outcome::Stopped, reason, directives);
        Ok(None)
    }

    /// Whether nobody can be told anything yet: the ranks are leaving their generation, or have not come back. Those who train
    /// next are told.
    fn waits_for_ranks(&self) -> bool {
        matches!(self.phase, Phase::Regrouping | Phase::WaitingForReturn)
    }

    /// The operators want something else. It stands in every later term.
    pub(super) fn wants(&mut self, wish: Wish, directives: &mut Vec<Directive>) {
        self.wish = wish;
        directives.push(Directive::Persist(Record::Wish(wish)));
    }

    pub(super) fn give(&mut self, kind: DirectiveKind, reason: &str, directives: &mut Vec<Directive>) {
        directives.push(Directive::Persist(Record::Decision {
            reason: reason.to_owned(),
        }));
        self.give_silently(kind, directives);
    }

    fn give_silently(&mut self, kind: DirectiveKind, directives: &mut Vec<Directive>) {
        self.urgent = Urgent {
            sequence: self.urgent.sequence + 1,
            kind,
        };
        directives.push(Directive::Persist(Record::Urgent(self.urgent)));
        self.broadcast(CoordinatorBody::Directive(self.urgent), directives);
    }

    /// Tells the ranks of a new generation what the operators want, whatever the last one was told.
    pub(super) fn say_the_wish(&mut self, directives: &mut Vec<Directive>) {
        let kind = match self.wish {
            Wish::Train if self.urgent.sequence == 0 => return,
            Wish::Train => DirectiveKind::Resume,
            Wish::Pause => DirectiveKind::Pause,
            Wish::Stop => DirectiveKind::Stop,
        };
        match self.urgent.kind == kind {
            true => self.broadcast(CoordinatorBody::Directive(self.urgent), directives),
            false => self.give_silently(kind, directives),
        }
    }

    pub(super) fn over(&self, wish: &str) -> Refusal {
        Refusal::new(
            "RUN_OVER",
            "run",
            format!("cannot {wish}: the run is over ({})", self.reason()),
        )
    }
}

//! How a run ends, well or badly: lost members, failed ranks, farewells.

use std::collections::BTreeSet;
use std::time::Duration;

use lockstep_proto::domain::{CoordinatorBody, Outcome, RunEnd};

use crate::run::{Directive, Peer, Phase, Record, Run, Wish};

/// A rank whose peer is killed may report its broken collective before the killed rank's stream is seen to close.
/// So long is waited, after a rank's report of failure, for the death that caused it.
const CAUSE_MAY_FOLLOW: Duration = Duration::from_millis(300);
/// Of more members a sentence names the first ones, and the number of the others.
pub(super) const MOST_NAMED: usize = 8;

impl Run {
    /// A member's name for sentences: rank, pid, host.
    pub fn name(&self, peer: Peer) -> String {
        let Some(member) = self.members.get(&peer) else {
            return "a stranger".to_owned();
        };
        let (name, pid, host) = (&member.info.member, member.info.pid, &member.info.host);
        match member.rank {
            Some(rank) => format!("rank {rank} (pid {pid}, {name} on {host})"),
            None => format!("member {name} (pid {pid} on {host})"),
        }
    }

    /// Members' names for sentences: all of them, or the first few and how many more there are.
    pub(super) fn names(&self, peers: &BTreeSet<Peer>) -> String {
        let few: Vec<String> = peers.iter().take(MOST_NAMED).map(|peer| self.name(*peer)).collect();
        let few: Vec<&str> = few.iter().map(String::as_str).collect();
        listed(&few, peers.len(), " and ")
    }

    /// A stream closed. Without a farewell before it, that ends the generation, or the run where its world is fixed.
    pub(super) fn lost(&mut self, peer: Peer, directives: &mut Vec<Directive>) {
        let is_over = self.phase == Phase::Ended;
        let has_ended = self.members.change(&peer, |member| {
            let has_ended = member.finished.is_some() || is_over;
            member.is_gone |= has_ended;
            has_ended
        });
        let Some(member) = self.members.get(&peer) else {
            return;
        };
        if has_ended == Some(true) {
            if member.is_released() && !is_over {
                self.members.remove(&peer);
            }
            return;
        }
        let (rank, reported) = (member.rank, member.reported);
        let during = match (self.phase, rank) {
            (_, None) => "before it was part of a world".to_owned(),
            (Phase::WaitingForCommId | Phase::WaitingForReady, _) => "before the first step".to_owned(),
            _ => format!(
                "after it had reported step {} of {}",
                reported,
                self.planner().total_steps()
            ),
        };
        let reason = format!(
            "{} was lost {during}: its connection closed without a farewell",
            self.name(peer)
        );
        if !self.facts.worlds.are_elastic() || self.phase == Phase::Failing {
            self.members.change(&peer, |member| {
                // Nothing more can be sent to it.
                member.finished = Some((Outcome::Failed { reason: reason.clone() }, member.reported));
                member.is_missed = true;
            });
            self.fail(reason, directives);
            return;
        }
        if self.is_written() {
            // It had done its part, and only its farewell is missing.
            let committed = self.committed;
            self.members.change(&peer, |member| {
                member.finished = Some((Outcome::Completed, committed));
                member.is_missed = true;
            });
            directives.push(Directive::Persist(Record::Decision { reason }));
            self.end_if_all_finished(directives);
            return;
        }
        let was_rank = self.members.remove(&peer).is_some_and(|member| member.rank.is_some());
        if was_rank && !matches!(self.phase, Phase::WaitingForMembers) {
            self.abort_generation(reason, directives);
        } else {
            directives.push(Directive::Persist(Record::Decision { reason }));
        }
    }

    /// Whether every step is committed and rank 0 has written its files.
    pub(super) fn is_written(&self) -> bool {
        let first = self.members.of_rank(0);
        self.committed == self.planner().total_steps()
            && first.is_some_and(|(_, member)| matches!(member.finished, Some((Outcome::Completed, _))))
    }

    /// A rank said that it failed. Its peer's death may be the cause and is the better sentence, so wait a moment.
    pub(super) fn member_failed(&mut self, peer: Peer, said: &str, now: Duration, directives: &mut Vec<Directive>) {
        if matches!(self.phase, Phase::Ended | Phase::Failing) {
            return;
        }
        let reason = format!("{} failed: {said}", self.name(peer));
        if self.facts.worlds.are_elastic() && self.members.get(&peer).is_some_and(|member| member.rank.is_none()) {
            // The ledger has its reason, and no rank misses it.
            return;
        }
        if self.members.all_have_finished() {
            self.fail(reason, directives);
            return;
        }
        self.phase = Phase::Failing;
        self.failing = Some((reason, now));
    }

    pub(super) fn end_if_failing_is_over(&mut self, now: Duration, directives: &mut Vec<Directive>) {
        if self.phase != Phase::Failing {
            return;
        }
        if let Some((reason, since)) = &self.failing
            && now.saturating_sub(*since) >= CAUSE_MAY_FOLLOW
        {
            let reason = reason.clone();
            self.fail(reason, directives);
        }
    }

    /// Whether no rank is left that does anything.
    pub(super) fn all_said_farewell(&self) -> bool {
        self.members.unfinished_ranks().is_empty()
    }

    /// Ends the run when everybody has said farewell.
    pub(super) fn end_if_all_finished(&mut self, directives: &mut Vec<Directive>) {
        // Before all are back, the farewells that are there say nothing of the others.
        if matches!(self.phase, Phase::Ended | Phase::WaitingForReturn) || !self.all_said_farewell() {
            return;
        }
        let mut farewells = Vec::new();
        for (peer, member) in self.members.iter().filter(|(_, member)| member.rank.is_some()) {
            let Some((outcome, step)) = &member.finished else {
                return;
            };
            farewells.push((*peer, outcome.clone(), *step));
        }
        // The last checkpoint is part of the run.
        if farewells.is_empty() || !self.committing.is_empty() {
            return;
        }
        if self.phase == Phase::Failing {
            if let Some((reason, _)) = self.failing.clone() {
                self.fail(reason, directives);
            }
            return;
        }
        let (committed, total) = (self.committed, self.planner().total_steps());
        if let Some((peer, _, step)) = farewells.iter().find(|(_, _, step)| *step != committed) {
            let reason = format!(
                "{} ended after step {step}, but the last step that every rank made is {committed}",
                self.name(*peer)
            );
            self.fail(reason, directives);
        } else if committed == total {
            self.end_with(Outcome::Completed, format!("all {total} steps were made"), directives);
        } else if self.wish == Wish::Stop {
            let reason = format!("the run was stopped after step {committed} of {total}");
            self.end_with(Outcome::Stopped, reason, directives);
        } else {
            let reason = format!("the ranks ended after step {committed} of {total} without having been told to");
            self.fail(reason, directives);
        }
    }

    /// Ends the run badly.
    pub(super) fn fail(&mut self, reason: String, directives: &mut Vec<Directive>) {
        self.end_with(Outcome::Failed { reason: reason.clone() }, reason, directives);
    }

    /// Ends the run and releases everybody who is still there.
    pub(super) fn end_with(&mut self, outcome: Outcome, reason: String, directives: &mut Vec<Directive>) {
        if self.phase == Phase::Ended {
            return;
        }
        self.hear_farewells(true, directives);
        self.phase = Phase::Ended;
        let end = RunEnd {
            outcome,
            reason: reason.clone(),
            last_step: self.committed,
        };
        self.end = Some(end.clone());
        directives.push(Directive::Persist(Record::End(end.clone())));
        let outcome = end.outcome.clone();
        let there = self.members.iter().filter(|(_, member)| member.finished.is_none());
        let there = there.map(|(peer, _)| peer);
        self.send_all(there, CoordinatorBody::Release { outcome, reason }, directives);
        directives.push(Directive::End(end));
    }
}

/// Names in a sentence, of which there are `all`: all of them, or the first few and how many more there are.
pub(super) fn listed(names: &[&str], all: usize, between: &str) -> String {
    let few = &names[..names.len().min(MOST_NAMED)];
    match all.saturating_sub(few.len()) {
        0 => few.join(between),
        others => format!("{} and {others} others", few.join(", ")),
    }
}

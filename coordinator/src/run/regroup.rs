//! From one generation to the next: who leaves the collectives and why, what is waited for meanwhile, and how training
//! begins again.
//!
//! A generation ends in one of two ways. A lost rank, or one that reports a broken collective, *aborts* it: all ranks drop
//! what they do. Members that come or must leave end it *in order*: the ranks agree on a last step, and hold its parameters
//! when they stop, so that no step is lost. In both cases the next generation is formed when every rank of this one has
//! said that it stopped, or is gone: until then somebody may still be waiting in a collective.

use std::collections::BTreeSet;
use std::time::Duration;

use lockstep_proto::domain::{CoordinatorBody, DirectiveKind, Outcome, Part, Plan, Stamp};

use crate::run::failure::listed;
use crate::run::machine::{Answer, disagreement, hex};
use crate::run::{Begun, Directive, LONGEST_WINDOW, Peer, Phase, Record, Regroup, Run, Wish};

/// Generations that may be aborted one after the other without one new step: then it is not chance.
const MOST_FRUITLESS: u32 = 8;

/// A rank that has stopped moving may have been stopped for a while only: it has so long to hear of it and to leave.
const LAPSED_MAY_LEAVE: Duration = Duration::from_secs(1);

static NOBODY: BTreeSet<Peer> = BTreeSet::new();

impl Run {
    /// Ends the present generation at once: every rank that is still in its collectives is told to abort.
    pub(super) fn abort_generation(&mut self, reason: String, directives: &mut Vec<Directive>) {
        self.returning = None;
        directives.push(Directive::Persist(Record::Decision { reason: reason.clone() }));
        let is_first_word = self.regroup.as_ref().is_none_or(|regroup| !regroup.is_aborted);
        if is_first_word {
            self.fruitless += 1;
            if self.fruitless > MOST_FRUITLESS {
                let reason = format!(
                    "{MOST_FRUITLESS} generations in a row ended without a new step after step {}; the last reason: {reason}",
                    self.committed
                );
                self.fail(reason, directives);
                return;
            }
            self.take_back_farewells();
            let abort = CoordinatorBody::Abort { reason: reason.clone() };
            self.send_all(self.members.in_collectives(), abort, directives);
            let since = self.now;
            self.regroup = Some(Regroup {
                reason,
                since,
                is_aborted: true,
            });
        }
        self.phase = Phase::Regrouping;
        self.form_if_stopped(directives);
    }

    /// Ends the present generation at the end of a step, if members wait who would make the world larger.
    pub(super) fn grow(&mut self, directives: &mut Vec<Directive>) {
        if self.world_of(self.members.candidates()) > self.ranks() as usize {
            let candidates = self.candidates();
            let waiting = candidates
                .iter()
                .filter_map(|peer| self.members.get(peer))
                .filter(|member| member.rank.is_none());
            let names: Vec<&str> = waiting.map(|member| member.info.member.as_str()).collect();
            let reason = format!("the world grows: {} joined", listed(&names, names.len(), ", "));
            self.end_in_order(reason, directives);
        }
    }

    /// Ends the present generation at the end of a step on which the ranks agree.
    pub(super) fn end_in_order(&mut self, reason: String, directives: &mut Vec<Directive>) {
        self.give(DirectiveKind::Regroup, &reason, directives);
        let since = self.now;
        self.regroup = Some(Regroup {
            reason,
            since,
            is_aborted: false,
        });
        self.phase = Phase::Regrouping;
        // A rank may be waiting for its next plan, and learns of it only in that step.
        self.issue_plans(directives);
    }

    /// A rank has left the collectives of its generation.
    pub(super) fn stopped(
        &mut self,
        peer: Peer,
        stamp: Stamp,
        cause: Option<String>,
        parts: Vec<Part>,
        directives: &mut Vec<Directive>,
    ) -> Answer {
        if self.phase == Phase::Ended {
            return Ok(None);
        }
        if let Some((generation, _)) = self.members.get(&peer).and_then(|member| member.astray) {
            if generation != stamp.generation {
                return Ok(None);
            }
            self.members.change(&peer, |member| {
                (member.astray, member.stopped) = (None, true);
                member.parts = parts.into_iter().collect();
            });
            self.welcome(directives);
            return Ok(None);
        }
        if self.present(peer, stamp).is_none() {
            return Ok(None);
        }
        let name = self.name(peer);
        self.lacking = None;
        let had_stopped = self.members.change(&peer, |member| {
            member.parts = parts.into_iter().collect();
            std::mem::replace(&mut member.stopped, true)
        });
        if had_stopped != Some(false) {
            return Ok(None); // said twice
        }
        match (self.phase, cause) {
            (Phase::Regrouping, Some(cause)) if self.regroup.as_ref().is_some_and(|regroup| !regroup.is_aborted) => {
                self.abort_generation(format!("{name} left the collectives: {cause}"), directives);
            }
            (Phase::Regrouping, _) => self.form_if_stopped(directives),
            // Its peers complain of a rank that failed. That rank's own sentence is the one to end with.
            (Phase::Failing, _) => {}
            (Phase::WaitingForReturn, cause) => {
                let cause = cause.unwrap_or_else(|| "as it was told in an earlier term".to_owned());
                self.cannot_go_on_as_it_was(format!("{name} left the collectives: {cause}"), directives);
            }
            (_, cause) if self.facts.worlds.are_elastic() => {
                let cause = cause.unwrap_or_else(|| "it was not told to".to_owned());
                self.abort_generation(format!("{name} left the collectives: {cause}"), directives);
            }
            (_, cause) => {
                let cause = cause.unwrap_or_else(|| "it was not told to".to_owned());
                self.fail(format!("{name} left the collectives: {cause}"), directives);
            }
        }
        Ok(None)
    }

    /// Forms the next generation, or waits for more members, once nobody is in the collectives of this one.
    pub(super) fn form_if_stopped(&mut self, directives: &mut Vec<Directive>) {
        if self.phase != Phase::Regrouping || self.waits_in_collectives() {
            return;
        }
        self.rewind_if_due(directives);
        if self.phase == Phase::Ended {
            return;
        }
        self.phase = Phase::WaitingForMembers;
        self.form_if_enough(directives);
    }

    /// Whether a rank is still in the collectives.
    fn waits_in_collectives(&self) -> bool {
        #[cfg(test)]
        if self.fault == Some(super::simulator::Fault::FormBeforeAllHaveStopped) {
            return self.members.values().all(|member| member.is_in_collectives());
        }
        !self.members.in_collectives().is_empty()
    }

    /// All ranks are ready: they train, if their parameters are those of the step that they were to load.
    pub(super) fn begin_training(&mut self, hashes: &[[u8; 32]], directives: &mut Vec<Directive>) {
        let Some(generation) = &self.generation else { return };
        let from = generation.resume.as_ref().map_or(0, |resume| resume.step);
        let which = match from {
            0 => "the initial parameters, before step 1".to_owned(),
            step => format!("the parameters of step {step}, which they have loaded"),
        };
        if let Some(disagreement) = disagreement(hashes) {
            let reason = format!(
                "the ranks disagree about {which}: {disagreement}. All ranks must run the same build on the same kind of \
                 hardware"
            );
            self.fail(reason, directives);
            return;
        }
        if let Some(known) = self.hash_of(from)
            && known != hashes[0]
        {
            let reason = format!(
                "the ranks have {which}, with the hash {}, and that step had the hash {}",
                hex(&hashes[0]),
                hex(&known)
            );
            self.fail(reason, directives);
            return;
        }
        if from == 0 {
            self.initial = Some(hashes[0]);
        }
        let (build, fingerprint) = self.fixed.clone().unwrap_or_default();
        directives.push(Directive::Persist(Record::Begun(Begun {
            generation: generation.stamp.generation,
            from,
            parameter_hash: hashes[0],
            build,
            fingerprint,
        })));
        for window in self.plans_of_generation().chunks(LONGEST_WINDOW as usize) {
            self.broadcast(CoordinatorBody::PlanWindow(window.to_vec()), directives);
        }
        self.phase = self.phase_of_training();
        self.release_the_leaving(directives);
        self.issue_plans(directives);
        if matches!(self.phase, Phase::Training | Phase::Paused) {
            self.grow(directives);
        }
    }

    /// Every issued plan of the present generation, those of committed steps that it makes again included.
    pub(super) fn plans_of_generation(&self) -> Vec<Plan> {
        let resume = self
            .generation
            .as_ref()
            .and_then(|generation| generation.resume.as_ref());
        let from = resume.map_or(0, |resume| resume.step);
        let again = self.past[from as usize..].iter().map(|past| past.plan.clone());
        again.chain(self.issued.iter().cloned()).collect()
    }

    /// What ranks do that make steps, after the operators' wish.
    pub(super) fn phase_of_training(&self) -> Phase {
        match self.wish {
            _ if self.committed == self.planner().total_steps() => Phase::Finishing,
            Wish::Train => Phase::Training,
            Wish::Pause => Phase::Paused,
            Wish::Stop => Phase::Stopping,
        }
    }

    /// Members that had to leave were still needed for the parts that they hold; now they are not.
    fn release_the_leaving(&mut self, directives: &mut Vec<Directive>) {
        for (peer, member) in &self.members {
            if let (Some(reason), None, None) = (&member.leaving, member.rank, &member.finished) {
                let body = CoordinatorBody::Release {
                    outcome: Outcome::Stopped,
                    reason: format!("it left the run, which goes on: {reason}"),
                };
                directives.push(self.send(*peer, body));
            }
        }
    }

    /// The ranks whose leases count: who is in the collectives, and has not lapsed yet.
    pub fn watched(&self) -> &BTreeSet<Peer> {
        match self.phase {
            Phase::Ended | Phase::Failing | Phase::WaitingForReturn => &NOBODY,
            _ => self.members.moving(),
        }
    }

    /// A rank has stopped moving. The others go on without it, unless it leaves the collectives at once.
    pub(super) fn lapsed(&mut self, peer: Peer, how: &str, directives: &mut Vec<Directive>) {
        let name = self.name(peer);
        let now = self.now;
        let is_elastic = self.facts.worlds.are_elastic();
        if !self.watched().contains(&peer) {
            return;
        }
        self.members.change(&peer, |member| member.lapsed = Some(now));
        match is_elastic {
            true => self.abort_generation(format!("{name} does not go on: {how}"), directives),
            // Its peers' own deadlines end the run, if it is not only slow.
            false => directives.push(Directive::Persist(Record::Decision {
                reason: format!("{name} does not go on: {how}; no rank can be replaced in this run"),
            })),
        }
    }

    /// Fences ranks that were told to leave the collectives and do not.
    pub(super) fn fence_the_late(&mut self, directives: &mut Vec<Directive>) {
        let (now, patience) = (self.now, self.facts.worlds.patience);
        if !self.facts.worlds.are_elastic() || self.phase == Phase::Ended {
            return;
        }
        let is_late = |since: Duration| now.saturating_sub(since) >= patience;
        let is_aborted = |regroup: &Regroup| regroup.is_aborted && is_late(regroup.since);
        let is_regrouping = self.phase == Phase::Regrouping;
        let ranks_are_late = is_regrouping && self.regroup.as_ref().is_some_and(is_aborted);
        let may_be_late = ranks_are_late || self.members.has_stray_or_lapsed();
        let late: Vec<Peer> = self
            .members
            .iter()
            .take_while(|_| may_be_late)
            .filter(|(_, member)| {
                let is_stray = member.astray.is_some_and(|(_, since)| is_late(since));
                let has_lapsed = member
                    .lapsed
                    .is_some_and(|since| now.saturating_sub(since) >= LAPSED_MAY_LEAVE);
                is_stray || (ranks_are_late || is_regrouping && has_lapsed) && member.is_in_collectives()
            })
            .map(|(peer, _)| *peer)
            .collect();
        for peer in late {
            let name = self.name(peer);
            let member = self.members.remove(&peer);
            let waited = match member.is_some_and(|member| member.lapsed.is_some()) {
                true => LAPSED_MAY_LEAVE.min(patience),
                false => patience,
            };
            let reason = format!(
                "{name} did not leave the collectives within {:.1} s after it was told to, and is fenced",
                waited.as_secs_f64()
            );
            directives.push(Directive::Persist(Record::Decision { reason: reason.clone() }));
            directives.push(Directive::Fence { peer, reason });
        }
        self.form_if_stopped(directives);
    }

    /// What a regrouping waits for, as one sentence.
    pub(super) fn regrouping(&self) -> String {
        let waited_for = self.names(self.members.in_collectives());
        let (reason, verb) = match &self.regroup {
            Some(regroup) if regroup.is_aborted => (regroup.reason.as_str(), "leave the collectives"),
            Some(regroup) => (regroup.reason.as_str(), "end the running step"),
            None => ("", "stop"),
        };
        format!("waiting for {waited_for} to {verb}, because {reason}")
    }

    /// For how many members the run waits, as one sentence.
    pub(super) fn waiting(&self) -> String {
        let there = self.members.candidates();
        let needed = self.needed();
        match (self.begins_anew, self.committed) {
            (true, 0) => format!("waiting for trainers: {there} of {needed} have joined"),
            (_, step) => {
                format!("waiting for trainers to go on after step {step}: {there} of at least {needed} are there")
            }
        }
    }
}

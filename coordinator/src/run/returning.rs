//! A new term: what earlier ones left in the ledger, and the return of the members that trained meanwhile.
//!
//! Way of data: the ledger's rows → [`Recorded`] → [`Run::recovered`], which waits for the ranks of the last generation →
//! each says how it stands. When all of them are back and train still, the generation goes on in the new term and no step is
//! lost. When one is not, or does not come, the generation is aborted like any other that lost a rank, and the next one is
//! formed.

use std::time::Duration;

use lockstep_proto::domain::{
    Checkpoint, CoordinatorBody, Directive as Urgent, DirectiveKind, Generation, JoinInfo, Outcome, Part, Plan, Return,
    Standing,
};

use crate::adaptive::Observation;
use crate::branches::{Branches, Rewind};
use crate::changes::{Change, Changes};
use crate::run::failure::{MOST_NAMED, listed};
use crate::run::machine::Answer;
use crate::run::{
    Answered, Begun, Commit, Directive, Farewell, LONGEST_WINDOW, Member, Past, Peer, Phase, Record, Refusal, Regroup,
    Run, RunFacts, Wish,
};

/// How long the other ranks are waited for after one came back in a way that ends the generation: those that do come in this
/// time are part of the next one from its start.
const GRACE: Duration = Duration::from_secs(2);
/// Members that ended under an earlier term have no stream. They get the last numbers, by rank.
const LAST_PEER: Peer = Peer::MAX;

/// What earlier terms left in the ledger.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Every generation, in order.
    pub generations: Vec<Generation>,
    /// Those of them that began to train, in order.
    pub begun: Vec<Begun>,
    /// Every branch that was closed, in order.
    pub rewinds: Vec<Rewind>,
    /// What operators have changed, in order.
    pub changes: Vec<Change>,
    /// Every order that was carried out and has a key.
    pub answers: Vec<Answered>,
    /// Every issued plan of the live branch, by step.
    pub plans: Vec<Plan>,
    /// Every committed step of the live branch, in order.
    pub committed: Vec<Commit>,
    /// The newest urgent directive.
    pub urgent: Urgent,
    /// The operators' newest wish, if no end came after it.
    pub wish: Wish,
    /// Every snapshot that stood, by step.
    pub snapshots: Vec<Vec<Part>>,
    /// The checkpoints of the live branch that can be loaded.
    pub checkpoints: Vec<Checkpoint>,
    /// Those of every branch that were committed and not refused since, in the order of their commits.
    pub stored: Vec<Checkpoint>,
    /// The newest step of the live branch that was validated; 0: none.
    pub newest_validation: u64,
    /// Who ended in which generation, by rank.
    pub farewells: Vec<(u64, u32, Farewell)>,
    /// Whether the last term came to an end: then nobody trains any more.
    pub is_ended: bool,
}

impl Recorded {
    /// Adds a record that has become durable.
    pub fn note(&mut self, record: &Record) {
        match record {
            Record::Generation(generation) => {
                self.is_ended = false;
                self.generations.push(generation.clone());
            }
            Record::Begun(begun) => self.begun.push(begun.clone()),
            Record::Wish(wish) => self.wish = *wish,
            Record::Farewell {
                generation,
                rank,
                farewell,
            } => self.farewells.push((*generation, *rank, farewell.clone())),
            Record::Plans(plans) => self.plans.extend(plans.iter().cloned()),
            Record::Urgent(urgent) => self.urgent = *urgent,
            Record::Committed(commit) => self.committed.push((**commit).clone()),
            Record::Validation { step, .. } => self.newest_validation = *step,
            Record::Snapshot { parts, .. } => self.snapshots.push(parts.clone()),
            Record::Checkpoint(checkpoint) => {
                self.checkpoints.push(*checkpoint);
                self.stored.push(*checkpoint);
            }
            Record::CheckpointRefused { checkpoint, .. } => {
                self.checkpoints.retain(|known| known != checkpoint);
                self.stored.retain(|known| known != checkpoint);
            }
            Record::Rewound(rewind) => {
                let to = rewind.to;
                self.plans.retain(|plan| plan.step <= to);
                self.committed.retain(|commit| commit.plan.step <= to);
                self.checkpoints.retain(|checkpoint| checkpoint.step <= to);
                self.newest_validation = self.newest_validation.min(to);
                self.rewinds.push(rewind.clone());
            }
            Record::Changed(change) => self.changes.push((**change).clone()),
            Record::Answered(answered) => self.answers.push((**answered).clone()),
            Record::Decision { .. } => {}
            Record::End(_) => (self.is_ended, self.wish) = (true, Wish::Train),
        }
    }
}

/// Whom a new term waits for.
#[derive(Clone, Debug)]
pub(super) struct Returning {
    /// Whether its ranks had begun to train.
    has_begun: bool,
    /// Why the generation cannot go on, and since when that is known.
    broken: Option<(String, Duration)>,
}

impl Run {
    /// A run that goes on where the ledger's last record left it.
    ///
    /// # Errors
    /// As [`Run::new`].
    pub fn recovered(facts: RunFacts, recorded: Recorded) -> Result<Run, Refusal> {
        let mut run = Run::new(facts)?;
        run.changes = Changes::of(run.facts.planner.clone(), recorded.changes).map_err(|error| {
            let reason = format!("a change that operators made earlier cannot be made again: {error}");
            Refusal::new("BAD_CHANGE", "ledger", reason)
        })?;
        let answers = recorded.answers.into_iter();
        run.answers = answers.map(|answered| (answered.key.clone(), answered)).collect();
        run.worlds_of = recorded
            .generations
            .iter()
            .map(|generation| (generation.stamp.generation, generation.ranks()))
            .collect();
        run.urgent = recorded.urgent;
        run.wish = recorded.wish;
        run.newest_validation = recorded.newest_validation;
        run.checkpoints = recorded.checkpoints;
        run.stored = recorded.stored;
        run.fixed = recorded
            .begun
            .last()
            .map(|begun| (begun.build.clone(), begun.fingerprint.clone()));
        run.initial = recorded
            .begun
            .iter()
            .find(|begun| begun.from == 0)
            .map(|begun| begun.parameter_hash);
        for commit in recorded.committed {
            run.committed = commit.plan.step;
            (run.samples, run.tokens) = (commit.samples, commit.tokens);
            run.measure(commit.metrics.step_ms);
            let seen = Observation::of(&commit.plan, &commit.metrics);
            run.policy.observe(&seen);
            run.past.push(Past {
                seen,
                plan: commit.plan,
                hash: commit.parameter_hash,
                samples: commit.samples,
                tokens: commit.tokens,
            });
        }
        run.branches = Branches::of(recorded.rewinds);
        let last = recorded.plans.last();
        run.issued_through = last.map_or(0, |last| last.step);
        let end = last.map_or(0, |last| last.first_sample.saturating_add(last.samples));
        run.cursor = run.branches.cursor_after(run.issued_through, end);
        let committed = run.committed;
        run.issued = recorded
            .plans
            .into_iter()
            .filter(|plan| plan.step > committed)
            .collect();
        let Some(mut generation) = recorded.generations.last().cloned() else {
            return Ok(run);
        };
        let number = generation.stamp.generation;
        generation.stamp.term = run.facts.term;
        let stood = recorded
            .snapshots
            .iter()
            .filter_map(|parts| parts.first())
            .filter(|part| part.generation == number)
            .map(|part| part.step);
        let resumed = generation.resume.as_ref().map_or(0, |resume| resume.step);
        run.snapshot = stood.fold(resumed, u64::max);
        if recorded.is_ended || run.facts.is_resumed {
            run.take_generation(generation);
            return Ok(run);
        }
        run.begins_anew = false;
        run.phase = Phase::WaitingForReturn;
        run.returning = Some(Returning {
            has_begun: true,
            broken: None,
        });
        if recorded.begun.last().is_none_or(|begun| begun.generation != number) {
            let reason = "its ranks had not begun to train when the coordinator of the term before was lost";
            run.returning = Some(Returning {
                has_begun: false,
                broken: Some((reason.to_owned(), Duration::ZERO)),
            });
        }
        let closed = run.branches.rewinds().last().map(|rewind| rewind.generation);
        if closed == Some(number) {
            let reason = "the run had gone back to an earlier step when the coordinator of the term before was lost";
            run.returning = Some(Returning {
                has_begun: false,
                broken: Some((reason.to_owned(), Duration::ZERO)),
            });
        }
        for (_, rank, farewell) in recorded.farewells.into_iter().filter(|(of, _, _)| *of == number) {
            run.remember(&generation, rank, farewell);
        }
        run.take_generation(generation);
        Ok(run)
    }

    /// A rank that ended under an earlier term is a member without a stream.
    fn remember(&mut self, generation: &Generation, rank: u32, farewell: Farewell) {
        let Some(place) = generation.members.get(rank as usize) else {
            return;
        };
        let mut member = Member::new(JoinInfo {
            member: place.member.clone(),
            pid: place.pid,
            host: place.host.clone(),
            ..JoinInfo::default()
        });
        member.rank = Some(rank);
        let failed = match &farewell.0 {
            Outcome::Failed { reason } => Some(reason.clone()),
            _ => None,
        };
        (member.finished, member.is_heard) = (Some(farewell), true);
        let peer = LAST_PEER - u64::from(rank);
        self.members.insert(peer, member);
        if let Some(said) = failed {
            self.phase = Phase::Failing;
            self.failing = Some((format!("{} failed: {said}", self.name(peer)), Duration::ZERO));
        }
    }

    /// A member speaks again, on a new stream.
    pub(super) fn returns(
        &mut self,
        peer: Peer,
        generation: u64,
        returned: Return,
        directives: &mut Vec<Directive>,
    ) -> Answer {
        if self.members.contains_key(&peer) {
            return Ok(None); // said twice
        }
        let Return {
            info,
            standing,
            ready,
            parts,
        } = returned;
        let is_same = |member: &Member| (member.info.pid, &member.info.host) == (info.pid, &info.host);
        let before = self.members.named(&info.member).find(|(_, member)| is_same(member));
        match before.map(|(peer, member)| (peer, member.finished.is_some())) {
            // It has opened a newer stream since, and this is a late word on one that is gone. Streams are counted as they come.
            Some((before, _)) if before > peer && before <= LAST_PEER - Peer::from(u32::MAX) => return Ok(None),
            // It has not heard that its farewell was taken, and says it again.
            Some((before, true)) if self.may_say_it_again(before, standing) => {
                if let Some(mut member) = self.members.remove(&before) {
                    if std::mem::take(&mut member.is_missed) {
                        member.finished = None;
                    }
                    member.is_gone = false;
                    self.members.insert(peer, member);
                }
                return Ok(None);
            }
            Some((before, true)) => {
                self.members.remove(&before);
            }
            // The end of its old stream is not seen yet.
            Some((before, false)) if self.comes_again(before, peer, standing, &parts, directives) => {
                return Ok(None);
            }
            Some((before, false)) => self.lost(before, directives),
            None => {}
        }
        if let Some(refusal) = self.refusal_of(&info) {
            return Err(refusal);
        }
        let name = info.member.clone();
        let reason = format!("member {name} (pid {} on {}) came back", info.pid, info.host);
        directives.push(Directive::Persist(Record::Decision { reason }));
        let waits = self.phase == Phase::WaitingForReturn;
        let place = self.generation.as_ref().filter(|_| waits).and_then(|present| {
            let place = self.place_of(&name)?;
            Some((place.rank, present.stamp.generation == generation))
        });
        self.lacking = None;
        let mut member = Member::new(info);
        member.parts = parts.into_iter().collect();
        // Where the generation had begun, its plans may still have been on their way to a rank that was ready.
        let has_begun = self.returning.as_ref().is_some_and(|returning| returning.has_begun);
        match (place, standing) {
            (Some((rank, true)), Standing::Training | Standing::Meeting) if has_begun && ready.is_some() => {
                (member.rank, member.ready) = (Some(rank), ready.map(Into::into));
                member.has_no_plans = standing == Standing::Meeting;
            }
            (_, Standing::Training | Standing::Meeting) => member.astray = Some((generation, self.now)),
            (_, Standing::Outside) => {}
        }
        let (is_rank, is_astray) = (member.rank.is_some(), member.astray.is_some());
        self.take_in(peer, member);
        if is_astray {
            let reason = "its generation is over: it went on, or ended, while this member was not heard of".to_owned();
            directives.push(self.send(peer, CoordinatorBody::Abort { reason }));
        }
        match place {
            Some(_) if !is_rank => {
                self.cannot_go_on_as_it_was(format!("member {name} did not train any more"), directives)
            }
            _ => self.look_who_is_back(directives),
        }
        self.welcome(directives);
        Ok(None)
    }

    /// Whether a member that has ended is what it was, on its new stream. One whose farewell never came is told of the end. So is
    /// one outside the collectives: its farewell was heard after the end, and an abort from before had made it take that back.
    fn may_say_it_again(&self, before: Peer, standing: Standing) -> bool {
        let is_missed = self.members.get(&before).is_some_and(|member| member.is_missed);
        let says_nothing = is_missed || standing == Standing::Outside;
        self.phase != Phase::WaitingForReturn && !(self.phase == Phase::Ended && says_nothing)
    }

    /// A rank has a new stream before the end of its old one is seen. Whatever was said to it on the old one may be lost, so its
    /// generation ends; but it is there, and the next one is not formed before it has left the collectives. Whether it was
    /// such a rank; else its old stream counts as lost.
    fn comes_again(
        &mut self,
        before: Peer,
        peer: Peer,
        standing: Standing,
        parts: &[Part],
        directives: &mut Vec<Directive>,
    ) -> bool {
        if self.phase == Phase::WaitingForReturn {
            // Nothing was said to it in this term yet.
            self.members.remove(&before);
            return false;
        }
        let is_rank = self.members.get(&before).is_some_and(|member| member.rank.is_some());
        if !is_rank || !self.facts.worlds.are_elastic() || matches!(self.phase, Phase::Failing | Phase::Ended) {
            return false;
        }
        let name = self.name(before);
        let Some(mut member) = self.members.remove(&before) else {
            return false;
        };
        self.lacking = None;
        member.parts = parts.iter().copied().collect();
        member.stopped |= standing == Standing::Outside;
        let is_aborted = self.regroup.as_ref().is_some_and(|regroup| regroup.is_aborted);
        self.members.insert(peer, member);
        let reason = format!("{name} came back: its connection had broken");
        if self.is_written() {
            // Only its farewell is missing, and it says that again.
            directives.push(Directive::Persist(Record::Decision { reason }));
            return true;
        }
        self.abort_generation(reason.clone(), directives);
        let is_inside = self.members.get(&peer).is_some_and(Member::is_in_collectives);
        if is_aborted && is_inside {
            // It was told on its old stream.
            directives.push(self.send(peer, CoordinatorBody::Abort { reason }));
        }
        true
    }

    /// A member of this name has joined as a new one.
    pub(super) fn is_new(&mut self, name: &str, directives: &mut Vec<Directive>) {
        match self.place_of(name).is_some() {
            true => self.cannot_go_on_as_it_was(format!("member {name} was started anew"), directives),
            false => self.look_who_is_back(directives),
        }
    }

    /// The generation of the term before cannot go on. The other ranks are waited for a moment longer.
    pub(super) fn cannot_go_on_as_it_was(&mut self, reason: String, directives: &mut Vec<Directive>) {
        let now = self.now;
        if let Some(returning) = &mut self.returning {
            returning.broken.get_or_insert((reason, now));
        }
        self.look_who_is_back(directives);
    }

    /// The ranks of which nobody has spoken yet in this term, by name: all of them, or the first few.
    fn absentees(&self) -> String {
        let generation = self.generation.as_ref();
        let place = |rank: &u32| generation?.members.get(*rank as usize);
        let absent = self.members.absent();
        let few = absent.iter().take(MOST_NAMED).filter_map(place);
        let few: Vec<&str> = few.map(|place| place.member.as_str()).collect();
        listed(&few, absent.len(), " and ")
    }

    fn misses_somebody(&self) -> bool {
        #[cfg(test)]
        if self.fault == Some(super::simulator::Fault::GoOnBeforeAllAreBack) {
            return self.members.absent().len() > 1;
        }
        !self.members.absent().is_empty()
    }

    fn look_who_is_back(&mut self, directives: &mut Vec<Directive>) {
        if self.phase != Phase::WaitingForReturn || self.misses_somebody() {
            return;
        }
        match self.returning.take().and_then(|returning| returning.broken) {
            Some((reason, _)) => self.form_anew(reason, directives),
            None => self.go_on(directives),
        }
    }

    /// Everybody is back: the generation goes on in this term.
    fn go_on(&mut self, directives: &mut Vec<Directive>) {
        self.returning = None;
        let stamp = self.stamp();
        let reason = format!(
            "all ranks of generation {} came back after step {}: it goes on in term {}",
            stamp.generation, self.committed, stamp.term
        );
        directives.push(Directive::Persist(Record::Decision { reason }));
        let issued: Vec<Plan> = self.issued.iter().cloned().collect();
        let from_the_start = self.plans_of_generation();
        for (plans, has_no_plans) in [(from_the_start, true), (issued, false)] {
            let ranks = self.members.unfinished_ranks().iter();
            let is_meant = |member: &Member| member.has_no_plans == has_no_plans;
            let ranks: Vec<Peer> = ranks
                .filter(|peer| self.members.get(peer).is_some_and(is_meant))
                .copied()
                .collect();
            for window in plans.chunks(LONGEST_WINDOW as usize) {
                self.send_all(&ranks, CoordinatorBody::PlanWindow(window.to_vec()), directives);
            }
        }
        let acknowledged = CoordinatorBody::Acknowledged {
            step: self.committed,
            finished: false,
        };
        self.broadcast(acknowledged, directives);
        self.phase = self.phase_of_training();
        if self.urgent.kind == DirectiveKind::Regroup && self.phase != Phase::Finishing {
            self.phase = Phase::Regrouping;
            self.regroup = Some(Regroup {
                reason: "the term before had decided that the world changes".to_owned(),
                since: self.now,
                is_aborted: false,
            });
            self.broadcast(CoordinatorBody::Directive(self.urgent), directives);
        } else {
            self.say_the_wish(directives);
        }
        self.stand(directives);
        self.issue_plans(directives);
        self.end_if_all_finished(directives);
    }

    /// Ends the generation of the term before, of which somebody is missing.
    fn form_anew(&mut self, reason: String, directives: &mut Vec<Directive>) {
        self.returning = None;
        match self.facts.worlds.are_elastic() {
            true => self.abort_generation(reason, directives),
            false => self.fail(reason, directives),
        }
    }

    /// Time has gone by: those who are not back will not be waited for any longer.
    pub(super) fn give_up_the_absent(&mut self, directives: &mut Vec<Directive>) {
        // All of them may have ended in an earlier term; then nobody comes back.
        self.look_who_is_back(directives);
        let Some(returning) = self
            .returning
            .as_ref()
            .filter(|_| self.phase == Phase::WaitingForReturn)
        else {
            return;
        };
        let patience = self.facts.return_patience;
        let reason = match &returning.broken {
            Some((reason, since)) if self.now.saturating_sub(*since) >= GRACE => reason.clone(),
            _ if self.now >= patience => format!(
                "{} did not come back within {:.1} s after the coordinator began term {}",
                self.absentees(),
                patience.as_secs_f64(),
                self.facts.term
            ),
            _ => return,
        };
        self.form_anew(reason, directives);
    }

    /// Who is waited for in a new term, as one sentence.
    pub(super) fn absent(&self) -> String {
        let why = match self.returning.as_ref().and_then(|returning| returning.broken.as_ref()) {
            Some((reason, _)) => format!("to form another generation, because {reason}"),
            None => "to go on where the term before ended".to_owned(),
        };
        format!(
            "this coordinator began term {} after step {}: waiting for {} to come back, {why}",
            self.facts.term,
            self.committed,
            self.absentees()
        )
    }
}

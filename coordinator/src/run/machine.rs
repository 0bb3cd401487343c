//! The transitions: one function per event, called by [`Run::step`].

use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::domain::{CoordinatorBody, Stamp, StepReport, Validation};

use crate::adaptive::Observation;
use crate::run::reach::Stands;
use crate::run::{Commit, Decision, Directive, Event, Member, Past, Peer, Phase, Record, Refusal, Reported, Run};

/// What a transition answers besides its directives.
pub(super) type Answer = Result<Option<String>, Refusal>;

impl Run {
    /// Decides about one event. `now`: time since the coordinator began; it never goes back.
    pub fn step(&mut self, event: Event, now: Duration) -> Decision {
        let (mut directives, mut effect) = (Vec::new(), None);
        self.now = now;
        let answer = match event {
            Event::Join { peer, info } => self.join(peer, info, &mut directives),
            Event::Return {
                peer,
                generation,
                returned,
            } => self.returns(peer, generation, *returned, &mut directives),
            Event::CommId { peer, stamp, id } => self.pass_comm_id(peer, stamp, id, &mut directives),
            Event::Ready { peer, stamp, ready } => self.ready(peer, stamp, ready, &mut directives),
            Event::Progress { peer, progress } => {
                self.members.change(&peer, |member| {
                    if progress.counter >= member.progress.counter {
                        member.progress = progress;
                    }
                });
                Ok(None)
            }
            Event::Report { peer, report } => self.report(peer, report, &mut directives),
            Event::Holds { peer, stamp, part } => self.holds(peer, stamp, part, &mut directives),
            Event::Stopped {
                peer,
                stamp,
                cause,
                parts,
                checkpoint_is_bad,
                drifted,
                unusable,
            } => {
                let counts = self.phase != Phase::Ended && self.present(peer, stamp).is_some();
                if let (true, Some(cause), true) = (checkpoint_is_bad, &cause, counts) {
                    self.refuse_checkpoint(cause, &mut directives);
                }
                if let (Some(rank), Some(cause), true) = (drifted, &cause, counts) {
                    self.set_apart(rank, cause, &mut directives);
                }
                // What was to come on a branch that is closed is no concern of the one that is made anew.
                if let (Some(step), Some(cause), true) = (unusable, &cause, counts && !self.has_gone_back()) {
                    self.note_unusable(step, cause);
                }
                self.stopped(peer, stamp, cause, parts, &mut directives)
            }
            Event::Wrote {
                peer,
                stamp,
                step,
                written,
            } => self.wrote(peer, stamp, step, written, &mut directives),
            Event::Commissioned { checkpoint, result } => self.commissioned(checkpoint, result, &mut directives),
            Event::Leaving { peer, reason } => self.leaving(peer, &reason, &mut directives),
            Event::Finished {
                peer,
                stamp,
                outcome,
                step,
            } => self.finished((peer, stamp), outcome, step, &mut directives),
            Event::MemberLost { peer } => {
                self.lost(peer, &mut directives);
                Ok(None)
            }
            Event::Lapsed { peer, how } => {
                self.lapsed(peer, &how, &mut directives);
                Ok(None)
            }
            Event::Tick => {
                self.end_if_failing_is_over(now, &mut directives);
                self.fence_the_late(&mut directives);
                self.give_up_the_absent(&mut directives);
                Ok(None)
            }
            Event::Pause => self.pause(&mut directives),
            Event::Resume => self.resume(&mut directives),
            Event::Checkpoint => self.ask_for_checkpoint(&mut directives),
            Event::Stop => self.stop("an operator", &mut directives),
            Event::Abandon => self.abandon(&mut directives),
            Event::Ordered(order) => self.ordered(&order, &mut effect, &mut directives),
        };
        #[cfg(test)]
        if let Some(fault) = self.fault {
            fault.distort(&mut directives);
        }
        let (said, refusal) = match answer {
            Ok(said) => (said, None),
            Err(refusal) => (Some(refusal.reason.clone()), Some(refusal)),
        };
        Decision {
            reason: said.unwrap_or_else(|| self.reason()),
            directives,
            refusal,
            effect,
        }
    }

    /// What the run waits for now, and why, as one sentence.
    pub fn reason(&self) -> String {
        let ranks = self.ranks();
        let total = self.planner().total_steps();
        match self.phase {
            Phase::WaitingForMembers => self.waiting(),
            Phase::WaitingForReturn => self.absent(),
            Phase::Regrouping => self.regrouping(),
            Phase::WaitingForCommId => {
                let first = self.members.of_rank(0);
                let name = first.map_or_else(|| "rank 0".to_owned(), |(peer, _)| self.name(peer));
                format!("waiting for {name} to make the communicator id")
            }
            Phase::WaitingForReady => {
                let ready = self.members.ready();
                let load = match self
                    .generation
                    .as_ref()
                    .and_then(|generation| generation.resume.as_ref())
                {
                    Some(resume) => format!("load step {}", resume.step),
                    None => "initialise".to_owned(),
                };
                let late = self.names(self.members.unready());
                format!("waiting for {late} to connect and {load}: {ready} of {ranks} are ready")
            }
            Phase::Training => format!(
                "training {total} steps on {ranks} {}",
                if ranks == 1 { "rank" } else { "ranks" }
            ),
            Phase::Paused => "paused by an operator: the ranks wait at the end of a step for resume or stop".to_owned(),
            Phase::Finishing | Phase::Stopping if !self.committing.is_empty() && self.all_said_farewell() => {
                let steps: Vec<String> = self
                    .committing
                    .iter()
                    .map(|checkpoint| checkpoint.step.to_string())
                    .collect();
                format!(
                    "waiting for the checkpoint of step {} to be committed",
                    steps.join(" and ")
                )
            }
            Phase::Stopping => "stopping: the ranks end the running step, which is the last one".to_owned(),
            Phase::Finishing => format!("all {total} steps are made: waiting for the ranks to write their files"),
            Phase::Failing => self
                .failing
                .as_ref()
                .map(|failing| failing.0.clone())
                .unwrap_or_default(),
            Phase::Ended => self.end.as_ref().map(|end| end.reason.clone()).unwrap_or_default(),
        }
    }

    /// Sends to every rank that has not finished.
    pub(super) fn broadcast(&self, body: CoordinatorBody, directives: &mut Vec<Directive>) {
        self.send_all(self.members.unfinished_ranks(), body, directives);
    }

    /// Sends the same to all of these.
    pub(super) fn send_all<'a>(
        &self,
        to: impl IntoIterator<Item = &'a Peer>,
        body: CoordinatorBody,
        directives: &mut Vec<Directive>,
    ) {
        let (stamp, body) = (self.stamp(), Arc::new(body));
        directives.extend(to.into_iter().map(|to| Directive::Send {
            to: *to,
            stamp,
            body: body.clone(),
        }));
    }

    pub(super) fn send(&self, to: Peer, body: CoordinatorBody) -> Directive {
        Directive::Send {
            to,
            stamp: self.stamp(),
            body: Arc::new(body),
        }
    }

    /// The member and its rank, if its message is of the present generation. Older messages are ignored.
    pub(super) fn present(&self, peer: Peer, stamp: Stamp) -> Option<(u32, &Member)> {
        let member = self.members.get(&peer)?;
        let generation = self.generation.as_ref()?;
        self.is_present(generation.stamp, stamp).then_some(())?;
        Some((member.rank?, member))
    }

    fn is_present(&self, present: Stamp, said: Stamp) -> bool {
        #[cfg(test)]
        if self.fault == Some(super::simulator::Fault::BelieveOlderGenerations) {
            return true;
        }
        present == said
    }

    fn join(&mut self, peer: Peer, info: lockstep_proto::domain::JoinInfo, directives: &mut Vec<Directive>) -> Answer {
        if self.members.get(&peer).is_some_and(|member| member.info == info) {
            return Ok(None); // said twice
        }
        if let Some(refusal) = self.refusal_of(&info) {
            return Err(refusal);
        }
        self.admit(peer, info, directives);
        Ok(None)
    }

    fn pass_comm_id(&mut self, peer: Peer, stamp: Stamp, id: Vec<u8>, directives: &mut Vec<Directive>) -> Answer {
        let from_lowest = self.present(peer, stamp).is_some_and(|(rank, _)| rank == 0);
        if self.phase != Phase::WaitingForCommId || !from_lowest {
            return Ok(None);
        }
        self.phase = Phase::WaitingForReady;
        let ranks = self.members.iter().filter(|(_, member)| member.rank.is_some());
        let others = ranks.map(|(other, _)| other).filter(|other| **other != peer);
        self.send_all(others, CoordinatorBody::CommId(id), directives);
        Ok(None)
    }

    fn ready(&mut self, peer: Peer, stamp: Stamp, ready: Stands, directives: &mut Vec<Directive>) -> Answer {
        if self.phase != Phase::WaitingForReady || self.present(peer, stamp).is_none() {
            return Ok(None);
        }
        self.members.change(&peer, |member| {
            member.ready.get_or_insert(ready);
        });
        if !self.members.unready().is_empty() {
            return Ok(None);
        }
        let mut hashes = vec![None; self.ranks() as usize];
        for member in self.members.values() {
            if let Some(rank) = member.rank {
                hashes[rank as usize] = member.ready.as_ref().map(|ready| ready.hash);
            }
        }
        let Some(hashes) = hashes.into_iter().collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        self.begin_training(&hashes, directives);
        Ok(None)
    }

    fn report(&mut self, peer: Peer, report: StepReport, directives: &mut Vec<Directive>) -> Answer {
        let Some((rank, _)) = self.present(peer, report.stamp) else {
            return Ok(None);
        };
        let phase_takes_reports = matches!(
            self.phase,
            Phase::Training
                | Phase::Paused
                | Phase::Stopping
                | Phase::Finishing
                | Phase::Failing
                | Phase::Regrouping
                | Phase::WaitingForReturn
        );
        if !phase_takes_reports {
            return Ok(None);
        }
        let step = report.step;
        if step > self.committed && self.has_gone_back() {
            return Ok(None); // of the branch that was closed while this rank still trained
        }
        if report.rank != rank {
            let reason = format!("rank {rank} reported step {step} under the rank {}", report.rank);
            self.fail(reason, directives);
        } else if step > self.issued_through || step == 0 {
            let reason = format!("rank {rank} reported step {step}, for which no plan was issued");
            self.fail(reason, directives);
        } else if step <= self.committed {
            self.repeated(peer, rank, &report, directives);
        } else {
            self.peak_memory_mib = self.peak_memory_mib.max(report.peak_memory_mib);
            self.note(peer, rank, report, directives);
        }
        Ok(None)
    }

    /// A report of a committed step: said twice, or with the validation that came later. It must not differ.
    fn repeated(&mut self, peer: Peer, rank: u32, report: &StepReport, directives: &mut Vec<Directive>) {
        let step = report.step;
        if let Some(known) = self.hash_of(step)
            && known != report.parameter_hash
        {
            let reason = format!(
                "step {step} is committed with the hash {}, and rank {rank} now reports {} for it",
                hex(&known),
                hex(&report.parameter_hash)
            );
            // Made again from the snapshot it may come out right: then something had changed in somebody's memory.
            match self.facts.worlds.are_elastic() && self.is_making_steps() {
                true => self.abort_generation(reason, directives),
                false => self.fail(reason, directives),
            }
            return;
        }
        self.members
            .change(&peer, |member| member.reported = member.reported.max(step));
        if rank == 0
            && let Some(validation) = report.validation
        {
            self.keep_validation(step, validation, directives);
        }
        if self.phase == Phase::Ended {
            return;
        }
        directives.push(self.send(
            peer,
            CoordinatorBody::Acknowledged {
                step: self.committed,
                finished: false,
            },
        ));
    }

    /// A report of a step that is not committed yet.
    fn note(&mut self, peer: Peer, rank: u32, report: StepReport, directives: &mut Vec<Directive>) {
        let step = report.step;
        if rank == 0 {
            let numbers = report.metrics.as_ref().map(|metrics| {
                // A skipped step has none that counts, and says why.
                let of_step = |value| metrics.skipped.as_ref().map_or(value, |_| 0.0);
                [
                    ("loss", of_step(metrics.loss)),
                    ("gradient norm", of_step(metrics.grad_norm)),
                    ("update norm", metrics.update_norm),
                    ("effective learning rate", metrics.effective_learning_rate),
                    ("time", metrics.step_ms),
                ]
            });
            let Some(numbers) = numbers else {
                self.fail(
                    format!("rank 0 reported step {step} without the step's metrics"),
                    directives,
                );
                return;
            };
            if let Some((what, value)) = numbers.into_iter().find(|(_, value)| !value.is_finite()) {
                let reason = format!(
                    "the {what} of step {step} is {value}: the run stops, and the parameters of step {} are the last \
                     good ones. Lower the learning rate, or look at the samples of that step",
                    step - 1
                );
                self.fail(reason, directives);
                return;
            }
        }
        let ranks = self.ranks() as usize;
        let reported = self.reports.entry(step).or_insert_with(|| Reported {
            hashes: vec![None; ranks],
            missing: ranks,
            metrics: None,
            validation: None,
        });
        let place = &mut reported.hashes[rank as usize];
        match place.replace(report.parameter_hash) {
            None => reported.missing -= 1,
            Some(before) if before != report.parameter_hash => {
                let (before, now) = (hex(&before), hex(&report.parameter_hash));
                let reason = format!("rank {rank} reported step {step} twice, with the hash {before} and then {now}");
                self.fail(reason, directives);
                return;
            }
            Some(_) => {}
        }
        if rank == 0 {
            reported.metrics = report.metrics.or(reported.metrics.take());
            reported.validation = report.validation.or(reported.validation);
        }
        self.members
            .change(&peer, |member| member.reported = member.reported.max(step));
        self.commit(directives);
    }

    /// Commits every step that all ranks have reported, in order.
    fn commit(&mut self, directives: &mut Vec<Directive>) {
        let before = self.committed;
        let mut planned_stop = None;
        while let Some(reported) = self.reports.get(&(self.committed + 1)) {
            let Some(hashes) = self.complete(reported) else { break };
            let step = self.committed + 1;
            if let Some(disagreement) = disagreement(&hashes) {
                let reason = format!(
                    "the ranks disagree about the parameters after step {step}: {disagreement}. Step {before} stands",
                    before = step - 1
                );
                self.fail(reason, directives);
                return;
            }
            let (Some(plan), Some(reported)) = (self.issued.pop_front(), self.reports.remove(&step)) else {
                return;
            };
            self.committed = step;
            self.fruitless = 0;
            let metrics = reported.metrics.unwrap_or_default();
            self.measure(metrics.step_ms);
            self.samples += plan.samples;
            self.tokens = self.tokens.saturating_add(metrics.tokens);
            planned_stop = plan.stop.then_some(step).or(planned_stop);
            let seen = Observation::of(&plan, &metrics);
            self.policy.observe(&seen);
            self.past.push(Past {
                plan: plan.clone(),
                hash: hashes[0],
                samples: self.samples,
                tokens: self.tokens,
                seen,
            });
            let commit = Commit {
                stamp: self.stamp(),
                plan,
                parameter_hash: hashes[0],
                metrics,
                ranks: self.ranks(),
                samples: self.samples,
                tokens: self.tokens,
                noise_scale: self.policy.noise_scale(),
            };
            directives.push(Directive::Persist(Record::Committed(Box::new(commit))));
            if let Some(validation) = reported.validation {
                self.keep_validation(step, validation, directives);
            }
        }
        if self.committed == before || self.phase == Phase::Ended {
            return;
        }
        self.broadcast(
            CoordinatorBody::Acknowledged {
                step: self.committed,
                finished: false,
            },
            directives,
        );
        if let Some(step) = planned_stop {
            self.stop_as_planned(step, directives);
        }
        self.hear_farewells(false, directives);
        self.commission(directives);
        let all_made = self.committed == self.planner().total_steps();
        if all_made && matches!(self.phase, Phase::Training | Phase::Paused | Phase::Stopping) {
            self.phase = Phase::Finishing;
        }
        self.issue_plans(directives);
    }

    /// The hash of a committed step, or of the initial parameters for step 0.
    pub(super) fn hash_of(&self, step: u64) -> Option<[u8; 32]> {
        match step.checked_sub(1) {
            None => self.initial,
            Some(index) => self.past.get(index as usize).map(|past| past.hash),
        }
    }

    /// The hash of every rank, once all of them are there.
    fn complete(&self, reported: &Reported) -> Option<Vec<[u8; 32]>> {
        #[cfg(test)]
        if self.fault == Some(super::simulator::Fault::CommitBeforeEveryHash) {
            let first = *reported.hashes.iter().flatten().next()?;
            return Some(reported.hashes.iter().map(|hash| hash.unwrap_or(first)).collect());
        }
        if reported.missing > 0 {
            return None;
        }
        reported.hashes.iter().copied().collect()
    }

    fn keep_validation(&mut self, step: u64, validation: Validation, directives: &mut Vec<Directive>) {
        if step <= self.newest_validation {
            return;
        }
        if !validation.loss.is_finite() {
            let reason = format!(
                "the validation loss after step {step} is {}: the run stops",
                validation.loss
            );
            self.fail(reason, directives);
            return;
        }
        self.newest_validation = step;
        directives.push(Directive::Persist(Record::Validation { step, validation }));
    }
}

/// Which ranks have which hash, if they do not all have the same one.
pub(super) fn disagreement(hashes: &[[u8; 32]]) -> Option<String> {
    if hashes.iter().all(|hash| *hash == hashes[0]) {
        return None;
    }
    let mut groups: Vec<([u8; 32], Vec<String>)> = Vec::new();
    for (rank, hash) in hashes.iter().enumerate() {
        match groups.iter_mut().find(|(known, _)| known == hash) {
            Some((_, ranks)) => ranks.push(rank.to_string()),
            None => groups.push((*hash, vec![rank.to_string()])),
        }
    }
    let said = |(hash, ranks): &([u8; 32], Vec<String>)| match &ranks[..] {
        [rank] => format!("rank {rank} has the hash {}", hex(hash)),
        ranks => format!("ranks {} have the hash {}", ranks.join(", "), hex(hash)),
    };
    (groups.len() > 1).then(|| groups.iter().map(said).collect::<Vec<_>>().join("; "))
}

pub(super) fn hex(hash: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

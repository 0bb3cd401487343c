//! Drives the machine through a random schedule with a virtual clock and a model of the trainers (`trainers`): joins in
//! any order, messages delayed, repeated and overtaken by those of other members, strangers, stale generations, pauses,
//! stops, deaths, members that come late and that must leave, memory that changes, device threads that hang, members that cannot be heard, samples that no step can be made with, wrong hashes, coordinators that are killed and replaced, also in the middle of a transaction (`torn`), or replaced while they live on (`zombie`), streams that break, networks that fall apart. `Checker` looks at every decision and reports
//! the first broken invariant by number. With `LOCKSTEP_SIMULATOR_TRACE` set every event and decision is printed.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use lockstep_proto::domain::{Checkpoint, Outcome, RunEnd, Stamp, StepMetrics, StepReport};
use rand::Rng;
use rand::rngs::StdRng;

use super::tests::info;
use super::{Directive, Event, Leases, Phase, Recorded, Run};
use crate::ledger::Shadow;

mod checker;
mod coverage;
mod fault;
mod set_up;
mod torn;
mod trainers;
mod zombie;

use checker::Checker;
pub(super) use checker::Violation;
pub(super) use coverage::{Coverage, IMPORTANT};
pub(super) use fault::Fault;
pub(super) use set_up::simulate;
use set_up::{is_a_command, leases};
pub(super) use torn::Tears;
use torn::Torn;
use trainers::Trainers;
use zombie::Zombie;
pub(super) use zombie::Zombies;

/// Much longer than a tick, and short enough that a schedule sees some lapse.
const LEASE: Duration = Duration::from_millis(400);

/// What goes wrong in a schedule, besides members and coordinators that come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Nothing,
    Pauses,
    Stop,
    Abandonment,
    WrongHash,
    WrongInitialHash,
    NotFinite,
}

/// Members that come and go in a schedule: how many more.
#[derive(Clone, Copy, Debug, Default)]
struct Turnover {
    deaths: u32,
    joins: u32,
    drains: u32,
    hangs: u32,
    restarts: u32,
    drifts: u32,
    mutes: u32,
    breaks: u32,
    cuts: u32,
    failures: u32,
}

/// How a schedule went.
pub(super) struct Report {
    pub(super) end: RunEnd,
    pub(super) committed: u64,
    /// Generations that were formed.
    pub(super) generations: u64,
    /// Generations that resumed from a snapshot.
    pub(super) resumed: u64,
    /// Steps that were made again.
    pub(super) replayed: u64,
    /// Coordinators that took the run over.
    pub(super) restarts: u64,
    /// Checkpoints that were committed.
    pub(super) checkpoints: u64,
    /// Generations that resumed from a checkpoint.
    pub(super) loaded: u64,
    /// Generations that went on in another term.
    pub(super) went_on: u64,
    /// Members whose memory changed.
    pub(super) drifts: u64,
    /// Device threads that hung.
    pub(super) hung: u64,
    /// Members that could not be heard for a while.
    pub(super) muted: u64,
    /// Leases that lapsed.
    pub(super) lapsed: u64,
    /// Branches that were closed.
    pub(super) rewinds: u64,
    /// Branches that were closed because operators asked for it.
    pub(super) operators_rewinds: u64,
    /// Whether the run made the step after which operators had planned that it stops.
    pub(super) is_stopped_as_planned: bool,
    /// Steps that could not be made.
    pub(super) unusable: u64,
    /// Coordinators that were killed in the middle of a transaction.
    pub(super) tears: Tears,
    /// Coordinators that were replaced and lived on.
    pub(super) zombies: Zombies,
    /// Streams that broke between two that live.
    pub(super) breaks: u64,
    /// Networks that fell apart.
    pub(super) cuts: u64,
    /// What was decided on.
    pub(super) coverage: Coverage,
}

struct Simulation {
    rng: StdRng,
    /// When memory changes, so that schedules without that are what they were.
    odd: StdRng,
    /// What becomes of coordinators that are killed, for the same reason.
    wild: StdRng,
    torn: Option<Torn>,
    tears: Tears,
    zombie: Option<Zombie>,
    zombies: Zombies,
    breaks: u64,
    cuts: u64,
    failures: u64,
    coverage: Coverage,
    run: Run,
    shadow: Shadow,
    checker: Checker,
    /// What is durable.
    ledger: Recorded,
    /// Manifests that are being committed.
    commissions: VecDeque<Checkpoint>,
    restarts: u64,
    lapsed: u64,
    leases: Leases,
    /// Whether a coordinator was lost while a world that cannot be formed anew was being formed.
    lost_early: bool,
    trainers: Trainers,
    now: Duration,
    trouble: Trouble,
    /// The step (and trainer) at which the trouble strikes.
    strikes: u64,
    turnover: Turnover,
    least: usize,
    commands: Vec<(u32, Event)>,
    /// Whether every event and decision is printed.
    is_traced: bool,
}

impl Simulation {
    fn run_to_the_end(mut self, steps: u64) -> Result<Report, Violation> {
        for _ in 0..120_000 {
            let is_over = self.run.phase() == Phase::Ended && self.torn.is_none();
            if is_over && self.trainers.unanswered().is_none() {
                break;
            }
            self.one_thing()?;
            self.tear()?;
        }
        let Some(end) = self.run.end().cloned() else {
            return Err(Violation::new(
                10,
                format!("the schedule never ended: {}", self.run.reason()),
            ));
        };
        if let Some(name) = self.trainers.unanswered() {
            return Err(Violation::new(8, format!("after the end {name} was never answered")));
        }
        let committed = self.run.committed();
        let is_elastic = self.run.facts.worlds.are_elastic();
        let fell_apart = !is_elastic && (self.trainers.died || self.trainers.broke || self.cuts > 0 || self.lost_early)
            || self.trainers.failed
            || self.cuts > 0 && end.reason.contains("generations in a row");
        // By the same samples the same step comes again, until the run has gone back as often as it may.
        let comes_again = self.run.facts.rewinds.is_some_and(|rule| !rule.skips) && self.checker.rewinds > 0;
        // What operators planned: the checker has seen that it is that very step.
        let stopped_as_planned = self.checker.stop_made.is_some() && !matches!(end.outcome, Outcome::Failed { .. });
        let calm = matches!(self.trouble, Trouble::Nothing | Trouble::Pauses) && !fell_apart && !comes_again;
        // A drain of a member that the run cannot miss stops it.
        let stopped = matches!(end.outcome, Outcome::Stopped) && end.reason.contains("must leave");
        let drained = self.trainers.drained && (stopped || self.run.wish == super::Wish::Stop);
        if calm && !drained && !stopped_as_planned && (end.outcome != Outcome::Completed || committed != steps) {
            return Err(Violation::new(
                10,
                format!("a calm schedule of {steps} steps ended with: {}", end.reason),
            ));
        }
        Ok(Report {
            end,
            committed,
            generations: self.checker.generations,
            resumed: self.checker.resumed,
            replayed: self.trainers.replayed,
            restarts: self.restarts,
            checkpoints: self.checker.checkpoints,
            loaded: self.checker.loaded,
            went_on: self.checker.went_on,
            drifts: self.trainers.drifts,
            hung: self.trainers.hung,
            muted: self.trainers.muted,
            lapsed: self.lapsed,
            rewinds: self.checker.rewinds,
            operators_rewinds: self.checker.operators_rewinds,
            is_stopped_as_planned: self.checker.stop_made.is_some(),
            unusable: self.trainers.unusable,
            tears: self.tears,
            zombies: self.zombies,
            breaks: self.breaks,
            cuts: self.cuts,
            coverage: self.coverage,
        })
    }

    fn one_thing(&mut self) -> Result<(), Violation> {
        let trainer = self.trainers.somebody(&mut self.rng);
        if self.turnover.drifts > 0 && self.odd.random_ratio(1, 150) && self.trainers.drift(trainer) {
            self.turnover.drifts -= 1;
            return Ok(());
        }
        match self.rng.random_range(0..24) {
            0 => {
                let passed = Duration::from_millis(self.rng.random_range(1..120));
                self.now += passed;
                self.zombie_ticks(passed);
                self.look_at_leases()?;
                self.decide(Event::Tick)
            }
            1 => self.command(),
            2 if self.rng.random_ratio(1, 10) => self.stranger(trainer),
            2 => self.commission(),
            3..=8 => self.deliver_to_coordinator(trainer),
            9..=14 => {
                self.trainers.deliver(trainer);
                match self.trainers.obeyed.take() {
                    Some(what) => Err(Violation::new(16, what)),
                    None => Ok(()),
                }
            }
            15..=17 => {
                let wrong = self.trouble == Trouble::WrongInitialHash && trainer == 0;
                self.trainers.advance(trainer, wrong, &mut self.rng);
                Ok(())
            }
            18 if self.rng.random_ratio(1, 8) => self.turn_over(trainer),
            18 if self.wild.random_ratio(1, 8) => {
                self.fall_apart(trainer);
                Ok(())
            }
            18 => self.hear_what_broke(),
            19 => {
                self.replace_the_lost();
                Ok(())
            }
            _ => {
                let odd = (self.trouble == Trouble::WrongHash).then_some(self.strikes);
                let not_finite = (self.trouble == Trouble::NotFinite).then_some(self.strikes);
                self.trainers.make_a_step(odd, not_finite);
                Ok(())
            }
        }
    }

    /// What the coordinator's service does on every tick. Members that nothing reached may be reached again.
    fn look_at_leases(&mut self) -> Result<(), Violation> {
        let said = self.trainers.progress();
        for (peer, progress) in &said {
            self.leases.heard(*peer, progress, self.now);
        }
        // The machine hears all of them, and shows them to people; one is enough to see that it decides nothing by them.
        if let Some((peer, progress)) = said.into_iter().next() {
            self.decide(Event::Progress { peer, progress })?;
        }
        for (peer, how) in self.leases.lapsed(self.run.watched(), self.now) {
            self.lapsed += 1;
            self.decide(Event::Lapsed { peer, how })?;
        }
        if self.rng.random_ratio(1, 8) {
            self.trainers.heal(&mut self.wild);
        }
        Ok(())
    }

    fn decide(&mut self, event: Event) -> Result<(), Violation> {
        self.checker.before(&event, &self.run);
        let joins = match &event {
            Event::Join { peer, .. } | Event::Return { peer, .. } => self.trainers.index_of(*peer),
            _ => None,
        };
        let told = self.is_traced.then(|| format!("{:?} {event:?}", self.now));
        self.coverage.note(self.run.phase(), &event);
        let command = self
            .torn
            .as_ref()
            .and_then(|_| is_a_command(&event).then(|| event.clone()));
        let decision = self
            .shadow
            .decide(&mut self.run, event, self.now)
            .map_err(|difference| Violation::new(14, difference))?;
        if let Some(told) = told {
            println!("{told}\n    -> {:?}: {}", self.run.phase(), decision.reason);
            for directive in &decision.directives {
                println!("    {directive:?}");
            }
        }
        self.checker.after(&decision, &self.run, &self.trainers)?;
        let Some(decision) = self.hold(command, joins, decision) else {
            return Ok(());
        };
        if let Some(trainer) = joins.and_then(|peer| self.trainers.all.get_mut(peer)) {
            trainer.refused |= decision.refusal.is_some();
        }
        for directive in decision.directives {
            self.carry_out(directive);
        }
        Ok(())
    }

    /// What the coordinator's service does with a directive.
    fn carry_out(&mut self, directive: Directive) {
        match directive {
            Directive::Send { to, stamp, body } => self.trainers.send(to, stamp, (*body).clone()),
            Directive::Fence { peer, .. } => self.trainers.fence(peer),
            Directive::Persist(record) => self.ledger.note(&record),
            Directive::Commit(commission) => self.commissions.push_back(commission.checkpoint),
            Directive::End(_) => {}
        }
    }

    /// The store takes the oldest manifest that it was given, or does not.
    fn commission(&mut self) -> Result<(), Violation> {
        let Some(checkpoint) = self.commissions.pop_front() else {
            return Ok(());
        };
        let result = match self.rng.random_ratio(1, 6) {
            true => Err("the store does not answer".to_owned()),
            false => Ok(()),
        };
        self.decide(Event::Commissioned { checkpoint, result })
    }

    /// The coordinator is killed, and started again on what is durable.
    fn restart(&mut self) -> Result<(), Violation> {
        self.bury();
        self.restart_beside(&BTreeSet::new())
    }

    /// Another one begins on what is durable. Some streams stay with the one before.
    fn restart_beside(&mut self, stay: &BTreeSet<usize>) -> Result<(), Violation> {
        let mut facts = self.run.facts.clone();
        facts.term += 1;
        if let Some(last) = self.ledger.generations.last() {
            facts.last_generation = last.stamp.generation;
        }
        let begun = self.ledger.begun.last().map(|begun| begun.generation);
        let newest = self.ledger.generations.last().map(|last| last.stamp.generation);
        self.lost_early |= begun != newest;
        let term = facts.term;
        self.trainers.know_only(&self.ledger)?;
        if self.is_traced {
            println!("{:?} the coordinator is killed; term {term} begins", self.now);
        }
        let recovered = Run::recovered(facts, self.ledger.clone());
        let mut run = recovered.map_err(|refusal| Violation::new(10, refusal.reason))?;
        run.fault = self.run.fault;
        self.checker.restarted(&run)?;
        self.shadow = Shadow::of(&run);
        self.run = run;
        self.restarts += 1;
        self.now = Duration::ZERO;
        self.leases = leases(self.run.fault);
        self.commissions.clear();
        self.trainers.lose_streams(term, stay, &mut self.rng);
        Ok(())
    }

    fn command(&mut self) -> Result<(), Violation> {
        let Some((wait, _)) = self.commands.first_mut() else {
            return Ok(());
        };
        *wait = wait.saturating_sub(10);
        if *wait > 0 {
            return Ok(());
        }
        let (_, event) = self.commands.remove(0);
        self.decide(event)
    }

    /// Somebody who must not be let in, or who speaks for a generation that is over.
    fn stranger(&mut self, like: usize) -> Result<(), Violation> {
        let peer = u64::MAX / 2;
        if self.rng.random() {
            let mut info = info("stranger");
            info.config_hash = "another".to_owned();
            self.decide(Event::Join { peer, info })?;
            return self.decide(Event::MemberLost { peer });
        }
        let stamp = Stamp {
            generation: self.run.stamp().generation.saturating_sub(1),
            ..self.run.stamp()
        };
        if self.rng.random() {
            // Of one that is still in a generation that is over, such a word would count, and what it says would have to be true.
            let peer = self.trainers.peer(like);
            if self
                .run
                .members
                .get(&peer)
                .is_some_and(|member| member.astray.is_some())
            {
                return Ok(());
            }
            return self.decide(Event::Stopped {
                peer: self.trainers.peer(like),
                stamp,
                cause: None,
                parts: Vec::new(),
                checkpoint_is_bad: false,
                drifted: None,
                unusable: None,
            });
        }
        let report = StepReport {
            stamp,
            rank: like as u32,
            step: self.run.committed() + 1,
            parameter_hash: [255; 32],
            metrics: Some(StepMetrics::default()),
            validation: None,
            peak_memory_mib: 1,
        };
        let peer = self.trainers.peer(like);
        self.decide(Event::Report { peer, report })
    }

    fn deliver_to_coordinator(&mut self, trainer: usize) -> Result<(), Violation> {
        if self.trainers.all[trainer].muted {
            return Ok(());
        }
        if self.trainers.is_with_the_zombie(trainer) {
            self.zombie_hears(trainer);
            return Ok(());
        }
        let Some(event) = self.trainers.all[trainer].to_coordinator.pop_front() else {
            return Ok(());
        };
        let repeatable = !matches!(event, Event::MemberLost { .. });
        if repeatable && self.rng.random_ratio(1, 8) {
            self.decide(event.clone())?;
            if self.rng.random() && self.trainers.all[trainer].alive {
                self.trainers.all[trainer].to_coordinator.push_back(event.clone());
            }
        }
        self.decide(event)
    }

    /// Somebody dies, comes, must leave, or hangs; or the coordinator dies.
    fn turn_over(&mut self, trainer: usize) -> Result<(), Violation> {
        let is_over = self.run.phase() == Phase::Ended;
        let kind = self.rng.random_range(0..6);
        let left = match kind {
            0 => &mut self.turnover.deaths,
            1 => &mut self.turnover.joins,
            2 => &mut self.turnover.drains,
            3 => &mut self.turnover.restarts,
            4 => &mut self.turnover.mutes,
            _ => &mut self.turnover.hangs,
        };
        if *left == 0 || is_over || self.torn.is_some() && kind == 3 {
            return Ok(());
        }
        let happened = match kind {
            0 => self.trainers.kill(trainer, &mut self.rng),
            1 => {
                self.trainers.add();
                true
            }
            2 => self.trainers.drain(trainer),
            3 => {
                *left -= 1;
                return match self.wild.random_range(0..6) {
                    0 => self.restart(),
                    1 | 2 => self.replace(),
                    _ => {
                        self.begin_to_tear();
                        Ok(())
                    }
                };
            }
            4 => self.trainers.mute(trainer),
            _ => {
                let is_told = self.rng.random();
                self.trainers.hang(trainer, is_told)
            }
        };
        if happened {
            *left -= 1;
        }
        Ok(())
    }

    /// A stream breaks, the network falls apart, or a rank fails.
    fn fall_apart(&mut self, trainer: usize) {
        let is_over = self.run.phase() == Phase::Ended;
        let kind = self.wild.random_range(0..3);
        let (left, count) = match kind {
            0 => (&mut self.turnover.breaks, &mut self.breaks),
            1 => (&mut self.turnover.cuts, &mut self.cuts),
            _ => (&mut self.turnover.failures, &mut self.failures),
        };
        if *left == 0 || is_over {
            return;
        }
        let happened = match kind {
            0 => self.trainers.break_stream(trainer, &mut self.wild),
            1 => {
                let (from_each_other, from_the_coordinator) = (self.wild.random(), self.wild.random());
                self.trainers
                    .part(from_each_other, from_the_coordinator, &mut self.wild)
            }
            _ => self.trainers.fail(trainer),
        };
        *left -= u32::from(happened);
        *count += u64::from(happened);
    }

    /// What is still to be heard on a stream that broke.
    fn hear_what_broke(&mut self) -> Result<(), Violation> {
        if self.trainers.broken.is_empty() {
            return Ok(());
        }
        let which = self.wild.random_range(0..self.trainers.broken.len());
        let event = self.trainers.broken[which].pop_front();
        if self.trainers.broken[which].is_empty() {
            self.trainers.broken.swap_remove(which);
        }
        event.map_or(Ok(()), |event| self.decide(event))
    }

    /// Whoever starts trainers starts another one where the run cannot go on without.
    fn replace_the_lost(&mut self) {
        let needed = match self.run.begins_anew {
            true => self.run.facts.worlds.first as usize,
            false => self.least,
        };
        let waits = matches!(self.run.phase(), Phase::WaitingForMembers);
        let may_join = self.run.begins_anew || self.run.facts.worlds.are_elastic();
        // The coordinator alone knows whom it has set apart; they wait for the others before they go.
        let apart = self.run.members.iter().filter(|(_, member)| member.leaving.is_some());
        let apart = apart.filter_map(|(peer, _)| self.trainers.index_of(*peer)).collect();
        if waits && may_join && self.trainers.of_use(&apart) < needed {
            self.trainers.add();
        }
    }
}

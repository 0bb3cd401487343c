//! Drives the machine through a random schedule with a virtual clock and a model of the trainers (`trainers`): joins in
//! any order, messages delayed, repeated and overtaken by those of other members, strangers, stale generations, pauses,
//! stops, deaths, members that come late and that must leave, wrong hashes. `Checker` looks at every decision and reports
//! the first broken invariant by number.

use std::time::Duration;

use lockstep_proto::domain::{CoordinatorBody, Outcome, RunEnd, Stamp, StepMetrics, StepReport};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::tests::{facts, info};
use super::{Directive, Event, Phase, Run, Worlds};
use crate::ledger::Shadow;

mod checker;
mod trainers;

use checker::Checker;
pub(super) use checker::Violation;
use trainers::{Trainer, Trainers};

/// A deliberate fault, to prove that the simulator finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Breaks invariant 5.
    CommitBeforeEveryHash,
    /// Breaks invariant 6.
    SendBeforeDurable,
    /// Breaks invariant 4.
    AlterPlanForOneMember,
    /// Breaks invariant 9.
    ForgetOneAbort,
    /// Breaks invariant 2.
    FallBackToAnOlderTerm,
    /// Breaks invariant 1.
    FormBeforeAllHaveStopped,
    /// Breaks invariant 12.
    SnapshotWithoutBuddies,
    /// Breaks invariant 11.
    ResumeFromWhatNobodyHolds,
}

impl Fault {
    /// Spoils a decision.
    pub(super) fn distort(self, directives: &mut Vec<Directive>) {
        match self {
            Fault::SendBeforeDurable => {
                directives.sort_by_key(|directive| !matches!(directive, Directive::Send { .. }))
            }
            Fault::AlterPlanForOneMember => {
                if let Some(Directive::Send {
                    body: CoordinatorBody::PlanWindow(plans),
                    ..
                }) = directives.last_mut()
                {
                    plans[0].learning_rate += 1.0;
                }
            }
            Fault::ForgetOneAbort => {
                let tells_the_end = |directive: &Directive| {
                    matches!(
                        directive,
                        Directive::Send {
                            body: CoordinatorBody::Abort { .. } | CoordinatorBody::Release { .. },
                            ..
                        }
                    )
                };
                if let Some(index) = directives.iter().position(tells_the_end) {
                    directives.remove(index);
                }
            }
            Fault::FallBackToAnOlderTerm => {
                if let Some(Directive::Send { stamp, .. }) = directives.last_mut() {
                    stamp.term = stamp.term.saturating_sub(1);
                }
            }
            // These are in the machine itself, where it looks at its own fault.
            Fault::CommitBeforeEveryHash
            | Fault::FormBeforeAllHaveStopped
            | Fault::SnapshotWithoutBuddies
            | Fault::ResumeFromWhatNobodyHolds => {}
        }
    }
}

/// What goes wrong in a schedule, besides members that come and go.
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
}

struct Simulation {
    rng: StdRng,
    run: Run,
    shadow: Shadow,
    checker: Checker,
    trainers: Trainers,
    now: Duration,
    trouble: Trouble,
    /// The step (and trainer) at which the trouble strikes.
    strikes: u64,
    turnover: Turnover,
    least: usize,
    commands: Vec<(u32, Event)>,
}

/// One whole schedule. `fault`: what is wrong with the machine.
pub(super) fn simulate(seed: u64, fault: Option<Fault>) -> Result<Report, Violation> {
    let mut rng = StdRng::seed_from_u64(seed);
    let ranks = rng.random_range(1..=4_u32);
    let steps = rng.random_range(1..=40_u64);
    let lanes = rng.random_range(ranks..=9);
    let mut facts = facts(ranks, lanes, steps);
    let is_elastic = rng.random_ratio(2, 3);
    if is_elastic {
        let least = rng.random_range(1..=ranks);
        facts.worlds = Worlds {
            first: ranks,
            least,
            most: rng.random_range(ranks..=lanes),
            patience: Duration::from_millis(500),
        };
    }
    facts.window = Duration::from_millis(rng.random_range(1..=400));
    facts.term = rng.random_range(1..5);
    facts.last_generation = rng.random_range(0..3);
    let trouble = [
        Trouble::Nothing,
        Trouble::Nothing,
        Trouble::Pauses,
        Trouble::Stop,
        Trouble::Abandonment,
        Trouble::WrongHash,
        Trouble::WrongInitialHash,
        Trouble::NotFinite,
    ][rng.random_range(0..8)];
    let commands = match trouble {
        Trouble::Pauses => vec![
            (rng.random_range(1..300), Event::Pause),
            (rng.random_range(1..200), Event::Resume),
        ],
        Trouble::Stop if rng.random() => vec![
            (rng.random_range(1..300), Event::Pause),
            (rng.random_range(1..200), Event::Stop),
        ],
        Trouble::Stop => vec![
            (rng.random_range(1..400), Event::Stop),
            (rng.random_range(1..20), Event::Pause),
        ],
        Trouble::Abandonment => vec![(rng.random_range(1..300), Event::Abandon)],
        _ => Vec::new(),
    };
    let turnover = match is_elastic {
        true => Turnover {
            deaths: rng.random_range(0..=4),
            joins: rng.random_range(0..=3),
            drains: rng.random_range(0..=2),
            hangs: rng.random_range(0..=1),
        },
        false => Turnover {
            deaths: u32::from(rng.random_ratio(1, 4)),
            ..Turnover::default()
        },
    };
    let least = facts.worlds.least as usize;
    let checker = Checker::new(&facts);
    let mut run = Run::new(facts).map_err(|refusal| Violation::new(10, refusal.reason))?;
    run.fault = fault;
    let snapshot_every = rng.random_range(0..=6);
    let simulation = Simulation {
        shadow: Shadow::of(&run),
        run,
        checker,
        trainers: Trainers::new(ranks, snapshot_every),
        now: Duration::ZERO,
        trouble,
        strikes: rng.random_range(1..=steps),
        turnover,
        least,
        commands,
        rng,
    };
    simulation.run_to_the_end(steps)
}

impl Simulation {
    fn run_to_the_end(mut self, steps: u64) -> Result<Report, Violation> {
        for _ in 0..120_000 {
            if self.run.phase() == Phase::Ended && self.trainers.all.iter().all(Trainer::is_done) {
                break;
            }
            self.one_thing()?;
        }
        let Some(end) = self.run.end().cloned() else {
            return Err(Violation::new(
                10,
                format!("the schedule never ended: {}", self.run.reason()),
            ));
        };
        let committed = self.run.committed();
        let is_elastic = self.run.facts.worlds.are_elastic();
        let calm = matches!(self.trouble, Trouble::Nothing | Trouble::Pauses) && (is_elastic || !self.trainers.died);
        // A drain of a member that the run cannot miss stops it.
        let stopped = matches!(end.outcome, Outcome::Stopped) && end.reason.contains("must leave");
        let drained = self.trainers.drained && (stopped || self.run.wish == super::Wish::Stop);
        if calm && !drained && (end.outcome != Outcome::Completed || committed != steps) {
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
        })
    }

    fn one_thing(&mut self) -> Result<(), Violation> {
        let trainer = self.rng.random_range(0..self.trainers.all.len());
        match self.rng.random_range(0..24) {
            0 => {
                self.now += Duration::from_millis(self.rng.random_range(1..120));
                self.decide(Event::Tick)
            }
            1 => self.command(),
            2 if self.rng.random_ratio(1, 10) => self.stranger(trainer),
            3..=8 => self.deliver_to_coordinator(trainer),
            9..=14 => {
                self.trainers.deliver(trainer);
                Ok(())
            }
            15..=17 => {
                let wrong = self.trouble == Trouble::WrongInitialHash && trainer == 0;
                self.trainers.advance(trainer, wrong, &mut self.rng);
                Ok(())
            }
            18 if self.rng.random_ratio(1, 12) => {
                self.turn_over(trainer);
                Ok(())
            }
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

    fn decide(&mut self, event: Event) -> Result<(), Violation> {
        self.checker.before(&event, &self.run);
        let joins = if let Event::Join { peer, .. } = &event {
            Some(*peer as usize)
        } else {
            None
        };
        let decision = self
            .shadow
            .decide(&mut self.run, event, self.now)
            .map_err(|difference| Violation::new(13, difference))?;
        self.checker.after(&decision, &self.run, &self.trainers)?;
        if let Some(trainer) = joins.and_then(|peer| self.trainers.all.get_mut(peer)) {
            trainer.refused |= decision.refusal.is_some();
        }
        for directive in decision.directives {
            match directive {
                Directive::Send { to, stamp, body } => self.trainers.send(to, stamp, body),
                Directive::Fence { peer, .. } => self.trainers.fence(peer),
                Directive::Persist(_) | Directive::End(_) => {}
            }
        }
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
        let peer = 100_000;
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
            return self.decide(Event::Stopped {
                peer: like as u64,
                stamp,
                cause: None,
                parts: Vec::new(),
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
        self.decide(Event::Report {
            peer: like as u64,
            report,
        })
    }

    fn deliver_to_coordinator(&mut self, trainer: usize) -> Result<(), Violation> {
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

    /// Somebody dies, comes, must leave, or hangs.
    fn turn_over(&mut self, trainer: usize) {
        let is_over = self.run.phase() == Phase::Ended;
        let kind = self.rng.random_range(0..4);
        let left = match kind {
            0 => &mut self.turnover.deaths,
            1 => &mut self.turnover.joins,
            2 => &mut self.turnover.drains,
            _ => &mut self.turnover.hangs,
        };
        if *left == 0 || is_over {
            return;
        }
        let happened = match kind {
            0 => self.trainers.kill(trainer, &mut self.rng),
            1 => {
                self.trainers.add();
                true
            }
            2 => self.trainers.drain(trainer),
            _ => self.trainers.hang(trainer),
        };
        if happened {
            *left -= 1;
        }
    }

    /// Whoever starts trainers starts another one where the run cannot go on without.
    fn replace_the_lost(&mut self) {
        let needed = match self.run.generation {
            None => self.run.facts.worlds.first as usize,
            Some(_) => self.least,
        };
        let waits = matches!(self.run.phase(), Phase::WaitingForMembers);
        if waits && self.run.facts.worlds.are_elastic() && self.trainers.of_use() < needed {
            self.trainers.add();
        }
    }
}

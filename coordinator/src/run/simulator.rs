//! Drives the machine through a random schedule with a virtual clock and a model of the trainers: joins in any
//! order, messages delayed, repeated and overtaken by those of other members, strangers, stale generations, pauses,
//! stops, deaths, wrong hashes. `Checker` looks at every decision and reports the first broken invariant by number.

use std::collections::VecDeque;
use std::time::Duration;

use lockstep_proto::domain::{
    CoordinatorBody, Directive as Urgent, DirectiveKind, Generation, Outcome, Plan, Ready, RunEnd, Stamp, StepMetrics,
    StepReport, Validation,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::tests::{facts, info};
use super::{Directive, Event, Phase, Run};

mod checker;

use checker::Checker;
pub(super) use checker::Violation;

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
}

impl Fault {
    /// Spoils a decision.
    pub(super) fn distort(self, directives: &mut Vec<Directive>) {
        match self {
            Fault::CommitBeforeEveryHash => {}
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
                let abort = |directive: &Directive| {
                    matches!(
                        directive,
                        Directive::Send {
                            body: CoordinatorBody::Abort { .. },
                            ..
                        }
                    )
                };
                if let Some(index) = directives.iter().position(abort) {
                    directives.remove(index);
                }
            }
            Fault::FallBackToAnOlderTerm => {
                if let Some(Directive::Send { stamp, .. }) = directives.last_mut() {
                    stamp.term = stamp.term.saturating_sub(1);
                }
            }
        }
    }
}

/// What goes wrong in a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Nothing,
    Pauses,
    Stop,
    Abandonment,
    Death,
    WrongHash,
    WrongInitialHash,
    NotFinite,
}

/// A trainer of the model.
#[derive(Default)]
struct Trainer {
    joined: bool,
    alive: bool,
    generation: Option<Generation>,
    comm_id: Option<Vec<u8>>,
    ready: bool,
    plans: VecDeque<Plan>,
    urgent: Urgent,
    aborted: bool,
    refused: bool,
    finished: bool,
    acknowledged: bool,
    to_coordinator: VecDeque<Event>,
    to_trainer: VecDeque<CoordinatorBody>,
}

impl Trainer {
    fn is_done(&self) -> bool {
        !self.alive || !self.joined || self.acknowledged || self.refused
    }
}

/// How a schedule went.
pub(super) struct Report {
    pub(super) end: RunEnd,
    pub(super) committed: u64,
}

struct Simulation {
    rng: StdRng,
    run: Run,
    checker: Checker,
    trainers: Vec<Trainer>,
    now: Duration,
    trouble: Trouble,
    /// The step (and rank) at which the trouble strikes.
    strikes: u64,
    victim: usize,
    /// The step that all ranks made last.
    made: u64,
    paused: Option<u64>,
    commands: Vec<(u32, Event)>,
}

/// One whole schedule. `fault`: what is wrong with the machine.
pub(super) fn simulate(seed: u64, fault: Option<Fault>) -> Result<Report, Violation> {
    let mut rng = StdRng::seed_from_u64(seed);
    let ranks = rng.random_range(1..=4_u32);
    let steps = rng.random_range(1..=40_u64);
    let mut facts = facts(ranks, rng.random_range(ranks..=9), steps);
    facts.window = Duration::from_millis(rng.random_range(1..=400));
    facts.term = rng.random_range(1..5);
    facts.last_generation = rng.random_range(0..3);
    let trouble = [
        Trouble::Nothing,
        Trouble::Pauses,
        Trouble::Stop,
        Trouble::Abandonment,
        Trouble::Death,
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
    let checker = Checker::new(&facts);
    let mut run = Run::new(facts).map_err(|refusal| Violation::new(10, refusal.reason))?;
    run.fault = fault;
    let simulation = Simulation {
        run,
        checker,
        trainers: (0..ranks)
            .map(|_| Trainer {
                alive: true,
                ..Trainer::default()
            })
            .collect(),
        now: Duration::ZERO,
        trouble,
        strikes: rng.random_range(0..=steps),
        victim: rng.random_range(0..ranks as usize),
        made: 0,
        paused: None,
        commands,
        rng,
    };
    simulation.run_to_the_end(steps)
}

impl Simulation {
    fn run_to_the_end(mut self, steps: u64) -> Result<Report, Violation> {
        for _ in 0..60_000 {
            if self.run.phase() == Phase::Ended && self.trainers.iter().all(Trainer::is_done) {
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
        let calm = matches!(self.trouble, Trouble::Nothing | Trouble::Pauses);
        if calm && (end.outcome != Outcome::Completed || committed != steps) {
            return Err(Violation::new(
                10,
                format!("a calm schedule of {steps} steps ended with: {}", end.reason),
            ));
        }
        Ok(Report { end, committed })
    }

    fn one_thing(&mut self) -> Result<(), Violation> {
        let trainer = self.rng.random_range(0..self.trainers.len());
        match self.rng.random_range(0..20) {
            0 => {
                self.now += Duration::from_millis(self.rng.random_range(1..120));
                self.decide(Event::Tick)
            }
            1 => self.command(),
            2 if self.rng.random_ratio(1, 10) => self.stranger(trainer),
            3..=7 => self.deliver_to_coordinator(trainer),
            8..=12 => {
                self.deliver_to_trainer(trainer);
                Ok(())
            }
            13..=15 => {
                self.advance(trainer);
                Ok(())
            }
            16 if self.trouble == Trouble::Death && self.made >= self.strikes && self.rng.random_ratio(1, 8) => {
                self.kill(self.victim)
            }
            _ => {
                self.make_a_step();
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
        let decision = self.run.step(event, self.now);
        self.checker.after(&decision, &self.run)?;
        if let Some(trainer) = joins.and_then(|peer| self.trainers.get_mut(peer)) {
            trainer.refused |= decision.refusal.is_some();
        }
        for directive in decision.directives {
            if let Directive::Send { to, body, .. } = directive {
                self.trainers[to as usize].to_trainer.push_back(body);
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
        let peer = 1000;
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
        let report = StepReport {
            stamp,
            rank: like as u32,
            step: self.made + 1,
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
        let Some(event) = self.trainers[trainer].to_coordinator.pop_front() else {
            return Ok(());
        };
        let repeatable = !matches!(event, Event::MemberLost { .. });
        if repeatable && self.rng.random_ratio(1, 8) {
            self.decide(event.clone())?;
            if self.rng.random() && self.trainers[trainer].alive {
                self.trainers[trainer].to_coordinator.push_back(event.clone());
            }
        }
        self.decide(event)
    }

    fn deliver_to_trainer(&mut self, index: usize) {
        let trainer = &mut self.trainers[index];
        let Some(body) = trainer.to_trainer.pop_front() else {
            return;
        };
        if !trainer.alive {
            return;
        }
        match body {
            CoordinatorBody::Generation(generation) => trainer.generation = Some(generation),
            CoordinatorBody::CommId(id) => trainer.comm_id = Some(id),
            CoordinatorBody::PlanWindow(plans) => trainer.plans.extend(plans),
            CoordinatorBody::Directive(urgent) => trainer.urgent = trainer.urgent.max(urgent),
            CoordinatorBody::Abort { reason } => {
                trainer.aborted = true;
                self.say_farewell(index, Outcome::Failed { reason });
            }
            CoordinatorBody::Acknowledged { finished, .. } => trainer.acknowledged |= finished,
            CoordinatorBody::Welcome { .. } => {}
        }
    }

    /// What a trainer does on its own before the first step.
    fn advance(&mut self, index: usize) {
        let wrong = self.trouble == Trouble::WrongInitialHash && index == self.victim;
        let trainer = &mut self.trainers[index];
        if !trainer.alive || trainer.aborted || trainer.finished || trainer.refused {
            return;
        }
        let peer = index as u64;
        if !trainer.joined {
            trainer.joined = true;
            trainer.to_coordinator.push_back(Event::Join {
                peer,
                info: info(&format!("trainer-{index}")),
            });
            return;
        }
        let Some(stamp) = trainer.generation.as_ref().map(|generation| generation.stamp) else {
            return;
        };
        if trainer.ready {
            return;
        }
        if index == 0 && trainer.comm_id.is_none() {
            trainer.comm_id = Some(vec![7]);
            trainer.to_coordinator.push_back(Event::CommId {
                peer,
                stamp,
                id: vec![7],
            });
        }
        if trainer.comm_id.is_some() {
            trainer.ready = true;
            let hash = if wrong { [2; 32] } else { [1; 32] };
            trainer.to_coordinator.push_back(Event::Ready {
                peer,
                stamp,
                ready: Ready {
                    hash,
                    transports: Vec::new(),
                },
            });
        }
    }

    /// What all ranks do together, as their collectives keep them in step.
    fn make_a_step(&mut self) {
        let step = self.made + 1;
        if self
            .trainers
            .iter()
            .any(|t| !t.alive || t.aborted || t.finished || !t.ready)
        {
            return;
        }
        if let Some(sequence) = self.paused {
            if self.trainers.iter().all(|t| t.urgent.sequence > sequence) {
                self.paused = None;
                self.act_on_directive();
            }
            return;
        }
        if self
            .trainers
            .iter()
            .any(|t| t.plans.front().is_none_or(|plan| plan.step != step))
        {
            return;
        }
        let mut last = false;
        for (rank, trainer) in self.trainers.iter_mut().enumerate() {
            let (Some(plan), Some(generation)) = (trainer.plans.pop_front(), &trainer.generation) else {
                continue;
            };
            let strikes = step == self.strikes.max(1);
            let odd = self.trouble == Trouble::WrongHash && strikes && rank == self.victim;
            let loss = if self.trouble == Trouble::NotFinite && strikes {
                f64::NAN
            } else {
                2.0
            };
            let metrics = StepMetrics {
                loss,
                tokens: plan.samples,
                step_ms: 20.0,
                ..StepMetrics::default()
            };
            let report = StepReport {
                stamp: generation.stamp,
                rank: rank as u32,
                step,
                parameter_hash: [if odd { 99 } else { step as u8 }; 32],
                metrics: (rank == 0).then_some(metrics),
                validation: (rank == 0 && plan.validate).then_some(Validation { loss: 1.0, tokens: 5 }),
                peak_memory_mib: 10,
            };
            trainer.to_coordinator.push_back(Event::Report {
                peer: rank as u64,
                report,
            });
            last |= plan.last;
        }
        self.made = step;
        if last {
            for index in 0..self.trainers.len() {
                self.say_farewell(index, Outcome::Completed);
            }
        } else {
            self.act_on_directive();
        }
    }

    /// The ranks exchange their directives at the end of a step; the newest counts.
    fn act_on_directive(&mut self) {
        let newest = self
            .trainers
            .iter()
            .map(|t| t.urgent.to_word())
            .max()
            .and_then(Urgent::from_word);
        let newest = newest.unwrap_or_default();
        match newest.kind {
            DirectiveKind::None | DirectiveKind::Resume => {}
            DirectiveKind::Pause => self.paused = Some(newest.sequence),
            DirectiveKind::Stop => {
                for index in 0..self.trainers.len() {
                    self.say_farewell(index, Outcome::Stopped);
                }
            }
        }
    }

    fn say_farewell(&mut self, index: usize, outcome: Outcome) {
        let trainer = &mut self.trainers[index];
        if !trainer.finished {
            trainer.finished = true;
            let finished = Event::Finished {
                peer: index as u64,
                outcome,
                step: self.made,
            };
            trainer.to_coordinator.push_back(finished);
        }
    }

    /// A trainer dies; some of what it said is lost, and a peer may notice before the coordinator does.
    fn kill(&mut self, victim: usize) -> Result<(), Violation> {
        let lost_messages = self.rng.random_range(0..3);
        let noticing = self.rng.random_range(0..self.trainers.len());
        let trainer = &mut self.trainers[victim];
        if !trainer.alive || trainer.finished {
            return Ok(());
        }
        trainer.alive = false;
        for _ in 0..lost_messages {
            if !matches!(trainer.to_coordinator.back(), Some(Event::Join { .. })) {
                trainer.to_coordinator.pop_back();
            }
        }
        if !trainer.joined {
            // It never spoke: the launcher would end the run; here an operator does.
            return self.decide(Event::Stop);
        }
        trainer
            .to_coordinator
            .push_back(Event::MemberLost { peer: victim as u64 });
        if noticing != victim && self.trainers[noticing].ready {
            self.say_farewell(
                noticing,
                Outcome::Failed {
                    reason: "a peer hung up".to_owned(),
                },
            );
        }
        Ok(())
    }
}

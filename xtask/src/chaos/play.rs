//! The faults themselves: each kind is one function that makes it happen and waits until the run is over it. Those of
//! processes and of the network are here; [`hang`], [`memory`], [`checkpoints`] and [`pair`] have the others.
//!
//! Before a fault every trainer that lives makes steps with the others. So the first step of a world that the fault has made
//! is known by its ranks, and the time from the fault to that step is the time that the run has lost.

mod checkpoints;
mod hang;
mod memory;
mod pair;

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::chaos::kind::Kind;
use crate::chaos::report::{Outcome, Times};
use crate::chaos::schedule::{Dice, Fault};
use crate::chaos::trainer::{Fate, Trainer};
use crate::chaos::world::World;
use crate::failure::Failure;

pub(super) use crate::chaos::play::checkpoints::CHECKPOINT_EVERY;

/// Values of the run's config by which it notices that a rank hangs, and gives one up.
pub(super) const DEADLINE: Duration = Duration::from_secs(4);
pub(super) const GIVES_UP: Duration = Duration::from_secs(4);
/// Shorter than the deadline, so that a trainer that is stopped is found by its silence.
pub(super) const LEASE: Duration = Duration::from_secs(3);

/// So long after a fault steps may still be told that were made before it: a coordinator gathers them for 50 ms.
const ECHO: Duration = Duration::from_millis(150);
const FREEZE: Duration = Duration::from_millis(200);
/// A run recovers from a loss in about this time, so that a second one hits any moment of it.
const RECOVERY: Duration = Duration::from_millis(600);
/// A trainer comes into a run in about this time.
const COMING: Duration = Duration::from_millis(2500);
const DOWN: Duration = Duration::from_millis(800);
const SLOW: Duration = Duration::from_secs(3);
const SLOW_RATE: &str = "4mbit";

/// Plays a fault on a run that is well, and leaves one that is well.
pub(super) fn play(fault: &Fault, world: &mut World) -> Result<Outcome, Failure> {
    let began = Instant::now();
    prepare(fault, world)?;
    let prepared = began.elapsed();
    let mut dice = fault.dice.clone();
    world.begin_fault();
    let generation = world.steps.newest().map_or(0, |step| step.generation);
    let recovery = match fault.kind {
        Kind::Kill => kill(world, &mut dice),
        Kind::KillTwo => kill_two(world, &mut dice),
        Kind::KillInRecovery => kill_in_recovery(world, &mut dice),
        Kind::KillWhileJoining => kill_while_joining(world, &mut dice),
        Kind::Stop => stop(world, &mut dice),
        Kind::FreezeShort => freeze_short(world, &mut dice),
        Kind::Term => term(world, &mut dice),
        Kind::Join => join(world),
        Kind::KillCoordinator => kill_coordinator(world, &mut dice),
        Kind::KillBoth => kill_both(world, &mut dice),
        Kind::Pair => match fault.pair {
            Some(halves) => pair::pair(world, halves, &mut dice),
            None => Err(Failure::work("a pair has no halves")),
        },
        Kind::FlipWorking | Kind::FlipMaster | Kind::FlipMomentum => memory::flip(world, fault.kind, &mut dice),
        Kind::Hang => hang::hang(world, &mut dice),
        Kind::KillAll => checkpoints::kill_all(world),
        Kind::DamageCheckpoint => checkpoints::damage(world, &mut dice),
        Kind::TornCheckpoint => checkpoints::tear(world, &mut dice),
        Kind::FullDisk => checkpoints::full_disk(world),
        Kind::StoreFails => checkpoints::store_fails(world, &mut dice),
        Kind::StoreSlow => checkpoints::store_slow(world, &mut dice),
        Kind::KillWhileStoreFails => checkpoints::kill_while_store_fails(world, &mut dice),
        Kind::Cut => cut(world),
        Kind::Slow => slow(world),
    }?;
    let times = Times::new(prepared, recovery, began.elapsed());
    let now = world.steps.newest().map_or(0, |step| step.generation);
    let said = world.said_of_fault();
    Ok(Outcome::new((fault.kind, fault.pair), times, (generation, now), &said))
}

/// Brings the world to as many trainers as the fault needs.
fn prepare(fault: &Fault, world: &mut World) -> Result<(), Failure> {
    while world.living() < fault.trainers {
        world.start_trainer()?;
    }
    if fault.kind.needs_hosts() {
        for host in [0, 1] {
            while world.on_host(host) == 0 {
                world.start_trainer()?;
            }
        }
    }
    world.settle()?;
    let most = world.most();
    while world.living() + fault.brings > most {
        world.ask_one_to_go(0);
        world.settle()?;
    }
    world.let_pass(fault.pause)
}

/// Waits for a new step that all those make who live, in another generation than the one of `began`.
fn until_others_train(world: &mut World, began: Instant) -> Result<Duration, Failure> {
    let made = world.steps.made();
    let generation = world.steps.newest().map_or(0, |step| step.generation);
    world.until("another world makes a new step", |world| {
        let (living, is_new) = (world.living(), world.steps.made() > made);
        let newest = world.steps.newest().filter(|_| is_new);
        Ok(newest.is_some_and(|new| new.generation > generation && new.ranks == living))
    })?;
    Ok(began.elapsed())
}

/// Waits for a new step that was made after the fault.
fn until_a_new_step(world: &mut World, began: Instant) -> Result<Duration, Failure> {
    world.let_pass(ECHO)?;
    let made = world.steps.made();
    world.until("a new step is made", |world| Ok(world.steps.made() > made))?;
    Ok(began.elapsed())
}

fn kill(world: &mut World, dice: &mut Dice) -> Result<Duration, Failure> {
    let began = Instant::now();
    world.kill_one(dice.below(64));
    until_others_train(world, began)
}

fn kill_two(world: &mut World, dice: &mut Dice) -> Result<Duration, Failure> {
    let began = Instant::now();
    world.kill_one(dice.below(64));
    world.kill_one(dice.below(64));
    until_others_train(world, began)
}

fn kill_in_recovery(world: &mut World, dice: &mut Dice) -> Result<Duration, Failure> {
    world.kill_one(dice.below(64));
    world.let_pass(dice.within(RECOVERY))?;
    let began = Instant::now();
    world.kill_one(dice.below(64));
    let time = until_others_train(world, began)?;
    world.settle()?;
    Ok(time)
}

fn kill_while_joining(world: &mut World, dice: &mut Dice) -> Result<Duration, Failure> {
    world.start_trainer()?;
    world.let_pass(dice.within(COMING))?;
    let began = Instant::now();
    world.kill_one(dice.below(64));
    let time = until_a_new_step(world, began)?;
    world.settle()?;
    Ok(time)
}

fn stop(world: &mut World, dice: &mut Dice) -> Result<Duration, Failure> {
    let began = Instant::now();
    let Some(trainer) = world.living_one(dice.below(64)) else {
        return Ok(Duration::ZERO);
    };
    trainer.fate = Fate::IsAway;
    trainer.process.signal(Signal::STOP);
    let time = until_others_train(world, began)?;
    world.let_pass(dice.within(GIVES_UP))?;
    come_back(world, wake)?;
    Ok(time)
}

fn wake(trainer: &Trainer) {
    trainer.process.signal(Signal::CONT);
}

/// Those who were away go on: each ends, or trains with the others again.
fn come_back(world: &mut World, wake: impl Fn(&Trainer)) -> Result<(), Failure> {
    for trainer in world.all_trainers() {
        if trainer.fate == Fate::IsAway {
            wake(trainer);
        }
    }
    world.until("those who were away have ended or train again", |world| {
        let there = world.all_trainers().len() as u32;
        let away = there - world.living();
        Ok(away == 0 || world.steps.newest().is_some_and(|step| step.ranks == there))
    })?;
    for trainer in world.all_trainers() {
        trainer.fate = Fate::Trains;
    }
    world.settle()
}

fn freeze_short(world: &mut World, dice: &mut Dice) -> Result<Duration, Failure> {
    let began = Instant::now();
    let Some(trainer) = world.living_one(dice.below(64)) else {
        return Ok(Duration::ZERO);
    };
    trainer.process.signal(Signal::STOP);
    std::thread::sleep(FREEZE);
    trainer.process.signal(Signal::CONT);
    until_a_new_step(world, began)
}

fn term(world: &mut World, dice: &mut Dice) -> Result<Duration, Failure> {
    let began = Instant::now();
    world.ask_one_to_go(dice.below(64));
    let time = until_others_train(world, began)?;
    world.settle()?;
    Ok(time)
}

fn join(world: &mut World) -> Result<Duration, Failure> {
    let began = Instant::now();
    world.start_trainer()?;
    until_others_train(world, began)
}

fn kill_coordinator(world: &mut World, dice: &mut Dice) -> Result<Duration, Failure> {
    let began = Instant::now();
    world.kill_coordinator();
    std::thread::sleep(dice.within(DOWN));
    world.start_coordinator_again()?;
    let made = world.steps.made();
    world.until("a new step is committed in the next term", |world| {
        Ok(world.steps.made() > made)
    })?;
    Ok(began.elapsed())
}

fn kill_both(world: &mut World, dice: &mut Dice) -> Result<Duration, Failure> {
    let began = Instant::now();
    world.kill_coordinator();
    world.kill_one(dice.below(64));
    std::thread::sleep(dice.within(DOWN));
    world.start_coordinator_again()?;
    until_others_train(world, began)
}

fn cut(world: &mut World) -> Result<Duration, Failure> {
    let Some(hosts) = world.hosts() else {
        return Ok(Duration::ZERO);
    };
    let began = Instant::now();
    hosts.cut()?;
    for trainer in world.all_trainers() {
        if trainer.host == 1 {
            trainer.fate = Fate::IsAway;
        }
    }
    let time = until_others_train(world, began)?;
    if let Some(hosts) = world.hosts() {
        hosts.mend()?;
    }
    come_back(world, |_| {})?;
    Ok(time)
}

fn slow(world: &mut World) -> Result<Duration, Failure> {
    let Some(hosts) = world.hosts() else {
        return Ok(Duration::ZERO);
    };
    let began = Instant::now();
    hosts.slow(SLOW_RATE)?;
    let time = until_a_new_step(world, began)?;
    world.let_pass(SLOW)?;
    if let Some(hosts) = world.hosts() {
        hosts.quicken()?;
    }
    world.settle()?;
    Ok(time)
}

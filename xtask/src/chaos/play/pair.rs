//! Two kinds at the same moment.
//!
//! A new step counts that only a run can make that has come out of both: in another generation where a half changes the world,
//! and at least the one before which a bit has changed. After it all must be as the two together leave it: who was woken is
//! back or gone, whose memory has changed is set apart, and those who live train together.

use std::time::Duration;

use rustix::process::Signal;

use crate::chaos::kind::Kind;
use crate::chaos::play::memory::{start_drilled, until_flipped};
use crate::chaos::play::{DOWN, FREEZE, GIVES_UP, come_back, until_a_new_step, wake};
use crate::chaos::schedule::Dice;
use crate::chaos::trainer::{Fate, Trainer};
use crate::chaos::world::World;
use crate::failure::Failure;

/// Of the halves that strike at once, who comes is last, and who is only frozen is one that is left: so each half does what it
/// says.
fn turn(half: Kind) -> u32 {
    match half {
        Kind::Join => 2,
        Kind::FreezeShort => 1,
        _ => 0,
    }
}

pub(super) fn pair(world: &mut World, mut halves: [Kind; 2], dice: &mut Dice) -> Result<Duration, Failure> {
    halves.sort_by_key(|half| turn(*half));
    let mut drilled = Vec::new();
    for half in halves.into_iter().filter(|half| half.flips()) {
        drilled.push(start_drilled(world, half, dice)?);
    }
    let flipped = match drilled.first() {
        Some(name) => Some(until_flipped(world, name)?),
        None => None,
    };
    let began = world.begin_fault();
    let made = world.steps.made();
    let generation = world.steps.newest().map_or(0, |step| step.generation);
    let mut frozen = None;
    for half in halves {
        frozen = frozen.or(strike(world, half, dice)?);
    }
    if let Some(name) = frozen {
        std::thread::sleep(FREEZE);
        if let Some(trainer) = world.trainer(&name) {
            trainer.process.signal(Signal::CONT);
        }
    }
    if halves.contains(&Kind::KillCoordinator) {
        std::thread::sleep(dice.within(DOWN));
        world.start_coordinator_again()?;
    }
    let changes_the_world = |half: &Kind| matches!(half, Kind::Kill | Kind::Stop | Kind::Term | Kind::Join);
    let is_another = halves.iter().any(changes_the_world);
    let time = match is_another || flipped.is_some() {
        true => {
            world.until("the run comes out of both", |world| {
                let is_new = world.steps.made() > made;
                let newest = world.steps.newest();
                Ok(newest.is_some_and(|new| {
                    is_new
                        && (new.generation > generation || !is_another)
                        && flipped.is_none_or(|flipped| new.step >= flipped)
                }))
            })?;
            began.elapsed()
        }
        false => until_a_new_step(world, began)?,
    };
    if halves.contains(&Kind::Stop) {
        until_given_up(world)?;
        world.let_pass(dice.within(GIVES_UP))?;
        come_back(world, wake)?;
    }
    world.settle()?;
    Ok(time)
}

/// One half; the name of who is frozen.
fn strike(world: &mut World, half: Kind, dice: &mut Dice) -> Result<Option<String>, Failure> {
    match half {
        Kind::Kill => drop(world.kill_one(dice.below(64))),
        Kind::Term => drop(world.ask_one_to_go(dice.below(64))),
        Kind::Join => world.start_trainer()?,
        Kind::KillCoordinator => world.kill_coordinator(),
        Kind::Stop | Kind::FreezeShort => {
            let Some(trainer) = world.living_one(dice.below(64)) else {
                return Ok(None);
            };
            trainer.process.signal(Signal::STOP);
            if half == Kind::FreezeShort {
                return Ok(Some(trainer.process.name.clone()));
            }
            trainer.fate = Fate::IsAway;
        }
        // Its bit has changed already, or will.
        _ => {}
    }
    Ok(None)
}

/// Waits until those who live make a step without who is stopped, and all others have gone who go.
fn until_given_up(world: &mut World) -> Result<(), Failure> {
    world.until("the others go on without who is stopped", |world| {
        let stays = |trainer: &Trainer| matches!(trainer.fate, Fate::Trains | Fate::IsAway);
        let living = world.living();
        Ok(world.all_trainers().iter().all(stays) && world.steps.newest().is_some_and(|step| step.ranks == living))
    })
}

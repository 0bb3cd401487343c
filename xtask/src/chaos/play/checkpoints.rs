//! Faults of checkpoints: of their files, of their disk, of the server that keeps them. Where one is over, all trainers are
//! killed, so that the run must go on from a checkpoint.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::chaos::play::{until_a_new_step, until_others_train};
use crate::chaos::schedule::Dice;
use crate::chaos::world::World;
use crate::failure::Failure;

/// Steps between two checkpoints.
pub(in crate::chaos) const CHECKPOINT_EVERY: u64 = 50;

/// A checkpoint is written in some milliseconds: it is looked for so often, and struck at most so long after it was begun.
const LOOK_FOR_PARTS: Duration = Duration::from_micros(200);
const WRITING: Duration = Duration::from_millis(3);
/// So often a kill may come too late, when the checkpoint is whole, before something must be wrong.
const TRIES: usize = 6;
/// Checkpoints that are due while a store has trouble.
const DUE: u64 = 3;
/// The longest delay of an answer of a slow store, in milliseconds, and the shortest.
const LATE: [u64; 2] = [300, 1500];

pub(super) fn kill_all(world: &mut World) -> Result<Duration, Failure> {
    let began = Instant::now();
    let lived = world.living();
    while world.kill_one(0).is_some() {}
    for _ in 0..lived {
        world.start_trainer()?;
    }
    until_others_train(world, began)
}

pub(super) fn damage(world: &mut World, dice: &mut Dice) -> Result<Duration, Failure> {
    world.until("there is a checkpoint", |world| world.store().has_one())?;
    world.store().damage_newest(dice)?;
    kill_all(world)
}

pub(super) fn full_disk(world: &mut World) -> Result<Duration, Failure> {
    world.store().fill()?;
    let began = Instant::now();
    let last = world.steps.count();
    let time = until_a_new_step(world, began)?;
    until_due(world, last, 2)?;
    world.store().free()?;
    Ok(time)
}

/// Waits until so many checkpoints have been due since a step.
fn until_due(world: &mut World, last: u64, checkpoints: u64) -> Result<(), Failure> {
    world.until("checkpoints are due", |world| {
        Ok(world.steps.count() > last + checkpoints * CHECKPOINT_EVERY)
    })
}

/// Kills everything while a checkpoint is half written. The one before is left, and the run goes on from it.
pub(super) fn tear(world: &mut World, dice: &mut Dice) -> Result<Duration, Failure> {
    world.until("there is a checkpoint", |world| world.store().has_one())?;
    let lived = world.living();
    for _ in 0..TRIES {
        let had = world.store().parts()?;
        world.until_looking_every(LOOK_FOR_PARTS, "a checkpoint is begun", |world| {
            Ok(!since(&had, world.store().parts()?).is_empty())
        })?;
        std::thread::sleep(dice.within(WRITING));
        let began = Instant::now();
        world.kill_everything();
        let new = since(&had, world.store().parts()?);
        let is_torn = !world.store().torn(&new)?.is_empty();
        world.start_coordinator_again()?;
        for _ in 0..lived {
            world.start_trainer()?;
        }
        let time = until_others_train(world, began)?;
        if is_torn {
            until_one_more(world)?;
            return Ok(time);
        }
    }
    Err(Failure::work(format!(
        "all was killed {TRIES} times while a checkpoint was begun, and each time it was whole"
    )))
}

fn since(had: &BTreeSet<PathBuf>, parts: BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    &parts - had
}

/// Waits until a step that is not made yet has a checkpoint.
fn until_one_more(world: &mut World) -> Result<(), Failure> {
    let step = world.steps.count();
    world.until("a new checkpoint is committed", |world| {
        Ok(world.store().newest_step()? > step)
    })
}

pub(super) fn store_fails(world: &mut World, dice: &mut Dice) -> Result<Duration, Failure> {
    trouble_with_the_store(world, failing(dice), None)
}

pub(super) fn kill_while_store_fails(world: &mut World, dice: &mut Dice) -> Result<Duration, Failure> {
    trouble_with_the_store(world, failing(dice), Some(dice.below(64)))
}

fn failing(dice: &mut Dice) -> &'static str {
    match dice.below(4) {
        0 => "refused=1",
        1 => "cut=1",
        _ => "refused=0.3 lost=0.15 cut=0.15",
    }
}

pub(super) fn store_slow(world: &mut World, dice: &mut Dice) -> Result<Duration, Failure> {
    let [shortest, longest] = LATE;
    let delay = Duration::from_millis(shortest + dice.below(longest - shortest));
    trouble_with_the_store(world, &format!("slow=1 delay={}", delay.as_secs_f64()), None)
}

/// The store has trouble while checkpoints are due; the run goes on, also without a `victim` that is killed meanwhile. When it
/// is over a checkpoint is committed again, and it is one from which the run can go on.
fn trouble_with_the_store(world: &mut World, trouble: &str, victim: Option<u64>) -> Result<Duration, Failure> {
    let last = world.steps.count();
    world.store_mut().trouble(trouble)?;
    let mut time = until_a_new_step(world, Instant::now())?;
    until_due(world, last, 1)?;
    if let Some(victim) = victim {
        let began = world.begin_fault();
        world.kill_one(victim);
        time = until_others_train(world, began)?;
    }
    until_due(world, last, DUE)?;
    world.store_mut().trouble("")?;
    until_one_more(world)?;
    kill_all(world)?;
    Ok(time)
}

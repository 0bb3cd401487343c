//! A device thread that hangs while its process lives on and speaks: a trainer comes that does so, by a drill of its own, and
//! only its lease tells that it does not go on.

use std::time::Duration;

use crate::chaos::play::memory::orders;
use crate::chaos::schedule::Dice;
use crate::chaos::world::World;
use crate::failure::Failure;

/// What a trainer says before it hangs.
const HANGS: &str = "drill: the device thread stands still before step ";

pub(super) fn hang(world: &mut World, dice: &mut Dice) -> Result<Duration, Failure> {
    let name = world.start_that_hangs(orders("hang", "", world.steps.count(), dice))?;
    world.until("a device thread hangs", |world| {
        let Some(trainer) = world.trainer(&name) else {
            return Err(Failure::work(format!("{name} ended before its device thread hung")));
        };
        Ok(trainer.process.log_since(0).contains(HANGS))
    })?;
    let began = world.begin_fault();
    let made = world.steps.made();
    let generation = world.steps.newest().map_or(0, |step| step.generation);
    world.until("the others go on without the one that hangs", |world| {
        let (living, is_new) = (world.living(), world.steps.made() > made);
        let newest = world.steps.newest().filter(|_| is_new);
        Ok(newest.is_some_and(|new| new.generation > generation && new.ranks == living))
    })?;
    let time = began.elapsed();
    // Its host ends it, sooner than it ends itself.
    world.end_one(&name);
    world.settle()?;
    Ok(time)
}

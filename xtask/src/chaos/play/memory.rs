//! Bits that change: a trainer comes whose memory changes, by a drill of its own, soon after it makes steps with the others.
//! The run must find it, go on without it, and name it; that its ledger does is part of the verdict.

use std::time::Duration;

use crate::chaos::kind::Kind;
use crate::chaos::schedule::Dice;
use crate::chaos::world::World;
use crate::failure::Failure;

/// Steps between two orders of a drill: so many steps at most after it has come, the trainer's memory changes. A change that
/// another fault heals, before it is found, is followed by the next one.
const GAP: u64 = 40;
/// More steps than are made while a trainer comes.
const LAST: u64 = 8000;

pub(super) fn flip(world: &mut World, kind: Kind, dice: &mut Dice) -> Result<Duration, Failure> {
    let name = start_drilled(world, kind, dice)?;
    let step = until_flipped(world, &name)?;
    let began = world.begin_fault();
    // Nobody makes this step with the bit that has changed.
    world.until("the step is made without what has changed", |world| {
        Ok(world.steps.count() >= step)
    })?;
    let time = began.elapsed();
    world.settle()?;
    Ok(time)
}

/// Brings a trainer whose memory will change; its name.
pub(super) fn start_drilled(world: &mut World, kind: Kind, dice: &mut Dice) -> Result<String, Failure> {
    let (order, array) = match kind {
        Kind::FlipMaster => ("flip-master", "the master of "),
        Kind::FlipMomentum => ("flip-momentum", "the momentum of "),
        _ => ("flip-working", "the working copy of "),
    };
    let drill = orders(order, ":any", world.steps.count(), dice);
    world.start_drilled(drill, array)
}

/// Orders of a drill for steps after `made`, at random ones.
pub(super) fn orders(order: &str, of: &str, made: u64, dice: &mut Dice) -> String {
    drill(order, of, made + 1 + dice.below(GAP))
}

/// Orders from this step on.
fn drill(order: &str, of: &str, from: u64) -> String {
    let steps = (from..from + LAST).step_by(GAP as usize);
    let orders: Vec<String> = steps.map(|step| format!("{order}@{step}{of}")).collect();
    orders.join(",")
}

/// Waits until a bit has changed there; the step before which it has.
pub(super) fn until_flipped(world: &mut World, name: &str) -> Result<u64, Failure> {
    let mut step = None;
    world.until("a bit changes in the memory of a trainer", |world| {
        let Some(trainer) = world.trainer(name) else {
            return Err(Failure::work(format!(
                "{name} ended before a bit of its memory changed"
            )));
        };
        step = flipped_before(&trainer.process.log_since(0));
        Ok(step.is_some())
    })?;
    step.ok_or_else(|| Failure::work("nothing was waited for"))
}

/// The step of the first bit that a trainer's log says it has changed; a line may be half written.
fn flipped_before(log: &str) -> Option<u64> {
    let (lines, _) = log.rsplit_once('\n')?;
    let line = lines.lines().find(|line| line.contains("drill: a bit of the "))?;
    line.rsplit_once(" is changed before step ")?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_has_orders_for_all_steps_until_it_has_come() {
        let drill = drill("flip-master", ":any", 17);
        assert!(drill.starts_with("flip-master@17:any,flip-master@57:any,"), "{drill}");
        assert!(drill.ends_with("flip-master@7977:any"), "{drill}");
    }

    #[test]
    fn a_log_says_before_which_step_a_bit_was_changed() {
        let log = " WARN lockstep_trainer: a drill is ordered by LOCKSTEP_DRILL: flip-master@9:any\n \
                   WARN lockstep_trainer: drill: a bit of the master of wte.weight is changed before step 57\n";
        assert_eq!(flipped_before(log), Some(57));
        assert_eq!(flipped_before(&log[..log.len() - 2]), None, "the line is not whole");
    }
}

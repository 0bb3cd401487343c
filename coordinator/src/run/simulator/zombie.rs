//! A coordinator that was replaced and lives on.
//!
//! On one machine there cannot be two: the ledger's lock (`run.lock`) is the kernel's, and the second process is refused.
//! Where the folder lies on a volume that is taken away from a node which is cut off, the first process lives on with streams
//! to some members. It can decide, but its store fails: the transaction that it wants to write does not go through, and with
//! it nothing of what was to follow. The service then releases the members that it still has, and ends. Where events are
//! recorded, any event but progress needs a transaction; where they are not, it goes on for as long as what it decides
//! needs no record. So what can be heard of it is what it said before, late, and what needs no record.
//!
//! Way of data: [`Simulation::replace`] splits the streams → members that stay are heard by [`Simulation::zombie_hears`] →
//! the first record fences it → its streams break, and its members find the new coordinator.

use std::time::Duration;

use lockstep_proto::domain::{CoordinatorBody, Outcome};
use rand::Rng;

use super::checker::Violation;
use super::{Fault, Simulation};
use crate::run::{Directive, Event, Run};

/// The one that was replaced.
pub(super) struct Zombie {
    run: Run,
    now: Duration,
    records_events: bool,
    /// Whether its store has failed it: it says nothing more.
    is_fenced: bool,
}

/// Coordinators that lived on, and what became of them.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::run) struct Zombies {
    pub(in crate::run) lived_on: u64,
    /// Events that they decided on.
    pub(in crate::run) heard: u64,
    /// Messages that they sent.
    pub(in crate::run) said: u64,
    /// Those that could not write.
    pub(in crate::run) fenced: u64,
}

impl Simulation {
    /// Another coordinator takes over what is durable, and this one lives on with some of the streams.
    pub(super) fn replace(&mut self) -> Result<(), Violation> {
        self.bury();
        let stay = self.trainers.who_stays(&mut self.wild);
        self.zombie = Some(Zombie {
            run: self.run.clone(),
            now: self.now,
            records_events: self.wild.random_ratio(1, 3),
            is_fenced: false,
        });
        self.zombies.lived_on += 1;
        // It sees some of the other streams close.
        let left = (0..self.trainers.all.len()).filter(|index| !stay.contains(index));
        let closed: Vec<_> = left.map(|index| self.trainers.peer(index)).collect();
        self.restart_beside(&stay)?;
        for peer in closed {
            if self.wild.random_ratio(1, 8) {
                self.zombie_decides(Event::MemberLost { peer });
            }
        }
        Ok(())
    }

    /// The one that was replaced is gone: killed, or ended because it could not write.
    pub(super) fn bury(&mut self) {
        if self.zombie.take().is_some() {
            self.trainers.lose_the_zombie();
        }
    }

    /// Time goes by for the one that was replaced as well.
    pub(super) fn zombie_ticks(&mut self, passed: Duration) {
        let Some(zombie) = &mut self.zombie else { return };
        zombie.now += passed;
        let ends = match zombie.is_fenced {
            true => self.wild.random_ratio(1, 4),
            false => self.wild.random_ratio(1, 24),
        };
        if ends {
            self.bury();
            return;
        }
        let event = match self.wild.random_range(0..24) {
            0 => Event::Pause,
            1 => Event::Resume,
            2 => Event::Stop,
            3 => Event::Abandon,
            _ => Event::Tick,
        };
        self.zombie_decides(event);
    }

    /// It takes the next thing that a trainer which is still with it has said.
    pub(super) fn zombie_hears(&mut self, trainer: usize) {
        if let Some(event) = self.trainers.all[trainer].to_coordinator.pop_front() {
            self.zombie_decides(event);
        }
    }

    fn zombie_decides(&mut self, event: Event) {
        let Some(zombie) = self.zombie.as_mut().filter(|zombie| !zombie.is_fenced) else {
            return;
        };
        self.zombies.heard += 1;
        let is_recorded = zombie.records_events && !matches!(event, Event::Tick | Event::Progress { .. });
        let told = self
            .is_traced
            .then(|| format!("{:?} the one that was replaced: {event:?}", zombie.now));
        let decision = zombie.run.step(event, zombie.now);
        if let Some(told) = told {
            println!("{told}\n    -> {:?}: {}", zombie.run.phase(), decision.reason);
        }
        let needs_a_record = |directive: &Directive| matches!(directive, Directive::Persist(_));
        let fails = is_recorded || decision.directives.iter().any(needs_a_record);
        if fails && self.run.fault == Some(Fault::WriteWithoutTheLock) {
            decision
                .directives
                .into_iter()
                .for_each(|directive| self.carry_out(directive));
            return;
        }
        if !fails {
            for directive in decision.directives {
                self.zombies.said += 1;
                self.carry_out(directive);
            }
            return;
        }
        zombie.is_fenced = true;
        self.zombies.fenced += 1;
        let stamp = zombie.run.stamp();
        let reason = "cannot write the ledger".to_owned();
        for index in self.trainers.of_the_zombie() {
            let peer = self.trainers.peer(index);
            let outcome = Outcome::Failed { reason: reason.clone() };
            let reason = reason.clone();
            self.trainers
                .send(peer, stamp, CoordinatorBody::Release { outcome, reason });
        }
    }
}

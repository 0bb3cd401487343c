//! Networks that fall apart: members that do not reach each other, or not the coordinator, until it is whole again.
//!
//! Each trainer is on one of two sides. What passes between the sides is a matter of the cut: nothing between trainers, so
//! that the collectives of a generation on both sides stand still until a deadline ends them; or nothing between one side and
//! the coordinator, which sees leases lapse; or neither.

use lockstep_proto::domain::Generation;
use rand::Rng;
use rand::rngs::StdRng;

use super::{State, Trainers};

impl Trainers {
    /// A rank waits for peers that it does not reach, and now and then its deadline is over.
    pub(super) fn miss_peers(&mut self, index: usize, rng: &mut StdRng) {
        let cause = match self.all[index].state {
            State::Meeting if rng.random_ratio(1, 8) => "a peer cannot be reached",
            State::Training | State::Paused(_) if rng.random_ratio(1, 4) => "nothing came of a peer until the deadline",
            _ => return,
        };
        self.stop(index, Some(cause.to_owned()));
    }

    /// Whether a cut goes through the ranks of a generation.
    pub(super) fn is_split(&self, generation: &Generation) -> bool {
        if !self.parted {
            return false;
        }
        let side_of = |name: &str| {
            self.all
                .iter()
                .find(|trainer| trainer.name == name)
                .map(|trainer| trainer.side)
        };
        let mut sides = generation.members.iter().map(|place| side_of(&place.member));
        let first = sides.next();
        sides.any(|side| Some(side) != first)
    }

    /// Cuts trainers off from each other, and those of one side from the coordinator, as it is said.
    pub(in super::super) fn part(
        &mut self,
        from_each_other: bool,
        from_the_coordinator: bool,
        rng: &mut StdRng,
    ) -> bool {
        if self.parted || !(from_each_other || from_the_coordinator) || self.all.iter().any(|trainer| trainer.muted) {
            return false;
        }
        for trainer in &mut self.all {
            trainer.side = rng.random();
            let is_there = trainer.joined && trainer.attached && trainer.is_present();
            trainer.muted |= from_the_coordinator && trainer.side && is_there;
        }
        self.parted = from_each_other;
        true
    }

    /// Whatever was cut off is heard again: what was said arrives, or the stream has broken meanwhile.
    pub(in super::super) fn heal(&mut self, rng: &mut StdRng) {
        self.parted = false;
        for index in 0..self.all.len() {
            if !std::mem::take(&mut self.all[index].muted) {
                continue;
            }
            let has_broken = rng.random_ratio(1, 3) && self.break_stream(index, rng);
            let trainer = &mut self.all[index];
            if std::mem::take(&mut trainer.is_fenced) && !has_broken {
                let peer = trainer.stream;
                self.fence(peer);
            }
        }
    }
}

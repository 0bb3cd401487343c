//! What befalls a trainer: it dies, hangs, cannot be heard, must leave, or its memory changes; and what it says of itself.

use std::collections::BTreeSet;

use lockstep_proto::domain::{Progress, Stamp};
use rand::Rng;
use rand::rngs::StdRng;

use super::{State, Trainer, Trainers};
use crate::run::{Event, Peer};

impl Trainers {
    /// A trainer dies; some of what it said is lost. Whether it was there to die.
    pub(in super::super) fn kill(&mut self, victim: usize, rng: &mut StdRng) -> bool {
        let peer = self.peer(victim);
        let trainer = &mut self.all[victim];
        if !trainer.alive || trainer.finished || trainer.refused || !trainer.joined {
            return false;
        }
        trainer.alive = false;
        trainer.parts.clear();
        for _ in 0..rng.random_range(0..3) {
            if !matches!(trainer.to_coordinator.back(), Some(Event::Join { .. })) {
                trainer.to_coordinator.pop_back();
            }
        }
        trainer.say(Event::MemberLost { peer });
        self.died = true;
        true
    }

    /// A trainer's device hangs: it does nothing any more, and a peer says so or does not. It will be fenced.
    pub(in super::super) fn hang(&mut self, index: usize, is_told: bool) -> bool {
        let trainer = &self.all[index];
        if !trainer.is_present() || trainer.state != State::Training {
            return false;
        }
        let Some(stamp) = trainer.stamp() else { return false };
        let peers = self.in_collectives(stamp);
        self.all[index].hangs = true;
        // The last thing that it did was to begin what it hangs in.
        self.all[index].counter += 1;
        self.hung += 1;
        let other = peers.into_iter().find(|peer| *peer != self.peer(index));
        if let Some(other) = other.and_then(|other| self.index_of(other)).filter(|_| is_told) {
            self.stop(other, Some("a peer does nothing".to_owned()));
        }
        true
    }

    /// Nothing passes between a trainer and the coordinator for a while.
    pub(in super::super) fn mute(&mut self, index: usize) -> bool {
        let trainer = &mut self.all[index];
        let is_there = trainer.joined && trainer.attached && !trainer.muted && trainer.is_present();
        trainer.muted |= is_there;
        self.muted += u64::from(is_there);
        is_there
    }

    /// What every trainer that is heard says of its device thread now.
    pub(in super::super) fn progress(&mut self) -> Vec<(Peer, Progress)> {
        let hung: BTreeSet<Stamp> = self
            .all
            .iter()
            .filter(|trainer| trainer.hangs)
            .filter_map(Trainer::stamp)
            .collect();
        let mut said = Vec::new();
        for index in 0..self.all.len() {
            let peer = self.peer(index);
            let is_split = self.all[index]
                .generation
                .as_ref()
                .is_some_and(|own| self.is_split(own));
            let is_elsewhere = self.is_with_the_zombie(index);
            let trainer = &mut self.all[index];
            if !trainer.alive
                || !trainer.joined
                || !trainer.attached
                || trainer.muted
                || trainer.refused
                || is_elsewhere
            {
                continue;
            }
            let waits_for_it = is_split || trainer.stamp().is_some_and(|stamp| hung.contains(&stamp));
            let waits = !trainer.hangs && (waits_for_it || trainer.state != State::Training);
            trainer.counter += u64::from(!trainer.hangs);
            let progress = Progress {
                step: trainer.at + 1,
                phase: "forward".to_owned(),
                counter: trainer.counter,
                waits,
                longest_ms: Some(20),
            };
            said.push((peer, progress));
        }
        said
    }

    /// A bit changes in a trainer's memory, and all ranks of its generation find that in the same step.
    pub(in super::super) fn drift(&mut self, index: usize) -> bool {
        let trainer = &self.all[index];
        if !trainer.is_present() || trainer.state != State::Training {
            return false;
        }
        let Some(generation) = trainer.generation.clone() else {
            return false;
        };
        let Some(rank) = generation.place_of(&trainer.name).map(|place| place.rank) else {
            return false;
        };
        for peer in self.in_collectives(generation.stamp) {
            if let Some(other) = self.index_of(peer).filter(|other| !self.all[*other].hangs) {
                let cause = format!("a bit has changed in the memory of rank {rank}");
                self.leave(other, Some(cause), false, Some(rank), None);
            }
        }
        self.drifts += 1;
        true
    }

    /// A trainer is asked to leave by its host.
    pub(in super::super) fn drain(&mut self, index: usize) -> bool {
        let peer = self.peer(index);
        let trainer = &mut self.all[index];
        if !trainer.is_present() || !trainer.joined || trainer.leaving {
            return false;
        }
        trainer.leaving = true;
        trainer.say(Event::Leaving {
            peer,
            reason: "SIGTERM".to_owned(),
        });
        self.drained = true;
        true
    }
}

//! Snapshots as the coordinator knows them: who holds which part, which of them are whole, and where to fetch them.
//!
//! Way of data: a member says which part it holds → when every part of a step is held often enough, the snapshot stands →
//! when a generation is formed, the newest step of which the members hold every part is what it resumes from, but for what a
//! closed branch has made. Older ones are freed, but for those that a rewind may have to go back to.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_proto::domain::{CoordinatorBody, Part, PartPlace, Resume, Stamp};

use crate::run::machine::Answer;
use crate::run::world::secret;
use crate::run::{Directive, Peer, Phase, Record, Run};

/// Members that must hold a part before older snapshots are freed: its owner and a buddy.
const COPIES: usize = 2;

/// The parts of one step that one generation made, and who holds each.
type Holders = BTreeMap<Part, Vec<String>>;

/// Every snapshot of which parts are held, by step and generation.
fn held(holdings: impl Iterator<Item = (String, BTreeSet<Part>)>) -> BTreeMap<(u64, u64), Holders> {
    let mut held: BTreeMap<(u64, u64), Holders> = BTreeMap::new();
    for (address, parts) in holdings {
        for part in parts {
            let holders = held.entry((part.step, part.generation)).or_default();
            holders.entry(part).or_default().push(address.clone());
        }
    }
    held
}

/// The parts of a snapshot of `world` ranks, by part, if every one of them is held by `copies` members. Where members hold
/// different values under one name, neither counts.
fn whole(holders: &Holders, world: u32, copies: usize) -> Option<Vec<(Part, Vec<String>)>> {
    let mut parts: BTreeMap<u32, (Part, Vec<String>)> = BTreeMap::new();
    for (part, addresses) in holders {
        if parts.insert(part.part, (*part, addresses.clone())).is_some() {
            return None;
        }
    }
    let complete = (0..world).all(|part| parts.get(&part).is_some_and(|(_, held)| held.len() >= copies));
    (complete && parts.len() == world as usize).then(|| parts.into_values().collect())
}

/// How many more words of members that they hold another part it takes, at least, before a snapshot can be whole.
fn lacking(holders: &Holders, world: u32, copies: usize) -> usize {
    let there: usize = holders.values().map(|addresses| addresses.len().min(copies)).sum();
    // Where two values go under one name it is looked at every time.
    (copies * world as usize).saturating_sub(there).max(1)
}

impl Run {
    /// A member holds another part: its own, or its ward's.
    pub(super) fn holds(&mut self, peer: Peer, stamp: Stamp, part: Part, directives: &mut Vec<Directive>) -> Answer {
        if self.present(peer, stamp).is_none() || self.phase == Phase::Ended {
            return Ok(None);
        }
        let is_new = self.members.change(&peer, |member| member.parts.insert(part));
        if let (Some(lacking), Some(true)) = (&mut self.lacking, is_new) {
            // The first part of a step is worth a look, which counts what is lacking.
            let lacking = lacking.entry(part.step).or_insert(1);
            *lacking = lacking.saturating_sub(1);
        }
        let may_stand =
            |(step, lacking): (&u64, &usize)| *lacking == 0 && (self.snapshot + 1..=self.committed).contains(step);
        if self
            .lacking
            .as_ref()
            .is_none_or(|lacking| lacking.iter().any(may_stand))
        {
            self.stand(directives);
        }
        Ok(None)
    }

    /// Members that must hold a part.
    fn copies(&self) -> usize {
        #[cfg(test)]
        if self.fault == Some(super::simulator::Fault::SnapshotWithoutBuddies) {
            return 1;
        }
        COPIES.min(self.ranks() as usize)
    }

    /// Lets the newest snapshot of this generation stand that is held often enough.
    pub(super) fn stand(&mut self, directives: &mut Vec<Directive>) {
        let generation = self.stamp().generation;
        let (newer, committed) = (self.snapshot + 1, self.committed);
        let is_meant = |part: &&Part| part.generation == generation && (newer..=committed).contains(&part.step);
        let ranks = self.members.values().filter(|member| member.rank.is_some());
        let held = held(ranks.map(|member| {
            let parts = member.parts.iter().filter(is_meant).copied();
            (member.info.parts_address.clone(), parts.collect())
        }));
        let (copies, world) = (self.copies(), self.ranks());
        let mut newest = None;
        let known = self.lacking.get_or_insert_default();
        for ((step, _), holders) in held.iter().rev() {
            newest = whole(holders, world, copies).map(|parts| (*step, parts));
            if newest.is_some() {
                break;
            }
            known.insert(*step, lacking(holders, world, copies));
        }
        let Some((step, parts)) = newest else { return };
        self.snapshot = step;
        known.retain(|of, _| *of > step);
        let parts = parts.into_iter().map(|(part, _)| part).collect();
        directives.push(Directive::Persist(Record::Snapshot { step, parts }));
        let free_before = self.free_before(step);
        self.broadcast(CoordinatorBody::SnapshotStands { step, free_before }, directives);
    }

    /// What may be freed when the snapshot of a step stands: what is older, but for what a rewind may have to go back to.
    pub(super) fn free_before(&self, step: u64) -> u64 {
        let Some(rewinds) = &self.facts.rewinds else {
            return step;
        };
        #[cfg(test)]
        if self.fault == Some(super::simulator::Fault::FreeWhatARewindNeeds) {
            return step;
        }
        let farthest = step.saturating_sub(rewinds.steps);
        let whole = |(of, generation): &(u64, u64), holders: &Holders| {
            let world = self.worlds_of.get(generation).copied();
            self.branches.is_live(*of, *generation) && world.is_some_and(|world| whole(holders, world, 1).is_some())
        };
        let there = self.members.values().filter(|member| member.finished.is_none());
        let held = held(there.map(|member| (member.info.parts_address.clone(), member.parts.clone())));
        let mut newest = held.iter().rev().filter(|((of, _), _)| *of <= farthest);
        newest
            .find(|(name, holders)| whole(name, holders))
            .map_or(0, |((of, _), _)| *of)
    }

    /// The parts that a generation can resume from, if they are all held.
    fn enough(&self, holders: &Holders, world: u32) -> Option<Vec<(Part, Vec<String>)>> {
        #[cfg(test)]
        if self.fault == Some(super::simulator::Fault::ResumeFromWhatNobodyHolds) {
            return Some(holders.keys().map(|part| (*part, Vec::new())).collect());
        }
        whole(holders, world, 1)
    }

    /// Whether what a generation made of a step is of the live branch.
    fn is_live(&self, step: u64, generation: u64) -> bool {
        #[cfg(test)]
        if self.fault == Some(super::simulator::Fault::ResumeFromAClosedBranch) {
            return true;
        }
        self.branches.is_live(step, generation)
    }

    /// The newest snapshot of a committed step, from step `from` to `through`, of which the members that are there hold every
    /// part. Not one of the last step: the ranks that make it write the run's files, so some step must be left.
    pub(super) fn newest_whole_snapshot(&self, from: u64, through: u64) -> Option<Resume> {
        let there = self.members.values().filter(|member| member.finished.is_none());
        let held = held(there.map(|member| (member.info.parts_address.clone(), member.parts.clone())));
        held.into_iter()
            .rev()
            .filter(|((step, generation), _)| self.is_live(*step, *generation))
            .filter(|((step, _), _)| (from..=through).contains(step) && *step < self.planner().total_steps())
            .find_map(|((step, generation), holders)| {
                let world = *self.worlds_of.get(&generation)?;
                let parts = self.enough(&holders, world)?.into_iter();
                let place = |(part, addresses): (Part, Vec<String>)| PartPlace {
                    hash: part.hash,
                    addresses,
                };
                Some(Resume {
                    step,
                    generation,
                    parts: parts.map(place).collect(),
                    checkpoint: None,
                    secret: secret(&self.facts.secret, generation),
                })
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(part: u32, hash: u8) -> Part {
        Part {
            step: 8,
            generation: 2,
            part,
            hash: [hash; 32],
        }
    }

    fn holders(held_by: &[(&str, &[Part])]) -> Holders {
        let all = held(
            held_by
                .iter()
                .map(|(address, parts)| ((*address).to_owned(), parts.iter().copied().collect())),
        );
        all.get(&(8, 2)).cloned().unwrap_or_default()
    }

    #[test]
    fn a_snapshot_is_whole_when_every_part_is_held_often_enough() {
        let ring = holders(&[
            ("a", &[part(0, 1), part(2, 3)]),
            ("b", &[part(1, 2), part(0, 1)]),
            ("c", &[part(2, 3), part(1, 2)]),
        ]);
        let parts = whole(&ring, 3, 2).map(|parts| parts.into_iter().map(|(part, _)| part.part).collect());
        assert_eq!(parts, Some(vec![0, 1, 2]));
        let survivors = holders(&[("a", &[part(0, 1), part(2, 3)]), ("c", &[part(2, 3), part(1, 2)])]);
        assert!(whole(&survivors, 3, 1).is_some() && whole(&survivors, 3, 2).is_none());
        let lonely = holders(&[("a", &[part(0, 1), part(2, 3)])]);
        assert!(whole(&lonely, 3, 1).is_none());
    }

    #[test]
    fn a_part_that_two_members_hold_with_other_values_does_not_count() {
        let torn = holders(&[("a", &[part(0, 1), part(1, 2)]), ("b", &[part(0, 9)])]);
        assert!(whole(&torn, 2, 1).is_none());
    }

    #[test]
    fn parts_of_another_world_do_not_make_one_whole() {
        let larger = holders(&[("a", &[part(0, 1), part(1, 2), part(2, 3)])]);
        assert!(whole(&larger, 2, 1).is_none());
    }
}

//! Which faults, in which order, on whom: a pure function of the seed.

use std::time::Duration;

use crate::chaos::kind::Kind;

/// The longest time between a new step and the next fault.
const LONGEST_PAUSE: u64 = 300;

/// One fault, decided but for the names of those who live when it comes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    /// So many trainers at least are in the run before it.
    pub(super) trainers: u32,
    /// Time after a new step, so that every moment of a step is hit.
    pub(super) pause: Duration,
    /// What is left to chance while it is played.
    pub(super) dice: Dice,
}

/// Every fault of a run: each of `kinds` comes as often as its weight says before one comes again.
pub(super) fn schedule(seed: u64, faults: usize, kinds: &[Kind], ranks: u32) -> Vec<Fault> {
    let mut dice = Dice::new(seed);
    let possible = |kind: &&Kind| kind.least_trainers() + u32::from(kind.brings_one()) <= ranks;
    let kinds: Vec<Kind> = kinds.iter().filter(possible).copied().collect();
    let mut bag: Vec<Kind> = Vec::new();
    let mut chosen = Vec::new();
    while chosen.len() < faults && !kinds.is_empty() {
        if bag.is_empty() {
            bag.extend(kinds.iter().flat_map(|kind| vec![*kind; kind.weight()]));
        }
        let kind = bag.swap_remove(dice.below(bag.len() as u64) as usize);
        let least = kind.least_trainers();
        let most = ranks - u32::from(kind.brings_one());
        chosen.push(Fault {
            kind,
            trainers: least + dice.below(u64::from(most - least) + 1) as u32,
            pause: Duration::from_millis(dice.below(LONGEST_PAUSE)),
            dice: Dice::new(dice.next()),
        });
    }
    chosen
}

/// SplitMix64 (Steele, Lea, Flood 2014). Not a crate's generator: those may give other numbers in their next version, and a
/// seed that found something must find it again.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A time below `end`.
    pub(super) fn within(&mut self, end: Duration) -> Duration {
        Duration::from_micros(self.below(end.as_micros() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_says_it_all_and_another_one_says_something_else() {
        let of = |seed| schedule(seed, 100, Kind::all(), 4);
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        assert_eq!(
            of(7)[..40],
            schedule(7, 40, Kind::all(), 4),
            "a longer run begins like a shorter one"
        );
    }

    #[test]
    fn every_kind_comes_and_finds_the_trainers_that_it_needs() {
        for seed in 0..50 {
            let faults = schedule(seed, 30, Kind::all(), 4);
            assert_eq!(faults.len(), 30);
            for kind in Kind::all() {
                assert!(
                    faults.iter().any(|fault| fault.kind == *kind),
                    "seed {seed}: no {kind:?}"
                );
            }
            for fault in faults {
                let most = if fault.kind.brings_one() { 3 } else { 4 };
                assert!(
                    (fault.kind.least_trainers()..=most).contains(&fault.trainers),
                    "{fault:?}"
                );
            }
        }
    }

    #[test]
    fn kinds_that_a_small_world_cannot_have_are_left_out() {
        let faults = schedule(1, 40, Kind::all(), 2);
        assert!(faults.iter().all(|fault| fault.kind != Kind::KillTwo));
        assert!(schedule(1, 40, &[Kind::KillTwo], 2).is_empty());
    }
}

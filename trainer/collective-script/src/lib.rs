//! Random scripts of collectives with their answers, for the tests of every backend.
//!
//! A [`Script`] is a pure function of its seed: world, lanes, owners, payload, delays. A [`Player`] plays one rank of it on
//! any [`Collective`](lockstep_collective::Collective) and checks all that it receives, bit for bit, against one process that adds and copies by the
//! definition of the lane tree.
#![allow(clippy::unwrap_used)] // A player's failure is a test's failure.

mod payload;
mod player;

use std::ops::Range;
use std::thread;
use std::time::Duration;

use lockstep_collective::{Aborter, LaneTree, Wire, round_to_bf16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub use payload::Payload;
pub use player::Player;

/// How long a script may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What all ranks agree on before they start; a pure function of the seed.
pub struct Script {
    seed: u64,
    /// Ranks.
    pub size: u32,
    lanes: u32,
    rank_lanes: Vec<Range<u32>>,
    /// Elements of the flat gradient buffer, cut into buckets.
    elements: usize,
    buckets: Vec<Range<usize>>,
    /// Owner of each piece of each bucket.
    pieces: Vec<Vec<(Range<usize>, u32)>>,
    /// Bytes of another buffer, cut anywhere.
    bytes: Vec<(Range<usize>, u32)>,
    rounds: Vec<Round>,
    wire: Wire,
    /// Whether sums go by rank instead of by the lane tree.
    by_rank: bool,
}

struct Round {
    working: Vec<bool>,
    /// Reduce each bucket at once after its publish, or all at the end.
    eager: bool,
    /// Lengths of the tables exchanged in a row.
    tables: Vec<usize>,
    root: u32,
    broadcast: Range<usize>,
}

/// `0..end` cut into `pieces` neighbouring ranges, some of them empty.
fn cut(random: &mut StdRng, end: usize, pieces: usize) -> Vec<Range<usize>> {
    let mut borders: Vec<usize> = (1..pieces).map(|_| random.random_range(0..=end)).collect();
    borders.extend([0, end]);
    borders.sort();
    borders.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

impl Script {
    /// The script of a seed, with 1 to 8 ranks.
    pub fn new(seed: u64) -> Script {
        Script::with_size(seed, StdRng::seed_from_u64(seed).random_range(1..=8))
    }

    /// The script of a seed, with `size` ranks.
    pub fn with_size(seed: u64, size: u32) -> Script {
        let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
        let lanes = random.random_range(1..=16);
        let rank_lanes = cut(&mut random, lanes as usize, size as usize)
            .iter()
            .map(|r| r.start as u32..r.end as u32)
            .collect();
        let elements = [0, 1, 7, 1023, 2048, 4097, 50_021][random.random_range(0..7)];
        let buckets = {
            let count = random.random_range(1..=4);
            cut(&mut random, elements, count)
        };
        let pieces = buckets
            .iter()
            .map(|bucket| {
                let count = random.random_range(1..=12);
                let cuts = cut(&mut random, bucket.len(), count);
                let place = |piece: Range<usize>| bucket.start + piece.start..bucket.start + piece.end;
                cuts.into_iter()
                    .map(|piece| (place(piece), random.random_range(0..size)))
                    .collect()
            })
            .collect();
        let length = random.random_range(0..5000);
        let bytes = cut(&mut random, length, 9)
            .into_iter()
            .map(|piece| (piece, random.random_range(0..size)))
            .collect();
        let rounds = (0..random.random_range(1..=5))
            .map(|_| {
                let mut working: Vec<bool> = (0..lanes).map(|_| random.random_bool(0.75)).collect();
                working[random.random_range(0..lanes as usize)] = true;
                let tables = [0, 1, 2, 3, 500, 513, 3000];
                Round {
                    working,
                    eager: random.random(),
                    tables: (0..random.random_range(2..5))
                        .map(|_| tables[random.random_range(0..7)])
                        .collect(),
                    root: random.random_range(0..size),
                    broadcast: {
                        let mut ends = [random.random_range(0..=length), random.random_range(0..=length)];
                        ends.sort();
                        ends[0]..ends[1]
                    },
                }
            })
            .collect();
        Script {
            seed,
            size,
            lanes,
            rank_lanes,
            elements,
            buckets,
            pieces,
            bytes,
            rounds,
            wire: if random.random_bool(0.3) {
                Wire::Bf16
            } else {
                Wire::Float32
            },
            by_rank: random.random_bool(0.2),
        }
    }

    /// The order of the sums in a round.
    fn tree(&self, round: usize) -> LaneTree {
        let working = &self.rounds[round].working;
        match self.by_rank {
            true => LaneTree::by_rank(working, &self.rank_lanes),
            false => LaneTree::new(working),
        }
    }

    /// The sum that one rank gives away, as it gives it away.
    fn partial(&self, round: usize, lanes: Range<u32>, place: usize) -> f32 {
        let sum = match self.by_rank {
            true => self.one_after_the_other(round, lanes.clone(), place),
            false => self.node(round, lanes.clone(), place),
        };
        self.rounded(sum.unwrap(), self.is_whole(round, &lanes))
    }

    /// The whole sum.
    fn whole(&self, round: usize, place: usize) -> f32 {
        if !self.by_rank {
            return self.node(round, 0..self.lanes, place).unwrap();
        }
        let partials: Vec<f32> = self
            .ranks_with_work(round)
            .map(|lanes| self.partial(round, lanes, place))
            .collect();
        let mut sum = partials[0];
        for (number, partial) in partials.iter().enumerate().skip(1) {
            sum = self.rounded(sum + partial, number + 1 == partials.len());
        }
        sum
    }

    /// Whether these lanes have all the work of a round: their sum is the whole one.
    fn is_whole(&self, round: usize, lanes: &Range<u32>) -> bool {
        let working = &self.rounds[round].working;
        (0u32..)
            .zip(working)
            .all(|(lane, works)| !works || lanes.contains(&lane))
    }

    fn ranks_with_work(&self, round: usize) -> impl Iterator<Item = Range<u32>> + '_ {
        let works = move |lane: u32| self.rounds[round].working[lane as usize];
        self.rank_lanes
            .iter()
            .filter(move |lanes| (*lanes).clone().any(works))
            .cloned()
    }

    fn one_after_the_other(&self, round: usize, lanes: Range<u32>, place: usize) -> Option<f32> {
        let working = |lane: &u32| self.rounds[round].working[*lane as usize];
        lanes
            .filter(working)
            .map(|lane| self.value(round, lane, place))
            .reduce(|sum, value| sum + value)
    }

    /// As the wire rounds what is not the whole sum.
    fn rounded(&self, sum: f32, is_whole: bool) -> f32 {
        let mut values = [sum];
        if self.wire == Wire::Bf16 && !is_whole {
            round_to_bf16(&mut values);
        }
        values[0]
    }

    /// A word that depends on all its arguments.
    fn word(&self, kind: u64, round: usize, who: u32, place: usize) -> u64 {
        let mut word = self.seed ^ kind << 60 ^ (round as u64) << 50 ^ u64::from(who) << 40 ^ place as u64;
        for _ in 0..2 {
            word = (word ^ word >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        word ^ word >> 29
    }

    /// What lane `lane` adds to element `place`: signs and magnitudes so mixed that every order of adding shows.
    fn value(&self, round: usize, lane: u32, place: usize) -> f32 {
        let word = self.word(1, round, lane, place);
        let magnitude = 2f32.powi((word % 24) as i32 - 12);
        let sign = if word & 1 << 40 == 0 { 1.0 } else { -1.0 };
        sign * magnitude * (1.0 + (word >> 41) as f32 / (1u64 << 23) as f32)
    }

    /// The definition of the lane tree.
    fn node(&self, round: usize, lanes: Range<u32>, place: usize) -> Option<f32> {
        if lanes.len() == 1 {
            let value = || self.rounded(self.value(round, lanes.start, place), self.is_whole(round, &lanes));
            return self.rounds[round].working[lanes.start as usize].then(value);
        }
        let mut p = 1;
        while 2 * p < lanes.end - lanes.start {
            p *= 2;
        }
        let middle = lanes.start + p;
        match (
            self.node(round, lanes.start..middle, place),
            self.node(round, middle..lanes.end, place),
        ) {
            (Some(left), Some(right)) => Some(self.rounded(left + right, self.is_whole(round, &lanes))),
            (left, right) => left.or(right),
        }
    }
}

/// An aborter that ends a script which has not ended by itself.
pub fn patient() -> Aborter {
    let aborter = Aborter::new();
    let later = aborter.clone();
    thread::spawn(move || {
        thread::sleep(PATIENCE);
        later.abort("the test has run out of patience");
    });
    aborter
}

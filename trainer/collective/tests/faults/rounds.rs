//! Rounds of every call, over and over, with values that every rank can compute: what is received is checked before the
//! next call, so a wrong value cannot pass.

use std::ops::Range;

use lockstep_collective::{BufferId, Collective, CollectiveError, LaneTree, ReduceLanes, Wire};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::plan::{Plan, Step};

const BUCKETS: u32 = 2;
/// More than any machine has, and less than an address can name.
const TOO_MUCH: usize = 1 << 60;
/// What is asked for where a rank may map no more.
pub(crate) const MUCH: usize = 4 << 20;

/// The rounds of one rank in one world.
pub(crate) struct Rounds {
    collective: Box<dyn Collective>,
    seed: u64,
    elements: usize,
    /// Bytes of an allocation in a round.
    more: usize,
    rank_lanes: Vec<Range<u32>>,
    tree: LaneTree,
    /// By bucket.
    owners: Vec<Vec<(Range<usize>, u32)>>,
    partials: Vec<BufferId>,
    bytes: BufferId,
    whole: BufferId,
}

/// `range` cut into `pieces` neighbouring ranges.
fn cut(random: &mut StdRng, range: Range<usize>, pieces: usize) -> Vec<Range<usize>> {
    let mut borders: Vec<usize> = (1..pieces)
        .map(|_| random.random_range(range.start..=range.end))
        .collect();
    borders.extend([range.start, range.end]);
    borders.sort();
    borders.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

impl Rounds {
    /// Allocates what the rounds need.
    pub(crate) fn new(plan: &Plan, mut collective: Box<dyn Collective>) -> Result<Rounds, CollectiveError> {
        let random = &mut StdRng::seed_from_u64(plan.seed);
        let size = collective.size();
        let mut first = 0;
        let rank_lanes: Vec<Range<u32>> = (0..size)
            .map(|_| {
                let lanes = first..first + random.random_range(1..=3);
                first = lanes.end;
                lanes
            })
            .collect();
        let tree = LaneTree::full(first);
        let most = rank_lanes
            .iter()
            .map(|lanes| tree.maximal_subtrees(lanes.clone()).len());
        let buckets = cut(random, 0..plan.elements, BUCKETS as usize);
        let owners = buckets
            .into_iter()
            .map(|bucket| cut(random, bucket, size as usize).into_iter().zip(0..).collect())
            .collect();
        let partials = (0..most.max().unwrap_or(1))
            .map(|_| collective.allocate("partials", 4 * plan.elements))
            .collect::<Result<_, _>>()?;
        Ok(Rounds {
            bytes: collective.allocate("bytes", plan.elements)?,
            whole: collective.allocate("whole", plan.elements)?,
            collective,
            seed: plan.seed,
            elements: plan.elements,
            more: match plan.fault {
                crate::plan::Fault::NoSuchMemory => TOO_MUCH,
                crate::plan::Fault::Memory(_) => MUCH,
                _ => 4096,
            },
            rank_lanes,
            tree,
            owners,
            partials,
        })
    }

    /// Later rounds allocate little: for a generation after one that had no memory.
    pub(crate) fn frugal(mut self) -> Rounds {
        self.more = 4096;
        self
    }

    /// One round; `before` is told of each step, and says whether to go on. Whether all of it was played.
    pub(crate) fn play(&mut self, round: u64, mut before: impl FnMut(Step) -> bool) -> Result<bool, CollectiveError> {
        let random = &mut StdRng::seed_from_u64(self.seed ^ round.wrapping_mul(0x2545_f491_4f6c_dd1d));
        self.fill_partials(round);
        let publishes_first = random.random_bool(0.5);
        for bucket in 0..BUCKETS {
            if !before(Step::Publish) {
                return Ok(false);
            }
            self.collective.publish(bucket)?;
            if !publishes_first {
                if !before(Step::Reduce) {
                    return Ok(false);
                }
                self.reduce(round, bucket)?;
            }
        }
        for bucket in 0..if publishes_first { BUCKETS } else { 0 } {
            if !before(Step::Reduce) {
                return Ok(false);
            }
            self.reduce(round, bucket)?;
        }
        let mut steps = [Step::Gather, Step::Slots, Step::Broadcast, Step::Allocate];
        steps.shuffle(random);
        for step in steps {
            if !before(step) {
                return Ok(false);
            }
            match step {
                Step::Gather => self.gather(round, random)?,
                Step::Slots => self.exchange_slots(round, random)?,
                Step::Broadcast => self.broadcast(round, random)?,
                // A few only: what is allocated stays.
                _ if round < 8 => drop(self.collective.allocate("more", self.more)?),
                _ => {}
            }
        }
        if !before(Step::Barrier) {
            return Ok(false);
        }
        self.collective.barrier()?;
        Ok(true)
    }

    /// A word that depends on all its arguments.
    fn word(&self, round: u64, who: u32, place: usize) -> u64 {
        let mut word = self.seed ^ round << 44 ^ u64::from(who) << 36 ^ place as u64;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// A lane's gradient: a whole number, so that sums are exact in any order. In every other round so small that it
    /// travels as half a float.
    fn gradient(&self, round: u64, lane: u32, element: usize) -> f32 {
        let most = if round.is_multiple_of(2) { 1 << 4 } else { 1 << 16 };
        (self.word(round, lane, element) % most) as f32
    }

    fn sum(&self, round: u64, lanes: Range<u32>, element: usize) -> f32 {
        lanes.map(|lane| self.gradient(round, lane, element)).sum()
    }

    fn fill_partials(&mut self, round: u64) {
        let mine = self
            .tree
            .maximal_subtrees(self.rank_lanes[self.collective.rank() as usize].clone());
        for (lanes, buffer) in mine.into_iter().zip(self.partials.clone()) {
            let sums: Vec<f32> = (0..self.elements)
                .map(|element| self.sum(round, lanes.clone(), element))
                .collect();
            self.collective
                .buffer_mut(buffer)
                .floats_mut(0..self.elements)
                .copy_from_slice(&sums);
        }
    }

    fn reduce(&mut self, round: u64, bucket: u32) -> Result<(), CollectiveError> {
        self.collective.reduce_lanes(&ReduceLanes {
            bucket,
            owners: &self.owners[bucket as usize],
            rank_lanes: &self.rank_lanes,
            tree: &self.tree,
            buffers: &self.partials,
            wire: Wire::Float32,
        })?;
        let (rank, lanes) = (self.collective.rank(), self.tree.lanes());
        for (elements, _) in self.owners[bucket as usize].iter().filter(|(_, owner)| *owner == rank) {
            let sums = self.collective.buffer(self.partials[0]).floats(elements.clone());
            for (element, sum) in elements.clone().zip(sums) {
                let expected = self.sum(round, 0..lanes, element);
                assert_eq!(*sum, expected, "element {element} of bucket {bucket} in round {round}");
            }
        }
        Ok(())
    }

    fn gather(&mut self, round: u64, random: &mut StdRng) -> Result<(), CollectiveError> {
        let size = self.collective.size();
        let mut ranges: Vec<(Range<usize>, u32)> = cut(random, 0..self.elements, size as usize)
            .into_iter()
            .zip(0..)
            .collect();
        ranges.shuffle(random);
        let rank = self.collective.rank();
        for (range, _) in ranges.iter().filter(|(_, owner)| *owner == rank) {
            let own: Vec<u8> = range.clone().map(|place| self.word(round, rank, place) as u8).collect();
            self.collective
                .buffer_mut(self.bytes)
                .bytes_mut(range.clone())
                .copy_from_slice(&own);
        }
        self.collective.all_gather_v(self.bytes, &ranges)?;
        for (range, owner) in ranges {
            let bytes = self.collective.buffer(self.bytes).bytes(range.clone());
            for (place, byte) in range.zip(bytes) {
                assert_eq!(
                    *byte,
                    self.word(round, owner, place) as u8,
                    "byte {place} in round {round}"
                );
            }
        }
        Ok(())
    }

    fn exchange_slots(&mut self, round: u64, random: &mut StdRng) -> Result<(), CollectiveError> {
        let (rank, size) = (self.collective.rank(), self.collective.size());
        let slots = [1, 40, 700][random.random_range(0..3)];
        let owners: Vec<u32> = (0..slots).map(|_| random.random_range(0..size)).collect();
        let value = |slot: usize, owner: u32| self.word(round, owner + 100, slot);
        let mut table: Vec<u64> = owners
            .iter()
            .enumerate()
            .map(|(slot, owner)| if *owner == rank { value(slot, rank) } else { 0 })
            .collect();
        let expected: Vec<u64> = owners
            .iter()
            .enumerate()
            .map(|(slot, owner)| value(slot, *owner))
            .collect();
        self.collective.exchange_slots(&mut table, &owners)?;
        assert!(table == expected, "slots in round {round}");
        Ok(())
    }

    fn broadcast(&mut self, round: u64, random: &mut StdRng) -> Result<(), CollectiveError> {
        let root = random.random_range(0..self.collective.size());
        let bytes = 0..random.random_range(1..=self.elements);
        let expected: Vec<u8> = bytes.clone().map(|place| self.word(round, 200, place) as u8).collect();
        if self.collective.rank() == root {
            self.collective
                .buffer_mut(self.whole)
                .bytes_mut(bytes.clone())
                .copy_from_slice(&expected);
        }
        self.collective.broadcast(self.whole, bytes.clone(), root)?;
        assert!(
            self.collective.buffer(self.whole).bytes(bytes) == expected,
            "broadcast in round {round}"
        );
        Ok(())
    }
}

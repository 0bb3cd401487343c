//! Rounds of every call, with values that every rank can compute. What has come is checked at the end of a round, when a
//! barrier has found that the stream is there: so a wrong value cannot pass, and several calls are under way at once.

use std::ops::Range;
use std::sync::Arc;

use accelerator_double::HostAccelerator;
use lockstep_collective::{BufferId, Collective, CollectiveError, LaneTree, ReduceLanes, Wire};
use lockstep_collective_script::Payload;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// The calls of a round, which ends with a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Reduce,
    Gather,
    Slots,
    Broadcast,
    Allocate,
}

pub(crate) const STEPS: [Step; 5] = [Step::Reduce, Step::Gather, Step::Slots, Step::Broadcast, Step::Allocate];

/// What a rank does otherwise than the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// A barrier in place of another call.
    Call,
    /// A buffer of another size.
    Buffer,
    Root,
    Ranges,
    /// One element more is reduced.
    Count,
    /// No reduction.
    Skip,
}

/// What a rank does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Call,
    Differ(Difference),
    Leave,
}

/// The rounds of one rank in one world.
pub(crate) struct Rounds {
    collective: Box<dyn Collective>,
    payload: Payload,
    seed: u64,
    elements: usize,
    /// No piece is empty: every rank waits for every other one in a reduction.
    owners: Vec<(Range<usize>, u32)>,
    partials: BufferId,
    bytes: BufferId,
    whole: BufferId,
}

impl Rounds {
    /// Allocates what the rounds need.
    pub(crate) fn new(
        seed: u64,
        elements: usize,
        mut collective: Box<dyn Collective>,
        device: Arc<HostAccelerator>,
    ) -> Result<Rounds, CollectiveError> {
        let random = &mut StdRng::seed_from_u64(seed);
        let size = collective.size();
        let mut borders: Vec<usize> = (1..elements).collect();
        borders.shuffle(random);
        borders.truncate(size as usize - 1);
        borders.extend([0, elements]);
        borders.sort();
        Ok(Rounds {
            // Room for one element more than is owned.
            partials: collective.allocate("partials", 4 * elements + 4)?,
            bytes: collective.allocate("bytes", elements)?,
            whole: collective.allocate("whole", elements)?,
            collective,
            payload: Payload::on_device(device),
            seed,
            elements,
            owners: borders.windows(2).map(|pair| pair[0]..pair[1]).zip(0..).collect(),
        })
    }

    /// One round; `turn` is asked before each step. Whether all of it was played.
    pub(crate) fn play(
        &mut self,
        round: u64,
        mut turn: impl FnMut(usize, Step) -> Turn,
    ) -> Result<bool, CollectiveError> {
        let random = &mut StdRng::seed_from_u64(self.seed ^ round.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let mut steps = STEPS;
        steps.shuffle(random);
        let root = random.random_range(0..self.collective.size());
        let slots = [1, 40, 300, 700][random.random_range(0..4)];
        self.fill(round, root);
        for (place, step) in steps.into_iter().enumerate() {
            let difference = match turn(place, step) {
                Turn::Leave => return Ok(false),
                Turn::Differ(difference) => Some(difference),
                Turn::Call => None,
            };
            if difference == Some(Difference::Call) {
                self.collective.barrier()?;
                continue;
            }
            match step {
                Step::Reduce if difference == Some(Difference::Skip) => {}
                Step::Reduce => self.reduce(usize::from(difference.is_some()))?,
                Step::Gather => self.gather(difference.is_some())?,
                Step::Slots => self.exchange_slots(round, slots)?,
                Step::Broadcast => {
                    let root = (root + u32::from(difference.is_some())) % self.collective.size();
                    self.collective.broadcast(self.whole, 0..self.elements, root)?;
                }
                Step::Allocate => {
                    let more = 8 + usize::from(difference.is_some());
                    self.collective.allocate("more", more)?;
                }
            }
        }
        self.collective.barrier()?;
        self.check(round, root);
        Ok(true)
    }

    /// A call after one that has failed.
    pub(crate) fn again(&mut self) -> Result<(), CollectiveError> {
        self.collective.barrier()
    }

    /// A word that depends on all its arguments.
    fn word(&self, round: u64, who: u32, place: usize) -> u64 {
        let mut word = self.seed ^ round << 44 ^ u64::from(who) << 36 ^ place as u64;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// A rank's gradient: a whole number, so that sums are exact in any order.
    fn gradient(&self, round: u64, rank: u32, element: usize) -> f32 {
        (self.word(round, rank, element) % (1 << 16)) as f32
    }

    /// The bytes `range` that `who` gives.
    fn given(&self, round: u64, who: u32, range: Range<usize>) -> Vec<u8> {
        range.map(|place| self.word(round, who, place) as u8).collect()
    }

    fn fill(&mut self, round: u64, root: u32) {
        let rank = self.collective.rank();
        let gradients: Vec<f32> = (0..self.elements + 1)
            .map(|element| self.gradient(round, rank, element))
            .collect();
        let (owned, _) = self.owners[rank as usize].clone();
        let own = self.given(round, rank + 50, owned.clone());
        let all = self.given(round, 200, 0..self.elements);
        let collective = self.collective.as_mut();
        self.payload.write_floats(collective, self.partials, 0, &gradients);
        self.payload.write(collective, self.bytes, owned.start, &own);
        if rank == root {
            self.payload.write(collective, self.whole, 0, &all);
        }
        self.payload.before();
    }

    fn reduce(&mut self, more: usize) -> Result<(), CollectiveError> {
        let size = self.collective.size();
        let rank_lanes: Vec<Range<u32>> = (0..size).map(|rank| rank..rank + 1).collect();
        let mut owners = self.owners.clone();
        owners[size as usize - 1].0.end += more;
        self.collective.publish(0)?;
        self.collective.reduce_lanes(&ReduceLanes {
            bucket: 0,
            owners: &owners,
            rank_lanes: &rank_lanes,
            tree: &LaneTree::full(size),
            buffers: &[self.partials],
            wire: Wire::Float32,
        })
    }

    fn gather(&mut self, other_owners: bool) -> Result<(), CollectiveError> {
        let mut ranges = self.owners.clone();
        if other_owners {
            (ranges[0].1, ranges[1].1) = (1, 0);
        }
        self.collective.all_gather_v(self.bytes, &ranges)
    }

    fn exchange_slots(&mut self, round: u64, slots: usize) -> Result<(), CollectiveError> {
        let (rank, size) = (self.collective.rank(), self.collective.size());
        let owners: Vec<u32> = (0..slots)
            .map(|slot| (self.word(round, 150, slot) % u64::from(size)) as u32)
            .collect();
        let expected: Vec<u64> = (0..slots)
            .map(|slot| self.word(round, owners[slot] + 100, slot))
            .collect();
        let own = expected.iter().zip(&owners);
        let mut table: Vec<u64> = own
            .map(|(value, owner)| if *owner == rank { *value } else { 0 })
            .collect();
        self.collective.exchange_slots(&mut table, &owners)?;
        assert!(table == expected, "slots in round {round}");
        Ok(())
    }

    /// Whether everything that has come in this round is what it should be.
    fn check(&self, round: u64, root: u32) {
        self.payload.after();
        let collective = self.collective.as_ref();
        let (owned, _) = self.owners[collective.rank() as usize].clone();
        let sums = self.payload.read_floats(collective, self.partials, owned.clone());
        for (element, sum) in owned.zip(sums) {
            let all = (0..collective.size()).map(|rank| self.gradient(round, rank, element));
            assert_eq!(sum, all.sum::<f32>(), "element {element} in round {round}");
        }
        for (range, owner) in &self.owners {
            let bytes = self.payload.read(collective, self.bytes, range.clone());
            assert!(
                bytes == self.given(round, owner + 50, range.clone()),
                "bytes of rank {owner} in round {round}"
            );
        }
        let whole = self.payload.read(collective, self.whole, 0..self.elements);
        assert!(
            whole == self.given(round, 200, 0..self.elements),
            "broadcast of rank {root} in round {round}"
        );
    }
}

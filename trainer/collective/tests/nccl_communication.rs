//! The communication thread over NCCL: steps whose compute stream runs behind, whose streams are held up at random; and what
//! it does with an abort while nobody calls.
#![allow(clippy::unwrap_used)]

mod nccl_world;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use accelerator_double::{HostAccelerator, double};
use lockstep_collective::communication::{Communication, Overlap, Program};
use lockstep_collective::{
    Aborter, Accelerator, BufferId, CollectiveError, Device, LaneTree, Memory, Pinned, Stream, Wire, nccl_scratch_bytes,
};
use nccl_double::{Call, Stage};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use nccl_world::{PATIENCE, World};

/// Elements of a bucket, and of a layer.
const ELEMENTS: usize = 192;
const BUCKETS: usize = 3;

/// One rank of a world, with a lane of its own, as the device thread sees it.
struct Rank {
    communication: Communication,
    device: Arc<HostAccelerator>,
    gradients: Memory,
    working: Memory,
    rank: u32,
    size: u32,
}

/// The owners of every bucket and of every layer: a third of it each, in turn.
fn owners(size: u32, bucket: usize) -> Vec<(Range<usize>, u32)> {
    let piece = ELEMENTS / 3;
    let start = bucket * ELEMENTS;
    (0..3)
        .map(|part| {
            let first = start + part * piece;
            (first..first + piece, (part + bucket) as u32 % size)
        })
        .collect()
}

impl Rank {
    fn start(world: &World, (rank, size): (u32, u32), stall: Duration, aborter: &Aborter) -> Rank {
        let device = HostAccelerator::new();
        let connect = {
            let (id, unique) = (world.id.clone(), world.unique);
            let (device, aborter) = (Arc::clone(&device), aborter.clone());
            move || World { id, unique }.meet((rank, size), device, stall, &aborter)
        };
        let mut communication =
            Communication::start(Arc::clone(&device) as Arc<dyn Device>, Overlap::None, connect).unwrap();
        let (partials, gradients) = communication.allocate("gradients", 4 * ELEMENTS * BUCKETS).unwrap();
        let (copies, working) = communication.allocate("working", 4 * ELEMENTS * BUCKETS).unwrap();
        let in_bytes = |bucket| -> Vec<_> {
            let bytes = |range: Range<usize>| 4 * range.start..4 * range.end;
            owners(size, bucket)
                .into_iter()
                .map(|(range, owner)| (bytes(range), owner))
                .collect()
        };
        let program = Program {
            rank_lanes: (0..size).map(|rank| rank..rank + 1).collect(),
            partials: vec![partials],
            owners: (0..BUCKETS).map(|bucket| owners(size, bucket)).collect(),
            wire: Wire::Float32,
            working: Some(copies),
            layers: (0..BUCKETS).map(in_bytes).collect(),
            ..Program::default()
        };
        let pieces = size as usize - 1;
        assert!(nccl_scratch_bytes(&program, rank).unwrap() >= pieces * 4 * ELEMENTS / 3);
        communication.set_program(program);
        Rank {
            communication,
            device,
            gradients,
            working,
            rank,
            size,
        }
    }

    /// Puts a copy of values into a buffer on the compute stream; it runs when its turn comes.
    fn write(&self, memory: &Memory, elements: Range<usize>, value: impl Fn(usize) -> f32) {
        let bytes: Vec<u8> = elements.clone().flat_map(|place| value(place).to_ne_bytes()).collect();
        let pinned = self.device.allocate_pinned(bytes.len() / 8).unwrap();
        for (word, piece) in pinned.words().iter().zip(bytes.chunks_exact(8)) {
            word.store(u64::from_ne_bytes(piece.try_into().unwrap()), Ordering::Relaxed);
        }
        let whole = memory.clone().on_device().unwrap().pointer();
        let to = whole.slice(4 * elements.start..4 * elements.end).unwrap();
        self.device.copy_to_device(&pinned, 0, to, Stream::Compute).unwrap();
    }

    /// Puts a copy of a buffer's elements on the compute stream.
    fn read(&self, memory: &Memory, elements: Range<usize>) -> Arc<dyn Pinned> {
        let pinned = self.device.allocate_pinned(elements.len() / 2).unwrap();
        let whole = memory.clone().on_device().unwrap().pointer();
        let from = whole.slice(4 * elements.start..4 * elements.end).unwrap();
        self.device.copy_to_host(from, &pinned, 0, Stream::Compute).unwrap();
        pinned
    }

    /// One step, on the device thread; what was reduced and gathered is looked at when all of it has been asked for.
    fn step(&mut self, step: u32) -> Result<(), CollectiveError> {
        let gradient = |rank: u32, place: usize| (1 + step * 7 + rank) as f32 + place as f32 / 1024.0;
        let parameter = |place: usize| (step * 1000) as f32 + place as f32;
        let bucket_of = |bucket: usize| bucket * ELEMENTS..(bucket + 1) * ELEMENTS;
        // The last step's gathers go on meanwhile: the forward waits for each layer, and so does what overwrites it.
        self.communication.begin_step(LaneTree::full(self.size));
        let ready = self.communication.ready();
        for bucket in 0..BUCKETS {
            self.write(&self.gradients, bucket_of(bucket), |place| gradient(self.rank, place));
            ready.bucket(bucket as u32)?;
        }
        let mut sums = Vec::new();
        for bucket in 0..BUCKETS {
            self.communication.wait_reduced(bucket as u32)?;
            for (range, _) in owners(self.size, bucket)
                .into_iter()
                .filter(|(_, owner)| *owner == self.rank)
            {
                sums.push((range.clone(), self.read(&self.gradients, range)));
            }
        }
        let mut table = vec![0; 700];
        let owner_of_slot: Vec<u32> = (0..700).map(|slot| slot % self.size).collect();
        for (slot, owner) in (0u64..).zip(&owner_of_slot) {
            if *owner == self.rank {
                table[slot as usize] = slot + u64::from(step);
            }
        }
        self.communication.exchange_slots(&mut table, &owner_of_slot)?;
        assert!(
            (0u64..)
                .zip(&table)
                .all(|(slot, value)| *value == slot + u64::from(step))
        );
        for bucket in 0..BUCKETS {
            for (range, _) in owners(self.size, bucket)
                .into_iter()
                .filter(|(_, owner)| *owner == self.rank)
            {
                self.write(&self.working, range, parameter);
            }
        }
        self.communication.gather()?;
        let mut copies = Vec::new();
        for layer in 0..BUCKETS {
            self.communication.wait_gathered(layer)?;
            copies.push((bucket_of(layer), self.read(&self.working, bucket_of(layer))));
        }
        let mark = self.device.record(Stream::Compute)?;
        let began = Instant::now();
        while !self.device.is_done(&mark)? {
            assert!(
                began.elapsed() < PATIENCE,
                "the compute stream does not come to its end"
            );
            thread::yield_now();
        }
        for (range, pinned) in sums {
            let sum = |place| (1..self.size).fold(gradient(0, place), |sum, rank| sum + gradient(rank, place));
            assert_values(&pinned, range, sum);
        }
        for (range, pinned) in copies {
            assert_values(&pinned, range, parameter);
        }
        Ok(())
    }
}

fn assert_values(pinned: &Arc<dyn Pinned>, range: Range<usize>, expected: impl Fn(usize) -> f32) {
    let bytes: Vec<u8> = pinned
        .words()
        .iter()
        .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
        .collect();
    for (piece, place) in bytes.chunks_exact(4).zip(range) {
        let value = f32::from_ne_bytes(piece.try_into().unwrap());
        assert_eq!(value, expected(place), "element {place}");
    }
}

/// Says that a rank has ended, also by a panic.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn scratch_is_known_where_each_rank_adds_all_its_lanes_into_one_partial() {
    // Lanes 0..3 and 3..6 are two subtrees each, and there is one buffer: `reduction = "fast"`.
    let program = Program {
        rank_lanes: vec![0..3, 3..6],
        by_rank: true,
        partials: vec![BufferId::from_index(0)],
        owners: vec![vec![(0..128, 0), (128..192, 1)]],
        ..Program::default()
    };
    assert_eq!(nccl_scratch_bytes(&program, 0).unwrap(), 4 * 128);
    assert_eq!(nccl_scratch_bytes(&program, 1).unwrap(), 4 * 64);
}

#[test]
fn steps_have_the_right_sums_and_copies_while_streams_are_held_up() {
    let seed: u64 = rand::rng().random_range(0..1 << 40);
    println!("seed {seed}");
    for size in 1..=3 {
        let world = World::new();
        double().set_polls(&world.unique, 2, 3);
        thread::scope(|scope| {
            for rank in 0..size {
                let world = &world;
                scope.spawn(move || {
                    let mut rank = Rank::start(world, (rank, size), PATIENCE, &Aborter::new());
                    let (device, seed) = (Arc::clone(&rank.device), seed ^ u64::from(rank.rank));
                    let ended = AtomicBool::new(false);
                    thread::scope(|scope| {
                        scope.spawn(|| hold_up(seed, &device, &ended));
                        let _ending = Ending(&ended);
                        (0..6).for_each(|step| rank.step(step).unwrap());
                    });
                    assert_eq!(device.offences(), 0, "something came before NCCL's success");
                });
            }
        });
        world.assert_clean("steps");
    }
}

/// Holds a device's streams now and then.
fn hold_up(seed: u64, device: &HostAccelerator, ended: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(seed);
    while !ended.load(Ordering::Relaxed) {
        let stream = match random.random() {
            true => Stream::Compute,
            false => Stream::Communication,
        };
        double().hold(device.native(stream), true);
        thread::sleep(Duration::from_micros(random.random_range(0..500)));
        double().hold(device.native(stream), false);
        thread::sleep(Duration::from_micros(random.random_range(0..500)));
    }
}

/// Both ranks reduce a bucket in which rank 1's device hangs, and then do nothing. Gives them when the calls have returned.
fn hung(world: &World, stall: Duration) -> Vec<Rank> {
    let mut ranks: Vec<Rank> = thread::scope(|scope| {
        let started: Vec<_> = (0..2)
            .map(|rank| scope.spawn(move || Rank::start(world, (rank, 2), stall, &Aborter::new())))
            .collect();
        started.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    double().hang(&world.unique, 1, Call::Send, Stage::Stream);
    for rank in &mut ranks {
        rank.communication.begin_step(LaneTree::full(2));
        rank.communication.ready().bucket(0).unwrap();
    }
    for rank in &mut ranks {
        rank.communication.wait_reduced(0).unwrap();
    }
    ranks
}

#[test]
fn an_abort_while_nobody_calls_frees_the_device_from_a_kernel_that_hangs() {
    let world = World::new();
    let ranks = hung(&world, PATIENCE);
    assert_eq!(double().live(&world.unique), 2);
    for rank in &ranks {
        rank.communication.aborter().abort("the coordinator says so");
    }
    let began = Instant::now();
    while double().live(&world.unique) > 0 {
        assert!(began.elapsed() < PATIENCE, "nobody acted on the abort");
        thread::yield_now();
    }
    drop(ranks);
    world.assert_clean("abort between calls");
}

#[test]
fn a_kernel_that_hangs_while_nobody_calls_is_told_when_the_time_is_over() {
    let world = World::new();
    let mut ranks = hung(&world, Duration::from_secs(2));
    for rank in &mut ranks {
        let failure = rank.communication.wait_reduced(1).unwrap_err();
        assert!(matches!(failure, CollectiveError::Misuse { .. }), "{failure}");
    }
    let began = Instant::now();
    while double().live(&world.unique) > 0 {
        assert!(began.elapsed() < PATIENCE, "nobody saw that it hangs");
        thread::yield_now();
    }
    for rank in &mut ranks {
        let failure = rank.communication.barrier().unwrap_err();
        let named = 1 - rank.rank;
        assert!(
            matches!(&failure, CollectiveError::Overdue { call: "reduce_lanes", waited_for, .. } if *waited_for == [named]),
            "{failure}"
        );
    }
    world.assert_clean("a kernel that hangs");
}

#[test]
fn scratch_is_sized_by_one_partial_a_rank_where_steps_come_by_rank() {
    let bytes = |lanes: u32, by_rank: bool| {
        let program = Program {
            rank_lanes: vec![0..1, 1..lanes],
            by_rank,
            partials: vec![BufferId::from_index(0)],
            owners: vec![vec![(0..ELEMENTS, 0)]],
            ..Program::default()
        };
        nccl_scratch_bytes(&program, 0)
    };
    // Lanes 1..3 are two subtrees, and one partial where ranks add up their own first.
    assert!(matches!(bytes(3, false), Err(CollectiveError::Misuse { .. })));
    assert_eq!(bytes(3, true).unwrap(), bytes(2, false).unwrap());
}

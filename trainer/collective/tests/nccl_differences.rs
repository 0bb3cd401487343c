//! Ranks that do different things over NCCL, and a device whose work is not in line with it: nothing of that is believed.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

mod nccl_world;

use std::sync::Arc;
use std::thread;

use accelerator_double::{HostAccelerator, double};
use lockstep_collective::{
    Aborter, Accelerator, BufferId, Collective, CollectiveError, Device, DeviceMemory, Operand, Pinned, Recorded,
    Stream,
};
use nccl_rs::DevicePointer;

use nccl_world::{PATIENCE, STALL, World, all_at_once, reduce};

/// What rank 2 does otherwise than ranks 0 and 1.
type Odd = fn(&mut dyn Collective, BufferId, bool) -> Result<(), CollectiveError>;

const DIFFERENT: [(&str, Odd); 8] = [
    ("another call", |collective, _, odd| match odd {
        true => collective.exchange_slots(&mut [], &[]),
        false => collective.barrier(),
    }),
    ("another buffer", |collective, _, odd| {
        collective.allocate(if odd { "theirs" } else { "ours" }, 64).map(|_| ())
    }),
    ("other owners of slots", |collective, _, odd| {
        collective.exchange_slots(&mut [0, 0], if odd { &[0, 1] } else { &[1, 0] })
    }),
    ("a longer table", |collective, _, odd| {
        let length = if odd { 3000 } else { 2000 };
        collective.exchange_slots(&mut vec![0; length], &vec![1; length])
    }),
    ("other ranges", |collective, buffer, odd| {
        collective.all_gather_v(buffer, if odd { &[(0..4, 1)] } else { &[(0..8, 1)] })
    }),
    ("another root", |collective, buffer, odd| {
        collective.broadcast(buffer, 0..4, u32::from(odd))
    }),
    ("known gathers in another order", |collective, buffer, odd| {
        let layers = [[(0..4, 1)], [(4..32, 1)]];
        for layer in [0, 1, 0, 1] {
            collective.all_gather_v(buffer, &layers[layer])?;
        }
        collective.barrier()?;
        let order = if odd { [1, 0] } else { [0, 1] };
        order
            .into_iter()
            .try_for_each(|layer| collective.all_gather_v(buffer, &layers[layer]))?;
        collective.barrier()
    }),
    ("other elements of the same number", |collective, buffer, odd| {
        let first = usize::from(odd);
        let pieces = [first..first + 2, first + 2..first + 4, first + 4..first + 6];
        reduce(collective, buffer, &pieces)?;
        collective.barrier()
    }),
];

#[test]
fn the_rank_that_makes_another_call_is_named_before_anything_is_believed() {
    all_at_once(DIFFERENT, |(what, odd)| {
        let world = World::new();
        let failures = world.at_every_rank(3, STALL, |mut collective| {
            let buffer = collective.allocate("buffer", 64).unwrap();
            collective.barrier().unwrap();
            let is_odd = collective.rank() == 2;
            odd(collective.as_mut(), buffer, is_odd).unwrap_err()
        });
        for (rank, failure) in failures.iter().enumerate() {
            let named = if rank == 2 { 0 } else { 2 };
            let sentence = failure.to_string();
            assert!(
                sentence.starts_with(&format!("rank {named} called ")),
                "{what}: rank {rank} was told: {sentence}"
            );
        }
        world.assert_clean(what);
    });
}

#[test]
fn a_count_that_differs_by_one_is_caught_by_the_double_and_ends_in_its_words() {
    let world = World::new();
    let failures = world.at_every_rank(2, STALL, |mut collective| {
        let buffer = collective.allocate("buffer", 64).unwrap();
        let length = 4 + collective.rank() as usize;
        reduce(collective.as_mut(), buffer, &[0..length, 8..12])
            .and_then(|()| collective.barrier())
            .unwrap_err()
    });
    for failure in failures {
        let sentence = failure.to_string();
        assert!(
            matches!(
                &failure,
                CollectiveError::Nccl {
                    call: "reduce_lanes" | "barrier",
                    ..
                }
            ) && sentence.contains("invalid argument"),
            "{sentence}"
        );
    }
    world.assert_clean("another count");
}

/// A device that tells NCCL another stream than the one that its own work goes to.
struct WrongStream(Arc<HostAccelerator>, nccl_rs::Stream);

impl Device for WrongStream {
    fn enter(&self) -> Result<(), CollectiveError> {
        self.0.enter()
    }

    fn record(&self, stream: Stream) -> Result<Recorded, CollectiveError> {
        self.0.record(stream)
    }

    fn wait(&self, stream: Stream, recorded: &Recorded) -> Result<(), CollectiveError> {
        self.0.wait(stream, recorded)
    }
}

impl Accelerator for WrongStream {
    fn allocate(&self, name: &str, bytes: usize) -> Result<DeviceMemory, CollectiveError> {
        self.0.allocate(name, bytes)
    }

    fn allocate_pinned(&self, words: usize) -> Result<Arc<dyn Pinned>, CollectiveError> {
        self.0.allocate_pinned(words)
    }

    fn native(&self, _stream: Stream) -> nccl_rs::Stream {
        self.1
    }

    fn add(
        &self,
        sum: DevicePointer,
        left: Operand,
        right: Operand,
        round: bool,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        self.0.add(sum, left, right, round, stream)
    }

    fn narrow(&self, halves: DevicePointer, floats: DevicePointer, stream: Stream) -> Result<(), CollectiveError> {
        self.0.narrow(halves, floats, stream)
    }

    fn copy_to_host(
        &self,
        from: DevicePointer,
        to: &Arc<dyn Pinned>,
        first: usize,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        self.0.copy_to_host(from, to, first, stream)
    }

    fn copy_to_device(
        &self,
        from: &Arc<dyn Pinned>,
        first: usize,
        to: DevicePointer,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        self.0.copy_to_device(from, first, to, stream)
    }

    fn is_done(&self, recorded: &Recorded) -> Result<bool, CollectiveError> {
        self.0.is_done(recorded)
    }
}

#[test]
fn work_that_is_not_in_line_with_nccl_is_caught_by_what_arrives() {
    let world = World::new();
    let elsewhere = [(); 2].map(|()| HostAccelerator::new().native(Stream::Communication));
    // What is gathered comes later than the copy that reads it.
    elsewhere.iter().for_each(|stream| double().hold(*stream, true));
    let ranks: Vec<_> = thread::scope(|scope| {
        let ranks = (0..2u32).map(|rank| {
            let (world, stream) = (&world, elsewhere[rank as usize]);
            scope.spawn(move || {
                let device = Arc::new(WrongStream(HostAccelerator::new(), stream));
                let mut collective = world.meet((rank, 2), device, PATIENCE, &Aborter::new()).unwrap();
                collective.barrier().unwrap_err().to_string()
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    elsewhere.iter().for_each(|stream| double().hold(*stream, false));
    for (rank, sentence) in ranks.iter().enumerate() {
        let expected = format!("rank {} called an unknown call", 1 - rank);
        assert!(sentence.starts_with(&expected), "{sentence}");
    }
    world.assert_clean("work on another stream");
}

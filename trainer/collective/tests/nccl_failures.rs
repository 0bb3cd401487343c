//! What happens over NCCL when a rank hangs, fails, is aborted or does something else than the others: everybody who waits
//! hears of it, typed and by name, and no communicator is left behind or used after its end.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

mod nccl_world;

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use accelerator_double::{HostAccelerator, double};
use lockstep_collective::{
    Aborter, Accelerator, BufferId, Collective, CollectiveError, LaneTree, ReduceLanes, Stream, Wire,
};
use nccl_double::{Call, Stage};
use nccl_rs::Code;

use nccl_world::{PATIENCE, World};

/// How long ranks wait for one that hangs: long beside what anything else here takes. So worlds wait at the same time.
const STALL: Duration = Duration::from_secs(2);

/// Runs `play` for each case, all at once.
fn all_at_once<T: Copy + Send>(cases: impl IntoIterator<Item = T>, play: impl Fn(T) + Sync) {
    thread::scope(|scope| {
        for case in cases {
            let play = &play;
            scope.spawn(move || play(case));
        }
    });
}

/// Every call that waits for peers, and the function of NCCL that moves its payload.
const CALLS: [(&str, Call); 6] = [
    ("allocate", Call::AllGather),
    ("barrier", Call::AllGather),
    ("exchange_slots", Call::AllGather),
    ("all_gather_v", Call::Broadcast),
    ("broadcast", Call::Broadcast),
    ("reduce_lanes", Call::Send),
];

/// A reduction of one lane a rank; element r of `elements` is owned by rank r.
fn reduce(collective: &mut dyn Collective, buffer: BufferId, elements: &[Range<usize>]) -> Result<(), CollectiveError> {
    let size = collective.size();
    let rank_lanes: Vec<Range<u32>> = (0..size).map(|rank| rank..rank + 1).collect();
    let owners: Vec<_> = elements.iter().cloned().zip(0..).collect();
    collective.publish(0)?;
    collective.reduce_lanes(&ReduceLanes {
        bucket: 0,
        owners: &owners,
        rank_lanes: &rank_lanes,
        tree: &LaneTree::full(size),
        buffers: &[buffer],
        wire: Wire::Float32,
    })
}

/// Makes the call, and then waits for what it has put on the stream.
fn make(call: &str, collective: &mut dyn Collective, buffer: BufferId) -> Result<(), CollectiveError> {
    let size = collective.size() as usize;
    let pieces: Vec<_> = (0..size).map(|rank| rank..rank + 1).collect();
    match call {
        "allocate" => collective.allocate("more", 100).map(|_| ()),
        "barrier" => collective.barrier(),
        "exchange_slots" => collective.exchange_slots(&mut [0, 0], &[0, 1]),
        "all_gather_v" => collective.all_gather_v(buffer, &[(0..4, 1), (4..8, 0)]),
        "broadcast" => collective.broadcast(buffer, 0..4, 1),
        "reduce_lanes" => reduce(collective, buffer, &pieces),
        _ => unreachable!("{call} is not in the list"),
    }?;
    collective.barrier()
}

/// What `call` comes to at every rank, when something was ordered for rank 1 in it, and what the next call says.
fn disturbed(world: &World, size: u32, call: &str, order: impl Fn() + Sync) -> Vec<(CollectiveError, CollectiveError)> {
    let started = std::sync::Barrier::new(size as usize);
    world.at_every_rank(size, STALL, |mut collective| {
        let buffer = collective.allocate("buffer", 64).unwrap();
        collective.barrier().unwrap();
        started.wait();
        if collective.rank() == 1 {
            order();
        }
        started.wait();
        let first = make(call, collective.as_mut(), buffer).unwrap_err();
        (first, collective.barrier().unwrap_err())
    })
}

#[test]
fn a_rank_that_hangs_in_any_call_is_named_when_the_time_is_over() {
    let ways = [(Stage::Launch, 2), (Stage::Stream, 2), (Stage::Stream, 3)];
    let cases = CALLS.into_iter().flat_map(|call| ways.map(|way| (call, way)));
    all_at_once(cases, |((call, function), (stage, size))| {
        let world = World::new();
        let failures = disturbed(&world, size, call, || double().hang(&world.unique, 1, function, stage));
        for (rank, (first, later)) in (0u32..).zip(&failures) {
            let about = format!("{call} at {stage:?}, rank {rank} of {size}: {first}");
            let CollectiveError::Overdue {
                rank: who,
                call: late_in,
                waited_for,
                begun,
                waited_ms,
            } = first
            else {
                panic!("{about}");
            };
            assert_eq!(*who, rank, "{about}");
            assert!(*waited_ms >= STALL.as_millis() as u64, "{about}");
            assert!(about.contains(&waited_for[0].to_string()), "{about}");
            if rank != 1 {
                assert!(waited_for.contains(&1) && !waited_for.contains(&rank), "{about}");
                assert!(*begun && first.to_string().contains("stopped"), "{about}");
            } else {
                assert_eq!(*begun, stage == Stage::Stream, "{about}");
                assert_eq!(waited_for.contains(&1), stage == Stage::Launch, "{about}");
            }
            // What never got on rank 1's stream is, for the others, a rank that did not come to it.
            assert_eq!(*late_in, call, "{about}");
            assert!(
                later.is_aborted() && later.to_string().contains(&first.to_string()),
                "{about}: {later}"
            );
        }
        world.assert_clean(call);
    });
}

#[test]
fn a_failure_in_any_call_comes_with_the_words_of_nccl_and_ends_every_rank() {
    let stages = [Stage::Call, Stage::Launch, Stage::Stream];
    let cases = CALLS.into_iter().flat_map(|call| stages.map(|stage| (call, stage)));
    all_at_once(cases, |((call, function), stage)| {
        let world = World::new();
        let failures = disturbed(&world, 2, call, || {
            double().fail(&world.unique, 1, function, stage, Code::System);
        });
        let (first, later) = &failures[1];
        let about = format!("{call} at {stage:?}: {first}");
        let CollectiveError::Nccl { rank: 1, source, .. } = first else {
            panic!("{about}");
        };
        assert!(
            matches!(source, nccl_rs::Error::Nccl { code: Code::System, .. }),
            "{about}"
        );
        assert!(about.contains("unhandled system error"), "{about}");
        assert!(later.is_aborted(), "{about}: {later}");
        let other = &failures[0].0;
        assert!(
            matches!(other, CollectiveError::Overdue { waited_for, .. } if *waited_for == [1]),
            "{about}: {other}"
        );
        world.assert_clean(&about);
    });
}

#[test]
fn ranks_that_do_not_meet_are_counted_and_a_failed_beginning_has_the_words_of_nccl() {
    let world = World::new();
    let alone = world.meet((0, 3), HostAccelerator::new(), STALL, &Aborter::new());
    let sentence = alone.err().unwrap().to_string();
    assert!(
        sentence.contains("rank 0 had not met all of the ranks 1, 2 through NCCL"),
        "{sentence}"
    );
    world.assert_clean(&sentence);

    let world = World::new();
    double().fail(&world.unique, 0, Call::Init, Stage::Launch, Code::InvalidUsage);
    let failed = world
        .meet((0, 1), HostAccelerator::new(), STALL, &Aborter::new())
        .err()
        .unwrap();
    assert!(
        matches!(
            &failed,
            CollectiveError::Nccl {
                rank: 0,
                call: "join",
                ..
            }
        ) && failed.to_string().contains("invalid usage"),
        "{failed}"
    );
    world.assert_clean("a failed beginning");
}

#[test]
fn abort_from_another_thread_ends_every_wait_with_its_reason() {
    for (call, _) in CALLS {
        let world = World::new();
        world.at_every_rank(2, PATIENCE, |mut collective| {
            let buffer = collective.allocate("buffer", 64).unwrap();
            if collective.rank() == 1 {
                // It does not come, and hears of the other's end by its own abort only.
                let aborter = collective.aborter();
                while double().live(&world.unique) == 2 {
                    thread::yield_now();
                }
                aborter.abort("the other one has gone");
                return;
            }
            let aborter = collective.aborter();
            thread::scope(|scope| {
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(20));
                    aborter.abort("somebody wants it so");
                });
                let aborted = make(call, collective.as_mut(), buffer).unwrap_err();
                assert!(
                    aborted.is_aborted() && aborted.to_string().contains("somebody wants it so"),
                    "{call}: {aborted}"
                );
            });
        });
        world.assert_clean(call);
    }
}

#[test]
fn abort_ends_the_meeting_too() {
    let world = World::new();
    let aborter = Aborter::new();
    let early = aborter.clone();
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(Duration::from_millis(20));
            early.abort("nobody will come");
        });
        let aborted = world
            .meet((0, 2), HostAccelerator::new(), PATIENCE, &aborter)
            .err()
            .unwrap();
        assert!(aborted.is_aborted(), "{aborted}");
    });
    world.assert_clean("an aborted meeting");
}

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

#[test]
fn arguments_that_do_not_fit_are_refused_at_once_and_the_next_call_works() {
    let world = World::new();
    world.at_every_rank(2, PATIENCE, |mut collective| {
        let buffer = collective.allocate("buffer", 64).unwrap();
        let refused = [
            collective.all_gather_v(buffer, &[(60..65, 0)]),
            collective.all_gather_v(buffer, &[(0..4, 2)]),
            collective.broadcast(buffer, 0..4, 2),
            collective.exchange_slots(&mut [0], &[]),
            reduce(collective.as_mut(), buffer, &[0..17, 0..0]),
        ];
        for refusal in refused {
            assert!(matches!(refusal, Err(CollectiveError::Misuse { .. })), "{refusal:?}");
        }
        reduce_published(collective.as_mut(), buffer).unwrap();
        collective.barrier().unwrap();
    });
    world.assert_clean("refused arguments");
}

/// The reduction of a bucket that was published before it was refused.
fn reduce_published(collective: &mut dyn Collective, buffer: BufferId) -> Result<(), CollectiveError> {
    collective.reduce_lanes(&ReduceLanes {
        bucket: 0,
        owners: &[(0..8, 0), (8..16, 1)],
        rank_lanes: &[0..1, 1..2],
        tree: &LaneTree::full(2),
        buffers: &[buffer],
        wire: Wire::Float32,
    })
}

#[test]
fn a_rank_that_leaves_alone_does_not_wait_for_ever() {
    let world = World::new();
    let left = std::sync::Barrier::new(2);
    world.at_every_rank(2, STALL, |collective| {
        if collective.rank() == 0 {
            drop(collective);
            left.wait();
        } else {
            left.wait();
            drop(collective);
        }
    });
    world.assert_clean("a rank that left alone");
}

/// A device that tells NCCL another stream than the one that its own work goes to.
struct WrongStream(Arc<HostAccelerator>, nccl_rs::Stream);

impl lockstep_collective::Device for WrongStream {
    fn enter(&self) -> Result<(), CollectiveError> {
        self.0.enter()
    }

    fn record(&self, stream: Stream) -> Result<lockstep_collective::Recorded, CollectiveError> {
        self.0.record(stream)
    }

    fn wait(&self, stream: Stream, recorded: &lockstep_collective::Recorded) -> Result<(), CollectiveError> {
        self.0.wait(stream, recorded)
    }
}

impl Accelerator for WrongStream {
    fn allocate(&self, name: &str, bytes: usize) -> Result<lockstep_collective::DeviceMemory, CollectiveError> {
        self.0.allocate(name, bytes)
    }

    fn allocate_pinned(&self, words: usize) -> Result<Arc<dyn lockstep_collective::Pinned>, CollectiveError> {
        self.0.allocate_pinned(words)
    }

    fn native(&self, _stream: Stream) -> nccl_rs::Stream {
        self.1
    }

    fn add(
        &self,
        sum: nccl_rs::DevicePointer,
        left: lockstep_collective::Operand,
        right: lockstep_collective::Operand,
        round: bool,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        self.0.add(sum, left, right, round, stream)
    }

    fn narrow(
        &self,
        halves: nccl_rs::DevicePointer,
        floats: nccl_rs::DevicePointer,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        self.0.narrow(halves, floats, stream)
    }

    fn copy_to_host(
        &self,
        from: nccl_rs::DevicePointer,
        to: &Arc<dyn lockstep_collective::Pinned>,
        first: usize,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        self.0.copy_to_host(from, to, first, stream)
    }

    fn copy_to_device(
        &self,
        from: &Arc<dyn lockstep_collective::Pinned>,
        first: usize,
        to: nccl_rs::DevicePointer,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        self.0.copy_to_device(from, first, to, stream)
    }

    fn is_done(&self, recorded: &lockstep_collective::Recorded) -> Result<bool, CollectiveError> {
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

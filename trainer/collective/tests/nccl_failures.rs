//! What happens over NCCL when a rank hangs, fails or is aborted: everybody who waits
//! hears of it, typed and by name, and no communicator is left behind or used after its end.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

mod nccl_world;

use std::thread;
use std::time::Duration;

use accelerator_double::{HostAccelerator, double};
use lockstep_collective::{Aborter, BufferId, Collective, CollectiveError, LaneTree, ReduceLanes, Wire};
use nccl_double::{Call, Stage};
use nccl_rs::Code;

use nccl_world::{PATIENCE, STALL, World, all_at_once, reduce};

/// Every call that waits for peers, and the function of NCCL that moves its payload.
const CALLS: [(&str, Call); 6] = [
    ("allocate", Call::AllGather),
    ("barrier", Call::AllGather),
    ("exchange_slots", Call::AllGather),
    ("all_gather_v", Call::Broadcast),
    ("broadcast", Call::Broadcast),
    ("reduce_lanes", Call::Send),
];

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
    assert!(sentence.contains("rank 0 had not met ranks 1, 2"), "{sentence}");
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
fn a_peer_s_first_group_may_take_as_long_as_the_meeting_and_no_later_one() {
    let world = World::new();
    let late = Duration::from_millis(400);
    thread::scope(|scope| {
        for rank in 0..2 {
            let world = &world;
            scope.spawn(move || {
                let times = (PATIENCE, late / 4);
                let device = HostAccelerator::new();
                let mut collective = world.meet_within((rank, 2), device, times, &Aborter::new()).unwrap();
                thread::sleep(late * rank);
                let buffer = collective.allocate("first", 256).unwrap();
                thread::sleep(late * rank);
                let second = make("barrier", &mut *collective, buffer);
                // What the other one finds is a rank that has given up.
                assert!(matches!(second, Err(CollectiveError::Overdue { .. })), "{second:?}");
            });
        }
    });
    world.assert_clean("a first group");
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

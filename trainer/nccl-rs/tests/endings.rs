//! How communicators end: in order, by abort in every state, by a drop; and what is left then.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::Duration;

use nccl_double::{Call, Stage};
use nccl_rs::{Code, Communicator, Config, DataType, Error, State};
use world::{DOUBLE, Memory, at_every_rank, begin, failure, nccl, ready, stream, synchronize};

#[test]
fn after_an_abort_every_call_is_refused_and_the_library_never_sees_the_handle_again() {
    let id = nccl().unique_id().unwrap();
    let mut communicator = begin(&id, 1, 0);
    ready(&mut communicator).unwrap();
    communicator.abort().unwrap();
    let gone = |call| Error::Gone { call, how: "aborted" };
    assert_eq!(communicator.async_state(), Err(gone("ncclCommGetAsyncError")));
    assert_eq!(communicator.group(|_| Ok(())), Err(gone("ncclGroupStart")));
    assert_eq!(communicator.count(), Err(gone("ncclCommCount")));
    assert_eq!(communicator.split(None, 0, None), Err(gone("ncclCommSplit")));
    assert_eq!(communicator.finalize(), Err(gone("ncclCommFinalize")));
    assert_eq!(communicator.destroy(), Err(gone("ncclCommDestroy")));
    assert_eq!(communicator.abort(), Err(gone("ncclCommAbort")));
    drop(communicator);
    assert_eq!((DOUBLE.live(&id), DOUBLE.misuse(&id)), (0, 0));
}

#[test]
fn an_abort_ends_a_beginning_whose_peers_never_come() {
    let id = nccl().unique_id().unwrap();
    let mut communicator = begin(&id, 2, 0);
    for _ in 0..100 {
        assert_eq!(communicator.async_state(), Ok(State::InProgress));
    }
    communicator.abort().unwrap();
    assert_eq!(DOUBLE.live(&id), 0);
}

#[test]
fn an_abort_ends_a_launch_that_hangs() {
    let id = nccl().unique_id().unwrap();
    DOUBLE.hang(&id, 0, Call::Send, Stage::Launch);
    let mut communicator = begin(&id, 1, 0);
    ready(&mut communicator).unwrap();
    let (stream, memory) = (stream(), Memory::zeros(4));
    communicator
        .group(|group| group.send(memory.pointer(), 4, DataType::Uint8, 0, stream))
        .unwrap();
    let mut polls = 0;
    let state = communicator.wait_while(|| {
        polls += 1;
        polls < 200
    });
    assert_eq!(state, Ok(State::InProgress));
    assert_eq!(DOUBLE.launched(stream), 0);
    communicator.abort().unwrap();
    assert_eq!((DOUBLE.live(&id), DOUBLE.pending(stream)), (0, 0));
}

#[test]
fn an_abort_ends_a_kernel_that_hangs_and_leaves_anything_in_what_it_received() {
    let id = nccl().unique_id().unwrap();
    DOUBLE.hang(&id, 1, Call::Broadcast, Stage::Stream);
    at_every_rank(&id, 2, |rank, communicator| {
        let (stream, memory) = (stream(), Memory::of(&[rank as u8; 8]));
        let all = memory.pointer();
        communicator
            .group(|group| group.broadcast(all, all, 8, DataType::Uint8, 0, stream))
            .unwrap();
        ready(communicator).unwrap();
        assert!(
            !DOUBLE.wait(stream, 1, Duration::from_millis(20)),
            "the broadcast hangs"
        );
        assert_eq!(
            communicator.async_state(),
            Ok(State::Ready),
            "which the library does not tell"
        );
        communicator.abort().unwrap();
        synchronize(stream);
        assert_ne!(
            memory.bytes(),
            [rank as u8; 8],
            "what was in flight is not to be trusted"
        );
    });
    assert_eq!(DOUBLE.live(&id), 0);
}

#[test]
fn failures_of_every_stage_come_with_their_code_and_are_final() {
    for (stage, code) in [(Stage::Launch, Code::UnhandledCuda), (Stage::Stream, Code::Remote)] {
        let id = nccl().unique_id().unwrap();
        DOUBLE.fail(&id, 0, Call::AllReduce, stage, code);
        let mut communicator = begin(&id, 1, 0);
        ready(&mut communicator).unwrap();
        let (stream, memory) = (stream(), Memory::zeros(8));
        let all = memory.pointer();
        communicator
            .group(|group| group.all_reduce(all, all, 2, DataType::Float32, nccl_rs::Reduction::Sum, stream))
            .unwrap();
        let error = failure(&mut communicator);
        assert!(
            matches!(&error, Error::Nccl { code: told, .. } if *told == code),
            "{stage:?}: {error}"
        );
        assert!(matches!(communicator.async_state(), Err(Error::Failed { .. })));
        assert!(matches!(communicator.destroy(), Err(Error::Failed { .. })));
        communicator.abort().unwrap();
        assert_eq!((DOUBLE.live(&id), DOUBLE.misuse(&id)), (0, 0));
    }
}

#[test]
fn a_beginning_that_fails_leaves_nothing() {
    let id = nccl().unique_id().unwrap();
    for stage in [Stage::Call, Stage::Launch] {
        DOUBLE.fail(&id, 0, Call::Init, stage, Code::InvalidUsage);
        let error = Communicator::init(&nccl(), 1, &id, 0, &Config::new().non_blocking()).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Nccl {
                    code: Code::InvalidUsage,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(DOUBLE.live(&id), 0, "{stage:?}");
    }
}

#[test]
fn a_destroy_in_the_middle_of_something_is_refused_and_leaves_no_group_open() {
    let id = nccl().unique_id().unwrap();
    DOUBLE.set_polls(&id, 2, 2);
    let mut communicator = begin(&id, 1, 0);
    assert_eq!(
        communicator.destroy(),
        Err(Error::InProgress {
            call: "ncclCommDestroy"
        })
    );
    assert_eq!((DOUBLE.group_depth(), DOUBLE.live(&id)), (0, 1));
    ready(&mut communicator).unwrap();
    communicator.destroy().unwrap();
    assert_eq!((DOUBLE.group_depth(), DOUBLE.live(&id)), (0, 0));
}

#[test]
fn a_finalized_communicator_takes_no_work_and_waits_for_its_peers() {
    let id = nccl().unique_id().unwrap();
    at_every_rank(&id, 2, |rank, communicator| {
        if rank == 1 {
            return communicator.abort().unwrap();
        }
        communicator.finalize().unwrap();
        for _ in 0..100 {
            assert_eq!(
                communicator.async_state(),
                Ok(State::InProgress),
                "rank 1 never finalizes"
            );
        }
        communicator.abort().unwrap();
    });
    let id = nccl().unique_id().unwrap();
    let mut alone = begin(&id, 1, 0);
    ready(&mut alone).unwrap();
    alone.finalize().unwrap();
    ready(&mut alone).unwrap();
    assert_eq!(
        alone.group(|_| Ok(())),
        Err(Error::Finalized { call: "ncclGroupStart" })
    );
    assert_eq!(
        alone.finalize(),
        Err(Error::Finalized {
            call: "ncclCommFinalize"
        })
    );
    alone.destroy().unwrap();
    assert_eq!((DOUBLE.live(&id), DOUBLE.misuse(&id)), (0, 0));
}

#[test]
fn several_are_aborted_in_one_group_and_those_that_are_gone_are_passed_over() {
    let ids: Vec<_> = (0..3).map(|_| nccl().unique_id().unwrap()).collect();
    let mut all: Vec<Communicator> = ids.iter().map(|id| begin(id, 2, 0)).collect();
    all[1].abort().unwrap();
    let mut borrowed: Vec<&mut Communicator> = all.iter_mut().collect();
    Communicator::abort_all(&mut borrowed).unwrap();
    Communicator::abort_all(&mut []).unwrap();
    for id in &ids {
        assert_eq!((DOUBLE.live(id), DOUBLE.misuse(id)), (0, 0));
    }
    assert_eq!(DOUBLE.group_depth(), 0);
}

#[test]
fn a_drop_aborts_but_not_inside_of_a_group() {
    let ids = [nccl().unique_id().unwrap(), nccl().unique_id().unwrap()];
    let [mut first, second] = ids.map(|id| begin(&id, 1, 0));
    ready(&mut first).unwrap();
    first
        .group(|_| {
            drop(second);
            Ok(())
        })
        .unwrap();
    assert_eq!(DOUBLE.live(&ids[1]), 1, "leaked");
    drop(first);
    assert_eq!((DOUBLE.live(&ids[0]), DOUBLE.group_depth()), (0, 0));
}

#[test]
fn a_split_gives_each_colour_its_child_and_none_where_there_is_no_colour() {
    let id = nccl().unique_id().unwrap();
    DOUBLE.set_polls(&id, 2, 1);
    let places = at_every_rank(&id, 5, |rank, communicator| {
        // Ranks 0, 2 and 4 meet in reverse order; rank 1 is alone; rank 3 has no colour.
        let (colour, key) = match rank {
            3 => (None, 0),
            1 => (Some(7), 0),
            _ => (Some(1), -(rank as i32)),
        };
        assert_eq!(communicator.split(colour, key, None), Ok(State::InProgress));
        assert!(matches!(communicator.take_split(), Err(Error::InProgress { .. })));
        ready(communicator).unwrap();
        let child = communicator.take_split().unwrap();
        assert!(matches!(communicator.take_split(), Err(Error::NoSplit)));
        let mut child = child?;
        let (stream, memory) = (stream(), Memory::of(&[rank as u8; 2]));
        let all = memory.pointer();
        child
            .group(|group| group.broadcast(all, all, 2, DataType::Uint8, 0, stream))
            .unwrap();
        ready(&mut child).unwrap();
        synchronize(stream);
        Some((child.rank().unwrap(), child.count().unwrap(), memory.bytes()[0]))
    });
    assert_eq!(
        places,
        [Some((2, 3, 4)), Some((0, 1, 1)), Some((1, 3, 4)), None, Some((0, 3, 4))]
    );
}

#[test]
fn a_split_that_hangs_is_aborted_with_its_parent() {
    let id = nccl().unique_id().unwrap();
    DOUBLE.hang(&id, 0, Call::Split, Stage::Launch);
    let mut communicator = begin(&id, 1, 0);
    ready(&mut communicator).unwrap();
    communicator.split(Some(0), 0, None).unwrap();
    for _ in 0..50 {
        assert_eq!(communicator.async_state(), Ok(State::InProgress));
    }
    communicator.abort().unwrap();
    assert_eq!(DOUBLE.live(&id), 0);
}

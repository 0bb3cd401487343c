//! The rules of non-blocking communicators: what is refused before the library is called, when work is on its stream, and
//! that a group always ends.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::Duration;

use nccl_double::{Call, Stage};
use nccl_rs::{Code, Communicator, Config, DataType, Error, Group, MemoryStatistic, Nccl, State};
use world::{DOUBLE, Memory, at_every_rank, begin, failure, nccl, ready, stream, synchronize};

#[test]
fn a_beginning_is_in_progress_for_its_polls_and_everything_else_is_refused_meanwhile() {
    let id = nccl().unique_id().unwrap();
    DOUBLE.set_polls(&id, 3, 1);
    let mut communicator = begin(&id, 1, 0);
    for _ in 0..3 {
        assert_eq!(communicator.count(), Err(Error::InProgress { call: "ncclCommCount" }));
        assert_eq!(
            communicator.finalize(),
            Err(Error::InProgress {
                call: "ncclCommFinalize"
            })
        );
        assert_eq!(
            communicator.group(|_| Ok(())),
            Err(Error::InProgress { call: "ncclGroupStart" })
        );
        assert_eq!(communicator.async_state(), Ok(State::InProgress));
    }
    assert_eq!(communicator.async_state(), Ok(State::Ready));
    // The library never saw the refused calls: it would have failed the communicator.
    assert_eq!(communicator.async_state(), Ok(State::Ready));
    assert_eq!((communicator.count(), communicator.rank()), (Ok(1), Ok(0)));
    assert!(communicator.memory(MemoryStatistic::Total).unwrap() > 0);
}

#[test]
fn nothing_is_on_the_stream_before_success_and_an_event_that_comes_too_early_can_be_caught() {
    let id = nccl().unique_id().unwrap();
    DOUBLE.set_polls(&id, 0, 2);
    at_every_rank(&id, 2, |rank, communicator| {
        let (stream, memory) = (stream(), Memory::of(&[rank as u8 + 1; 4]));
        let all = memory.pointer();
        let state = communicator.group(|group| group.broadcast(all, all, 4, DataType::Uint8, 0, stream));
        assert_eq!(state, Ok(State::InProgress));
        // An event that is recorded now gets place 0: it would not wait for the broadcast.
        assert_eq!((DOUBLE.pending(stream), DOUBLE.launched(stream)), (1, 0));
        assert_eq!(communicator.async_state(), Ok(State::InProgress));
        assert_eq!((DOUBLE.pending(stream), DOUBLE.launched(stream)), (1, 0));
        ready(communicator).unwrap();
        assert_eq!((DOUBLE.pending(stream), DOUBLE.launched(stream)), (0, 1));
        synchronize(stream);
        assert_eq!(memory.bytes(), [1; 4]);
    });
}

#[test]
fn success_is_not_the_arrival_of_data() {
    let id = nccl().unique_id().unwrap();
    at_every_rank(&id, 2, |rank, communicator| {
        let (stream, memory) = (stream(), Memory::of(&[rank as u8 + 1; 4]));
        let all = memory.pointer();
        DOUBLE.hold(stream, true);
        communicator
            .group(|group| group.broadcast(all, all, 4, DataType::Uint8, 0, stream))
            .unwrap();
        ready(communicator).unwrap();
        assert_eq!((DOUBLE.launched(stream), DOUBLE.done(stream)), (1, 0));
        assert_eq!(memory.bytes(), [rank as u8 + 1; 4]);
        DOUBLE.hold(stream, false);
        synchronize(stream);
        assert_eq!(memory.bytes(), [1; 4]);
    });
}

#[test]
fn what_does_not_fit_is_refused_before_the_library_is_called() {
    let id = nccl().unique_id().unwrap();
    at_every_rank(&id, 2, |rank, communicator| {
        let (stream, memory) = (stream(), Memory::zeros(16));
        let all = memory.pointer();
        let error = match rank {
            0 => communicator
                .group(|group| group.all_gather(all, all, usize::MAX / 2, DataType::Float64, stream))
                .unwrap_err(),
            _ => communicator
                .group(|group| group.all_gather(all, all, 3, DataType::Float32, stream))
                .unwrap_err(),
        };
        let sentence = error.to_string();
        match error {
            Error::CountOverflow { call, .. } if rank == 0 => assert_eq!(call, "ncclAllGather"),
            Error::BufferTooSmall { which, has, needs, .. } if rank == 1 => {
                assert_eq!((which, has, needs), ("receive", 16, 24));
            }
            _ => panic!("{sentence}"),
        }
        assert_eq!(DOUBLE.pending(stream), 0, "the library was called");
        // The group was open, so the communicator is spent, with the reason.
        let later = communicator.group(|_| Ok(())).unwrap_err().to_string();
        assert!(
            later.contains("can only be aborted") && later.contains(&sentence),
            "{later}"
        );
        communicator.abort().unwrap();
    });
    assert_eq!((DOUBLE.live(&id), DOUBLE.misuse(&id), DOUBLE.group_depth()), (0, 0, 0));
}

#[test]
fn a_rank_that_does_not_exist_is_refused_in_operations_and_at_the_beginning() {
    let id = nccl().unique_id().unwrap();
    let outside = Communicator::init(&nccl(), 2, &id, 2, &Config::new()).unwrap_err();
    assert!(
        matches!(outside, Error::NoSuchRank { rank: 2, ranks: 2, .. }),
        "{outside}"
    );
    let mut communicator = begin(&id, 1, 0);
    ready(&mut communicator).unwrap();
    let (stream, memory) = (stream(), Memory::zeros(4));
    let error = communicator.group(|group| group.send(memory.pointer(), 4, DataType::Uint8, 1, stream));
    assert_eq!(
        error.unwrap_err().to_string(),
        "ncclSend: rank 1 is not one of the 1 ranks, 0 to 0"
    );
}

#[test]
fn an_error_inside_of_a_group_is_kept_even_if_it_is_passed_over_and_the_group_ends() {
    let id = nccl().unique_id().unwrap();
    DOUBLE.fail(&id, 0, Call::Recv, Stage::Call, Code::System);
    let mut communicator = begin(&id, 1, 0);
    ready(&mut communicator).unwrap();
    let (stream, memory) = (stream(), Memory::zeros(4));
    let error = communicator
        .group(|group| {
            let _ = group.recv(memory.pointer(), 4, DataType::Uint8, 0, stream);
            let second = group.send(memory.pointer(), 4, DataType::Uint8, 0, stream).unwrap_err();
            assert!(matches!(second, Error::Nccl { call: "ncclRecv", .. }), "{second}");
            Ok(())
        })
        .unwrap_err();
    let Error::Nccl {
        code,
        call,
        text,
        detail,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((code, call), (Code::System, "ncclRecv"));
    // The detail is the last of the whole process, so it may be another test's.
    assert!(text.contains("system error") && !detail.is_empty(), "{text}: {detail}");
    assert_eq!((DOUBLE.group_depth(), DOUBLE.pending(stream)), (0, 0));
    assert!(matches!(communicator.async_state(), Err(Error::Failed { .. })));
    communicator.abort().unwrap();
}

#[test]
fn a_panic_inside_of_a_group_ends_the_group_and_spends_the_communicator() {
    let id = nccl().unique_id().unwrap();
    let mut communicator = begin(&id, 1, 0);
    ready(&mut communicator).unwrap();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = communicator.group(|_| panic!("on purpose"));
    }));
    assert!(caught.is_err());
    assert_eq!(DOUBLE.group_depth(), 0);
    let sentence = communicator.group(|_| Ok(())).unwrap_err().to_string();
    assert!(sentence.contains("a panic left a group"), "{sentence}");
}

#[test]
fn what_belongs_outside_of_a_group_is_refused_inside() {
    let ids = [nccl().unique_id().unwrap(), nccl().unique_id().unwrap()];
    let [mut first, mut second] = ids.map(|id| begin(&id, 1, 0));
    ready(&mut first).unwrap();
    ready(&mut second).unwrap();
    let inside = first.group(|_| {
        assert!(matches!(second.group(|_| Ok(())), Err(Error::InsideGroup { .. })));
        assert!(matches!(
            second.abort(),
            Err(Error::InsideGroup { call: "ncclCommAbort" })
        ));
        assert!(matches!(second.async_state(), Err(Error::InsideGroup { .. })));
        let begun = Communicator::init(&nccl(), 1, &ids[1], 0, &Config::new());
        assert!(matches!(begun, Err(Error::InsideGroup { .. })));
        Ok(())
    });
    assert_eq!(inside, Ok(State::Ready), "an empty group is no work");
    assert_eq!(second.async_state(), Ok(State::Ready));
}

#[test]
fn counts_and_types_that_differ_fail_at_both_ranks() {
    let sides = [
        [(4, DataType::Uint8), (8, DataType::Uint8)],
        [(4, DataType::Float32), (4, DataType::Int32)],
    ];
    for side in sides {
        let id = nccl().unique_id().unwrap();
        let memory = [Memory::zeros(64), Memory::zeros(64)];
        at_every_rank(&id, 2, |rank, communicator| {
            let (stream, pointer) = (stream(), memory[rank as usize].pointer());
            let (count, kind) = side[rank as usize];
            let asked = communicator.group(|group| match rank {
                0 => group.send(pointer, count, kind, 1, stream),
                _ => group.recv(pointer, count, kind, 0, stream),
            });
            asked.unwrap();
            let error = failure(communicator);
            let expected = Code::InvalidArgument;
            assert!(
                matches!(&error, Error::Nccl { code, .. } if *code == expected),
                "{side:?}: {error}"
            );
            communicator.abort().unwrap();
        });
        assert_eq!((DOUBLE.live(&id), DOUBLE.misuse(&id)), (0, 0), "{side:?}");
    }
}

#[test]
fn a_failure_that_comes_while_a_group_is_open_is_told_at_its_end() {
    let id = nccl().unique_id().unwrap();
    let memory = [Memory::zeros(8), Memory::zeros(8)];
    let step = std::sync::Barrier::new(2);
    at_every_rank(&id, 2, |rank, communicator| {
        let (stream, pointer) = (stream(), memory[rank as usize].pointer());
        let error = if rank == 0 {
            step.wait();
            let send = |group: &mut Group<'_>| group.send(pointer, 4, DataType::Uint8, 1, stream);
            communicator.group(send).unwrap();
            let error = failure(communicator);
            step.wait();
            error
        } else {
            let receive = |group: &mut Group<'_>| group.recv(pointer, 8, DataType::Uint8, 0, stream);
            communicator.group(receive).unwrap();
            ready(communicator).unwrap();
            let ended = communicator.group(|group| {
                receive(group)?;
                // The other rank finds that the first one does not fit.
                step.wait();
                step.wait();
                Ok(())
            });
            ended.err().unwrap_or_else(|| failure(communicator))
        };
        let expected = Code::InvalidArgument;
        assert!(
            matches!(&error, Error::Nccl { code, .. } if *code == expected),
            "{error}"
        );
        communicator.abort().unwrap();
    });
    assert_eq!((DOUBLE.live(&id), DOUBLE.misuse(&id)), (0, 0));
}

#[test]
fn collectives_in_different_orders_fail_at_both_ranks() {
    let id = nccl().unique_id().unwrap();
    let memory = [Memory::zeros(64), Memory::zeros(64)];
    at_every_rank(&id, 2, |rank, communicator| {
        let (stream, all) = (stream(), memory[rank as usize].pointer());
        let asked = communicator.group(|group| match rank {
            0 => group.broadcast(all, all, 4, DataType::Uint8, 0, stream),
            _ => group.broadcast(all, all, 4, DataType::Uint8, 1, stream),
        });
        asked.unwrap();
        assert!(matches!(
            failure(communicator),
            Error::Nccl {
                code: Code::InvalidArgument,
                ..
            }
        ));
    });
    assert_eq!((DOUBLE.live(&id), DOUBLE.misuse(&id)), (0, 0), "drops abort");
}

#[test]
fn the_missing_library_and_the_wrong_one_are_told_by_name() {
    let sentence = Nccl::open("no/such/file.so").unwrap_err().to_string();
    assert!(sentence.contains("no/such/file.so"), "{sentence}");
    let wrong = Nccl::open("libm.so.6").unwrap_err();
    assert!(
        matches!(
            &wrong,
            Error::NoSymbol {
                symbol: "ncclGetVersion",
                ..
            }
        ),
        "{wrong}"
    );
}

#[test]
fn registrations_belong_to_their_communicator_and_memory_is_given_back() {
    let ids = [nccl().unique_id().unwrap(), nccl().unique_id().unwrap()];
    let [mut first, mut second] = ids.map(|id| begin(&id, 1, 0));
    ready(&mut first).unwrap();
    ready(&mut second).unwrap();
    let memory = nccl().allocate(4096).unwrap();
    // SAFETY: the registrations end before the memory does.
    let pointer = unsafe { memory.pointer() };
    let registration = first.register(pointer).unwrap();
    first.deregister(registration).unwrap();
    let registration = first.register(pointer).unwrap();
    assert!(matches!(second.deregister(registration), Err(Error::Foreign { .. })));
    first.abort().unwrap();
    memory.free().unwrap();
    assert_eq!(DOUBLE.strangers(), 0);
}

#[test]
fn a_stream_that_waits_ends_when_its_time_is_over() {
    let quiet = stream();
    assert!(DOUBLE.wait(quiet, 0, Duration::ZERO));
    assert!(!DOUBLE.wait(quiet, 1, Duration::from_millis(1)));
}

//! What happens when a rank dies, fails, is aborted, or does something else than the others: everybody who waits hears of
//! it, by name.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

mod job;

use std::io::Write as _;
use std::ops::Range;
use std::thread;
use std::time::Duration;

use lockstep_collective::{Aborter, BufferId, Collective, CollectiveError, LaneTree, ReduceLanes, Wire};
use lockstep_collective_script::{PATIENCE, patient};
use lockstep_trainer::started::mpi_rank;
use lockstep_trainer_mpi::{Communicator, Options};
use nccl_host::Error;

/// A reduction of one lane a rank over a buffer of 16 elements, all of them owned by rank 0.
fn reduce(collective: &mut Communicator, buffer: BufferId) -> Result<(), CollectiveError> {
    let size = collective.size();
    let rank_lanes: Vec<Range<u32>> = (0..size).map(|rank| rank..rank + 1).collect();
    let tree = LaneTree::full(size);
    collective.publish(0)?;
    collective.reduce_lanes(&ReduceLanes {
        bucket: 0,
        owners: &[(0..16, 0)],
        rank_lanes: &rank_lanes,
        tree: &tree,
        buffers: &[buffer],
        wire: Wire::Float32,
    })
}

/// The calls in which rank 0 waits for the others.
const WAITS: [&str; 6] = [
    "barrier",
    "allocate",
    "reduce_lanes",
    "all_gather_v",
    "exchange_slots",
    "broadcast",
];

fn wait_in(call: &str, collective: &mut Communicator, buffer: BufferId) -> Result<(), CollectiveError> {
    match call {
        "barrier" => collective.barrier(),
        "allocate" => collective.allocate("more", 100).map(|_| ()),
        "reduce_lanes" => reduce(collective, buffer),
        "all_gather_v" => collective.all_gather_v(buffer, &[(0..4, 1)]),
        "exchange_slots" => collective.exchange_slots(&mut [0], &[1]),
        "broadcast" => collective.broadcast(buffer, 0..4, 1),
        _ => unreachable!("{call} is not in the list"),
    }
}

/// In a rank: says what it heard, waits until `ranks` of them have heard, and ends as a trainer that failed: MPI not finished. The
/// first that ends takes all others with it.
fn hear(error: &CollectiveError, ranks: usize) -> ! {
    let rank = mpi_rank().unwrap();
    // In one piece: all ranks write to one place.
    let line = format!("rank {rank} heard: {error}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    job::come_here(rank, ranks);
    std::process::exit(1);
}

fn heard(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
}

#[test]
fn a_killed_rank_ends_the_job_and_is_named() {
    let (good, said) = job::start(3, "a_rank_of_which_one_is_killed", "").end();
    assert!(!good);
    heard(&said, &["rank 1", "signal 9"]);
}

#[test]
#[ignore = "a rank, started by mpirun"]
fn a_rank_of_which_one_is_killed() {
    job::told();
    let mut collective = job::join(0, 3, Options::default(), &patient());
    let buffer = collective.allocate("buffer", 64).unwrap();
    if mpi_rank() == Some(1) {
        let own = nix::unistd::Pid::this();
        nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    if let Err(error) = reduce(&mut collective, buffer).and_then(|()| collective.barrier()) {
        hear(&error, 2);
    }
    unreachable!("rank 1 never enters the barrier");
}

#[test]
fn a_rank_that_makes_another_call_is_named_by_those_who_wait_for_it_and_hears_of_it_itself() {
    for call in WAITS.iter().filter(|call| **call != "barrier") {
        let (good, said) = job::start(2, "a_rank_that_makes_another_call", call).end();
        assert!(!good);
        let ours = "rank 0 heard: rank 1 called barrier (arguments ";
        heard(&said, &[ours, &format!("where this rank called {call}")]);
        heard(
            &said,
            &[
                &format!("rank 1 heard: rank 0 called {call}"),
                "where this rank called barrier",
            ],
        );
    }
}

#[test]
#[ignore = "a rank, started by mpirun"]
fn a_rank_that_makes_another_call() {
    let call = job::told();
    let mut collective = job::join(0, 2, Options::default(), &patient());
    let buffer = collective.allocate("buffer", 64).unwrap();
    let result = match mpi_rank() {
        Some(0) => wait_in(&call, &mut collective, buffer),
        _ => collective.barrier(),
    };
    hear(&result.unwrap_err(), 2);
}

#[test]
fn the_same_call_with_other_arguments_is_found_too() {
    let (good, said) = job::start(2, "a_rank_with_other_arguments", "").end();
    assert!(good, "{said}");
}

/// The error of a rank whose communicator is then spent, and which the others hear of: all of them here.
#[test]
#[ignore = "a rank, started by mpirun"]
fn a_rank_with_other_arguments() {
    job::told();
    type Play = fn(&mut Communicator, BufferId, u32) -> Result<(), CollectiveError>;
    let different: [Play; 7] = [
        |collective, _, rank| collective.allocate("more", 100 + rank as usize).map(|_| ()),
        |collective, _, rank| collective.allocate(["one", "two"][rank as usize], 100).map(|_| ()),
        |collective, buffer, rank| collective.broadcast(buffer, 0..8, rank),
        |collective, buffer, rank| collective.all_gather_v(buffer, &[(0..8 + rank as usize, 0)]),
        |collective, _, rank| collective.exchange_slots(&mut [0; 2], &[rank, 1 - rank]),
        |collective, _, rank| match rank {
            0 => collective.publish(0).and_then(|()| collective.barrier()),
            _ => collective.barrier(),
        },
        // Other owners: every rank would wait for the other's partial, and then both enter a barrier.
        |collective, buffer, rank| {
            let tree = LaneTree::full(2);
            collective.publish(0)?;
            collective.reduce_lanes(&ReduceLanes {
                bucket: 0,
                owners: &[(0..16, 1 - rank)],
                rank_lanes: &[0..1, 1..2],
                tree: &tree,
                buffers: &[buffer],
                wire: Wire::Float32,
            })?;
            collective.barrier()
        },
    ];
    for (number, play) in different.into_iter().enumerate() {
        let mut collective = job::join(0, 2, Options::default(), &patient());
        let buffer = collective.allocate("buffer", 64).unwrap();
        let rank = collective.rank();
        let error = play(&mut collective, buffer, rank).unwrap_err();
        assert!(
            matches!(error, CollectiveError::Transport(Error::Mismatch { .. })),
            "play {number}, rank {rank}: {error}"
        );
        let later = collective.barrier().unwrap_err();
        assert!(
            later.is_aborted() && later.to_string().contains("an earlier call failed"),
            "{later}"
        );
    }
    lockstep_trainer::train::Mpi::finish(&lockstep_trainer_mpi::Library).unwrap();
}

#[test]
fn an_abort_from_another_thread_ends_every_wait_and_the_others_hear_that_this_rank_left() {
    for call in WAITS {
        let (good, said) = job::start(2, "a_rank_that_is_aborted", call).end();
        assert!(!good);
        heard(
            &said,
            &["rank 0 heard: the communicator was aborted: the operator has had enough"],
        );
        heard(&said, &["rank 1 heard: rank 0 "]);
    }
}

#[test]
#[ignore = "a rank, started by mpirun"]
fn a_rank_that_is_aborted() {
    let call = job::told();
    let aborter = match mpi_rank() {
        Some(0) => Aborter::new(),
        _ => patient(),
    };
    let mut collective = job::join(0, 2, Options::default(), &aborter);
    let buffer = collective.allocate("buffer", 64).unwrap();
    if mpi_rank() == Some(0) {
        let later = aborter.clone();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            later.abort("the operator has had enough");
        });
        hear(&wait_in(&call, &mut collective, buffer).unwrap_err(), 2);
    }
    // Late enough for the abort. Where rank 0 had entered a barrier too, this rank hears in its next call.
    thread::sleep(Duration::from_millis(150));
    let heard = collective.barrier().and_then(|()| collective.barrier());
    hear(&heard.unwrap_err(), 2);
}

#[test]
fn a_rank_that_does_not_come_is_named_after_the_stall() {
    for call in WAITS {
        let (good, said) = job::start(2, "a_rank_that_stalls", call).end();
        assert!(!good);
        let sentence = format!(") did not come to {call} in ");
        heard(&said, &["rank 0 heard: rank 1 (pid ", &sentence]);
    }
}

#[test]
#[ignore = "a rank, started by mpirun"]
fn a_rank_that_stalls() {
    let call = job::told();
    let options = Options {
        stall: Some(Duration::from_millis(200)),
        ..Options::default()
    };
    let mut collective = job::join(0, 2, options, &patient());
    let buffer = collective.allocate("buffer", 64).unwrap();
    if mpi_rank() == Some(0) {
        hear(&wait_in(&call, &mut collective, buffer).unwrap_err(), 1);
    }
    // mpirun ends it with the other one.
    thread::sleep(PATIENCE);
}

#[test]
fn more_or_fewer_ranks_than_mpi_started_are_refused_and_so_is_a_rank_that_does_not_come() {
    let (good, said) = job::start(2, "a_rank_in_a_wrong_world", "").end();
    assert!(!good);
    // One comes too late, when the other has given up: neither waits for ever.
    for rank in [0, 1] {
        heard(
            &said,
            &[
                &format!("rank {rank} heard: after "),
                &format!("ms rank {rank} had not met rank {}", 1 - rank),
            ],
        );
    }
}

#[test]
#[ignore = "a rank, started by mpirun"]
fn a_rank_in_a_wrong_world() {
    job::told();
    let connect = |rank, size, deadline| {
        Communicator::connect(rank, size, Options::default(), deadline, &Aborter::new())
            .err()
            .unwrap()
    };
    let said = connect(0, 3, PATIENCE).to_string();
    assert!(
        said.contains("MPI started 2 processes") && said.contains("has 3 ranks"),
        "{said}"
    );
    let said = connect(0, 2, PATIENCE).to_string();
    assert!(said.contains("says that it is rank 0 of 2"), "{said}");
    if mpi_rank() == Some(1) {
        thread::sleep(Duration::from_millis(300));
    }
    hear(&connect(mpi_rank().unwrap(), 2, Duration::from_millis(100)), 2);
}

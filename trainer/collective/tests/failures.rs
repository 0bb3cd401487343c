//! What happens when a rank dies, leaves, is aborted, or does something else than the others: everybody who waits hears
//! of it, typed and by name, and nothing is left behind.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use lockstep_collective::{
    Aborter, Backend, BufferId, Collective, CollectiveError, LaneTree, ReduceLanes, Wire, connect, new_id,
};
use nccl_host::{Error, Fault};

const PATIENCE: Duration = Duration::from_secs(60);
const ENVIRONMENT: &str = "LOCKSTEP_FAILURES_RANK";

fn join(id: &[u8], rank: u32, size: u32, aborter: &Aborter) -> Box<dyn Collective> {
    connect(Backend::Host, id, rank, size, PATIENCE, aborter).unwrap()
}

/// An aborter that ends a wait which nobody has ended.
fn patient() -> Aborter {
    let aborter = Aborter::new();
    let later = aborter.clone();
    thread::spawn(move || {
        thread::sleep(PATIENCE);
        later.abort("the test has run out of patience");
    });
    aborter
}

/// Runs one closure a rank, on threads, and returns what they return, by rank.
fn world<T: Send>(size: u32, play: impl Fn(Box<dyn Collective>) -> T + Sync) -> Vec<T> {
    let id = new_id(&[5; 32], 1).unwrap();
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..size)
            .map(|rank| {
                let (id, play) = (&id, &play);
                scope.spawn(move || play(join(id, rank, size, &Aborter::new())))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// A reduction of one lane a rank over a whole buffer of `size` elements, element r owned by rank r.
fn reduce(collective: &mut Box<dyn Collective>, bucket: u32, buffer: BufferId) -> Result<(), CollectiveError> {
    let size = collective.size();
    let rank_lanes: Vec<Range<u32>> = (0..size).map(|rank| rank..rank + 1).collect();
    let owners: Vec<_> = (0..size).map(|rank| (rank as usize..rank as usize + 1, rank)).collect();
    let tree = LaneTree::full(size);
    collective.reduce_lanes(&ReduceLanes {
        bucket,
        owners: &owners,
        rank_lanes: &rank_lanes,
        tree: &tree,
        buffers: &[buffer],
        wire: Wire::Float32,
    })
}

/// The waits in which a peer may die.
const WAITS: [&str; 6] = [
    "barrier",
    "allocate",
    "reduce_lanes",
    "all_gather_v",
    "exchange_slots",
    "broadcast",
];

fn wait_in(call: &str, collective: &mut Box<dyn Collective>, buffer: BufferId) -> Result<(), CollectiveError> {
    match call {
        "barrier" => collective.barrier(),
        "allocate" => collective.allocate("more", 100).map(|_| ()),
        "reduce_lanes" => collective.publish(0).and_then(|()| reduce(collective, 0, buffer)),
        "all_gather_v" => collective.all_gather_v(buffer, &[(0..4, 1)]),
        "exchange_slots" => collective.exchange_slots(&mut [0], &[1]),
        "broadcast" => collective.broadcast(buffer, 0..4, 1),
        _ => unreachable!("{call} is not in the list"),
    }
}

/// A rank's process, which does not outlive its test.
struct Rank(Child);

impl Rank {
    fn wait_until_idle(&mut self) {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == "idle"));
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts rank 1 of 3 as a process that meets the others, publishes a bucket if it shall, says that it is there, and then
/// does nothing.
fn start_idle_rank(id: &[u8], publishes: bool) -> Rank {
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let rank = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "a_rank_that_does_nothing"])
        .env(ENVIRONMENT, format!("{publishes} {id}"))
        .stdout(Stdio::piped())
        .spawn();
    Rank(rank.unwrap())
}

#[test]
#[ignore = "a rank, started as a process by a test here"]
fn a_rank_that_does_nothing() {
    let told = std::env::var(ENVIRONMENT).unwrap();
    let (publishes, id) = told.split_once(' ').unwrap();
    let id: Vec<u8> = (0..id.len() / 2)
        .map(|i| u8::from_str_radix(&id[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    let mut collective = join(&id, 1, 3, &Aborter::new());
    collective.allocate("buffer", 12).unwrap();
    if publishes == "true" {
        collective.publish(0).unwrap();
    }
    println!("\nidle");
    thread::sleep(PATIENCE);
}

#[test]
fn a_killed_process_is_named_with_its_pid_by_everyone_who_waits() {
    for call in WAITS {
        let id = new_id(&[5; 32], 1).unwrap();
        let mut idle = start_idle_rank(&id, false);
        let pid = idle.0.id();
        let (ready, is_ready) = mpsc::channel();
        thread::scope(|scope| {
            let ranks = [0, 2].map(|rank| {
                let (id, ready) = (&id, ready.clone());
                scope.spawn(move || {
                    let mut collective = join(id, rank, 3, &patient());
                    let buffer = collective.allocate("buffer", 12).unwrap();
                    ready.send(()).unwrap();
                    let first = wait_in(call, &mut collective, buffer).unwrap_err();
                    assert_eq!(first.lost_peer(), Some((1, pid)), "rank {rank} in {call}: {first}");
                    assert!(first.to_string().contains(&format!("rank 1 (pid {pid})")), "{first}");
                    // The communicator is spent, and says why.
                    let second = wait_in(call, &mut collective, buffer).unwrap_err();
                    assert!(second.is_aborted() && second.to_string().contains("rank 1"), "{second}");
                })
            });
            idle.wait_until_idle();
            (0..2).for_each(|_| is_ready.recv_timeout(PATIENCE).unwrap());
            // Long enough that most runs kill it while the others sleep, not while they spin.
            thread::sleep(Duration::from_millis(30));
            idle.0.kill().unwrap();
            ranks.into_iter().for_each(|rank| rank.join().unwrap());
        });
    }
}

#[test]
fn a_rank_that_waits_for_a_survivor_is_told_who_died() {
    let id = new_id(&[5; 32], 1).unwrap();
    let mut idle = start_idle_rank(&id, true);
    let pid = idle.0.id();
    thread::scope(|scope| {
        // Rank 0 needs nothing more of rank 1, which has published. It waits for rank 2, which waits for rank 1.
        let id = &id;
        let waiting = scope.spawn(move || {
            let mut collective = join(id, 0, 3, &patient());
            let buffer = collective.allocate("buffer", 12).unwrap();
            collective.publish(0).unwrap();
            reduce(&mut collective, 0, buffer).unwrap_err()
        });
        let between = scope.spawn(move || {
            let mut collective = join(id, 2, 3, &patient());
            collective.allocate("buffer", 12).unwrap();
            collective.barrier().unwrap_err()
        });
        idle.wait_until_idle();
        idle.0.kill().unwrap();
        for rank in [between, waiting] {
            let error = rank.join().unwrap();
            assert_eq!(error.lost_peer(), Some((1, pid)), "{error}");
        }
    });
}

#[test]
fn a_rank_that_leaves_on_purpose_is_told_from_one_that_died() {
    let errors = world(3, |mut collective| match collective.rank() {
        1 => None,
        _ => collective.barrier().err(),
    });
    for rank in [0, 2] {
        let error = errors[rank].as_ref().unwrap();
        // From the rank itself, or from the one that saw it first.
        assert!(
            matches!(
                error,
                CollectiveError::Transport(
                    Error::PeerLeft { rank: 1, .. }
                        | Error::Told {
                            rank: 1,
                            fault: Fault::Left,
                            ..
                        }
                )
            ) && error.lost_peer().is_none(),
            "rank {rank}: {error}"
        );
    }
}

#[test]
fn a_rank_that_has_given_all_it_had_to_may_leave_before_the_others_have_finished() {
    for _ in 0..50 {
        let tables = world(4, |mut collective| {
            let rank = u64::from(collective.rank());
            thread::sleep(Duration::from_micros(300 * rank));
            let mut table = [10 + rank; 4];
            collective
                .exchange_slots(&mut table, &[0, 1, 2, 3])
                .map(|()| table)
                .unwrap()
        });
        assert!(tables.iter().all(|table| *table == [10, 11, 12, 13]));
    }
}

#[test]
fn abort_from_another_thread_ends_every_wait_with_its_reason() {
    for call in WAITS {
        let id = new_id(&[5; 32], 1).unwrap();
        let aborter = Aborter::new();
        let (aborted, is_aborted) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let id = &id;
            scope.spawn(move || {
                let mut collective = join(id, 1, 2, &Aborter::new());
                collective.allocate("buffer", 12).unwrap();
                // Stays until the other rank has finished, well or badly.
                let _ = is_aborted.recv();
            });
            let mut collective = join(id, 0, 2, &aborter);
            let buffer = collective.allocate("buffer", 12).unwrap();
            let from_outside = collective.aborter();
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(15));
                from_outside.abort("generation 1 is over");
                from_outside.abort("a later reason does not count");
            });
            for _ in 0..2 {
                let error = wait_in(call, &mut collective, buffer).unwrap_err();
                assert!(error.is_aborted(), "{call}: {error}");
                assert_eq!(
                    error.to_string(),
                    "the communicator was aborted: generation 1 is over",
                    "{call}"
                );
            }
            drop(aborted);
        });
        assert!(aborter.is_aborted());
    }
}

#[test]
fn ranks_that_make_different_calls_are_told_so() {
    let errors = world(2, |mut collective| {
        let buffer = collective.allocate("buffer", 64).unwrap();
        match collective.rank() {
            0 => collective.barrier().unwrap_err(),
            _ => collective.broadcast(buffer, 0..8, 0).unwrap_err(),
        }
    });
    let said = errors[0].to_string();
    assert!(
        said.contains("rank 1 called broadcast") && said.contains("this rank called barrier"),
        "{said}"
    );
    assert!(
        matches!(errors[1], CollectiveError::Transport(Error::Mismatch { rank: 0, .. })),
        "{}",
        errors[1]
    );

    // The same call with other arguments.
    type Call = fn(&mut Box<dyn Collective>, BufferId, u32) -> Result<(), CollectiveError>;
    let different: [Call; 5] = [
        |collective, _, rank| collective.allocate("more", 100 + rank as usize).map(|_| ()),
        |collective, buffer, rank| collective.broadcast(buffer, 0..8, rank),
        |collective, buffer, rank| collective.all_gather_v(buffer, &[(0..8 + rank as usize, 0)]),
        |collective, _, rank| collective.exchange_slots(&mut [0; 2], &[rank, 1 - rank]),
        |collective, _, rank| match rank {
            0 => collective.publish(0).and_then(|()| collective.barrier()),
            _ => collective.barrier(),
        },
    ];
    for call in different {
        let errors = world(2, |mut collective| {
            let buffer = collective.allocate("buffer", 64).unwrap();
            let rank = collective.rank();
            call(&mut collective, buffer, rank).unwrap_err()
        });
        for error in errors {
            assert!(
                matches!(error, CollectiveError::Transport(Error::Mismatch { .. })),
                "{error}"
            );
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused_before_anything_is_written_and_the_next_call_works() {
    for backend in [Backend::Solo, Backend::Host] {
        let id = new_id(&[5; 32], 1).unwrap();
        let mut collective = connect(backend, &id, 0, 1, PATIENCE, &Aborter::new()).unwrap();
        let buffer = collective.allocate("buffer", 16).unwrap();
        let tree = LaneTree::full(2);
        collective.publish(3).unwrap();
        let good = ReduceLanes {
            bucket: 3,
            owners: &[(0..4, 0)],
            rank_lanes: &[0..2],
            tree: &tree,
            buffers: &[buffer],
            wire: Wire::Float32,
        };
        let refused = [
            collective.reduce_lanes(&ReduceLanes { bucket: 4, ..good }),
            collective.reduce_lanes(&ReduceLanes {
                owners: &[(0..5, 0)],
                ..good
            }),
            collective.reduce_lanes(&ReduceLanes {
                rank_lanes: &[0..1, 1..2],
                ..good
            }),
            collective.reduce_lanes(&ReduceLanes {
                rank_lanes: &[0..1],
                ..good
            }),
            collective.reduce_lanes(&ReduceLanes { buffers: &[], ..good }),
            collective.all_gather_v(buffer, &[(10..17, 0)]),
            collective.all_gather_v(buffer, &[(0..1, 1)]),
            collective.broadcast(buffer, 0..17, 0),
            collective.broadcast(buffer, 0..1, 1),
            collective.exchange_slots(&mut [1, 2], &[0]),
            collective.exchange_slots(&mut [1], &[1]),
        ];
        for (number, refusal) in refused.into_iter().enumerate() {
            let error = refusal.unwrap_err();
            let before = matches!(error, CollectiveError::Misuse { .. } | CollectiveError::Tree(_));
            assert!(before, "refusal {number} of {}: {error}", backend.name());
        }
        collective.reduce_lanes(&good).unwrap();
        assert!(collective.publish(3).unwrap_err().to_string().contains("no exchange"));
        collective.barrier().unwrap();
        collective.publish(3).unwrap();
        collective.reduce_lanes(&good).unwrap();
    }
}

#[test]
fn the_solo_backend_serves_one_rank_only() {
    let id = new_id(&[5; 32], 1).unwrap();
    let error = connect(Backend::Solo, &id, 0, 2, PATIENCE, &Aborter::new())
        .err()
        .unwrap();
    assert!(
        matches!(error, CollectiveError::NotSolo { rank: 0, size: 2 }),
        "{error}"
    );
}

#[test]
fn nothing_is_left_in_the_process_after_success_failure_and_abort() {
    // In a process of its own: other tests here open descriptors and start threads meanwhile.
    let result = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "count_what_is_left"])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(result.success());
}

#[test]
#[ignore = "started as a process by nothing_is_left_in_the_process_after_success_failure_and_abort"]
fn count_what_is_left() {
    let count = || {
        let entries = |folder: &str| std::fs::read_dir(folder).unwrap().count();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mapped = maps.lines().filter(|line| line.contains("memfd:lockstep")).count();
        (entries("/proc/self/fd"), entries("/proc/self/task"), mapped)
    };
    let before = count();
    assert_eq!(before.2, 0);
    let kept = world(4, |mut collective| {
        let buffer = collective.allocate("buffer", 1 << 20).unwrap();
        collective.exchange_slots(&mut [1, 2, 3], &[0, 1, 2]).unwrap();
        assert!(count().2 > 4, "the buffers' names show in the memory map");
        if collective.rank() == 2 {
            collective.aborter().abort("enough");
        }
        let _ = collective.broadcast(buffer, 0..8, 0);
        collective.aborter()
    });
    let id = new_id(&[5; 32], 1).unwrap();
    assert!(connect(Backend::Host, &id, 1, 3, Duration::from_millis(50), &Aborter::new()).is_err());
    assert!(connect(Backend::Host, &id, 0, 3, Duration::from_millis(50), &Aborter::new()).is_err());
    // Aborters that are kept keep no memory.
    assert_eq!(count(), before, "(descriptors, threads, mappings)");
    assert_eq!(kept.len(), 4);
}

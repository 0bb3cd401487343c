//! What the others hear when a rank gives up: at once, and whose fault it is.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use nccl_host::{Call, CallKind, Communicator, CommunicatorId, Error, Fault, Into, Options, Root, Transfer};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(100);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// How the ranks of a test reach each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Memory,
    Tcp,
}

/// Plays one closure a rank, on threads; each gets its communicator, whose calls wait for `stall(rank)`.
fn world<T: Send>(
    carrier: Carrier,
    size: u32,
    stall: impl Fn(u32) -> Option<Duration> + Sync,
    play: impl Fn(Communicator) -> T + Sync,
) -> Vec<T> {
    let root = Root::open(&[1; 32], 4, LOOPBACK).unwrap();
    let id = match carrier {
        Carrier::Memory => CommunicatorId::new(&[1; 32], 4).unwrap(),
        Carrier::Tcp => root.id().clone(),
    };
    let mut root = Some(root);
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..size)
            .map(|rank| {
                let (id, root, stall, play) = (&id, root.take(), &stall, &play);
                scope.spawn(move || {
                    let options = Options {
                        root,
                        advertise: Some(LOOPBACK),
                        only_tcp: carrier == Carrier::Tcp,
                        stall: stall(rank),
                        ..Options::default()
                    };
                    play(Communicator::join(id, rank, size, LONG, options).unwrap())
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn barrier(communicator: &mut Communicator) -> Result<(), Error> {
    communicator.enter(Call::new(CallKind::Barrier, 0))
}

#[test]
fn a_rank_that_waits_for_ever_hears_at_once_who_made_another_one_give_up() {
    let (heard, is_heard) = mpsc::channel::<()>();
    let is_heard = Mutex::new(is_heard);
    // Rank 2 does nothing. Rank 0 has a deadline, rank 1 has none.
    let stall = |rank| (rank == 0).then_some(SHORT);
    world(Carrier::Memory, 3, stall, |mut communicator| {
        match communicator.rank() {
            0 => {
                let error = barrier(&mut communicator).unwrap_err();
                assert!(matches!(error, Error::Stalled { rank: 2, .. }), "{error}");
                // Its owner keeps what has failed for as long as it likes.
                is_heard.lock().unwrap().recv_timeout(LONG).unwrap();
            }
            1 => {
                let error = barrier(&mut communicator).unwrap_err();
                let expected = Error::Told {
                    rank: 2,
                    pid: std::process::id(),
                    by: 0,
                    fault: Fault::Silent,
                };
                assert_eq!(error.to_string(), expected.to_string());
                assert_eq!(error.named_ranks(), [2]);
                (0..2).for_each(|_| heard.send(()).unwrap());
            }
            _ => {
                thread::sleep(5 * SHORT);
                // All have come to the first, and nobody comes to the second.
                let error = barrier(&mut communicator)
                    .and_then(|()| barrier(&mut communicator))
                    .unwrap_err();
                assert!(
                    matches!(
                        error,
                        Error::Accused {
                            fault: Fault::Silent,
                            ..
                        }
                    ),
                    "{error}"
                );
            }
        }
    });
}

#[test]
fn whoever_passes_on_that_a_rank_left_names_that_rank() {
    for carrier in [Carrier::Memory, Carrier::Tcp] {
        // Rank 2 leaves. Rank 1 waits for it alone, and is all that rank 0 waits for, over TCP.
        let errors = world(
            carrier,
            3,
            |_| None,
            |mut communicator| match communicator.rank() {
                2 => None,
                _ => barrier(&mut communicator).err(),
            },
        );
        for error in errors.into_iter().flatten() {
            assert_eq!(error.named_ranks(), [2], "{error}");
        }
    }
}

#[test]
fn a_rank_that_only_sends_hears_why_its_peer_has_closed() {
    let bytes = 16 << 20;
    let errors = world(
        Carrier::Tcp,
        2,
        |_| None,
        |mut communicator| {
            let buffer = communicator.allocate("much", bytes).unwrap();
            if communicator.rank() == 1 {
                return None;
            }
            // More than the sockets hold, and nothing that this rank waits to hear.
            let send = Transfer {
                peer: 1,
                buffer,
                bytes: 0..bytes,
                floats: false,
                into: Into::Mirror,
            };
            // What the peer takes while it leaves is no error yet.
            loop {
                let sent = communicator.exchange(Call::new(CallKind::Reduce, 0), std::slice::from_ref(&send), &[]);
                if let Err(error) = sent {
                    break Some(error);
                }
            }
        },
    );
    let error = errors[0].as_ref().unwrap();
    assert!(matches!(error, Error::PeerLeft { rank: 1, .. }), "{error}");
}

#[test]
fn strangers_that_say_nothing_keep_nobody_from_meeting() {
    let root = Root::open(&[1; 32], 4, LOOPBACK).unwrap();
    let id = root.id().clone();
    let bytes = id.to_bytes();
    let port = u16::from_le_bytes([bytes[45], bytes[46]]);
    // One after the other they would take more than the meeting has.
    let strangers: Vec<TcpStream> = (0..30).map(|_| TcpStream::connect((LOOPBACK, port)).unwrap()).collect();
    let mut root = Some(root);
    thread::scope(|scope| {
        for rank in 0..2 {
            let (id, root) = (&id, root.take());
            scope.spawn(move || {
                let options = Options {
                    root,
                    advertise: Some(LOOPBACK),
                    only_tcp: true,
                    ..Options::default()
                };
                let mut communicator = Communicator::join(id, rank, 2, LONG, options).unwrap();
                barrier(&mut communicator).unwrap();
            });
        }
    });
    drop(strangers);
}

#[test]
fn a_rank_of_many_that_does_not_come_is_the_only_one_that_is_missed() {
    let id = CommunicatorId::new(&[1; 32], 4).unwrap();
    thread::scope(|scope| {
        // Rank 1 does not come: nobody is kept from the others by that.
        let ranks = [0, 2, 3].map(|rank| {
            let id = &id;
            scope.spawn(move || {
                let deadline = 10 * SHORT;
                Communicator::join(id, rank, 4, deadline, Options::default())
                    .err()
                    .unwrap()
            })
        });
        for rank in ranks {
            let error = rank.join().unwrap();
            assert_eq!(error.named_ranks(), [1], "{error}");
        }
    });
}

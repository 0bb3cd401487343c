//! Those who have no business in a world and come all the same.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lockstep_collective::{Aborter, Backend, Meeting, join};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::plan::Carrier;
use crate::rank::LOOPBACK;

/// A thread that goes on until this value ends.
pub(crate) struct Intruder {
    over: Arc<AtomicBool>,
    aborter: Aborter,
    thread: Option<JoinHandle<()>>,
}

impl Intruder {
    fn start(play: impl FnOnce(&AtomicBool, &Aborter) + Send + 'static) -> Intruder {
        let (over, aborter) = (Arc::new(AtomicBool::new(false)), Aborter::new());
        let (is_over, its_aborter) = (Arc::clone(&over), aborter.clone());
        Intruder {
            over,
            aborter,
            thread: Some(thread::spawn(move || play(&is_over, &its_aborter))),
        }
    }

    /// A rank of the generation before, that looks for its peers where the new ones meet.
    pub(crate) fn stale(id: &[u8], carrier: Carrier, size: u32) -> Intruder {
        let mut id = id.to_vec();
        id[20..28].copy_from_slice(&0u64.to_le_bytes());
        id[47..].fill(0xee);
        let (rank, size) = match carrier {
            // It finds the sockets of the new generation, and has one of its own name.
            Carrier::Memory => (size, size + 1),
            Carrier::Tcp => {
                id[4..20].fill(0xdd);
                (1, size)
            }
        };
        Intruder::start(move |over, aborter| {
            while !over.load(Ordering::Relaxed) {
                let meeting = Meeting {
                    rank,
                    size,
                    deadline: Duration::from_millis(300),
                    advertise: (carrier == Carrier::Tcp).then_some(LOOPBACK),
                    only_tcp: carrier == Carrier::Tcp,
                    aborter: Some(aborter),
                    ..Meeting::default()
                };
                assert!(join(Backend::Host, &id, meeting).is_err(), "a stale rank was let in");
                thread::sleep(Duration::from_millis(1));
            }
        })
    }

    /// Connections that say nothing, or nothing of sense, or a greeting and then nothing.
    pub(crate) fn crowd(doors: Vec<SocketAddr>, size: u32, seed: u64) -> Intruder {
        Intruder::start(move |over, _| {
            let random = &mut StdRng::seed_from_u64(seed);
            let mut open = std::collections::VecDeque::new();
            while !over.load(Ordering::Relaxed) {
                let door = doors[random.random_range(0..doors.len())];
                if let Ok(mut connection) = TcpStream::connect(door) {
                    let said = match random.random_range(0..3) {
                        0 => Vec::new(),
                        1 => {
                            let mut noise = vec![0; random.random_range(1..300)];
                            random.fill_bytes(&mut noise);
                            noise
                        }
                        _ => greeting(random.random_range(1..=size), size, random.random_range(2..=3)),
                    };
                    let _ = connection.write_all(&said);
                    open.push_back(connection);
                }
                if open.len() > 40 {
                    open.pop_front();
                }
                thread::sleep(Duration::from_millis(1));
            }
        })
    }
}

/// What a rank of the first generation would say.
fn greeting(rank: u32, size: u32, purpose: u8) -> Vec<u8> {
    let hello = [
        &[1][..],
        &rank.to_le_bytes(),
        &size.to_le_bytes(),
        &1u64.to_le_bytes(),
        &[purpose],
        &[7; 32],
    ]
    .concat();
    [&[hello.len() as u8][..], &hello].concat()
}

impl Drop for Intruder {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.aborter.abort("the world is over");
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(
            thread::panicking() || matches!(ended, Some(Ok(()))),
            "an intruder has failed"
        );
    }
}

//! Signals between ranks: counters that only rise, each in its writer's own page.
//!
//! A rank writes its counters and rings its own bell; peers read both through read-only mappings. Waiting is a short spin,
//! then a futex sleep on the peer's bell. A sleeper cannot write the peer's page, so it announces in its *own* page whose
//! bell it sleeps on; the writer reads that and makes a system call only when somebody sleeps.
//!
//! Why no wake-up is lost: the writer stores counter, then bell, then (after a full fence) reads the announcements; the
//! sleeper stores its announcement, then (after a full fence) reads bell and counter. One of the two must see the other;
//! and a bell that changes between the sleeper's reading and its system call makes the kernel refuse the sleep.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use rustix::thread::futex;

use crate::abort::Bell;
use crate::error::Error;
use crate::memory::{HostMemory, PeerMemory};

/// One cache line (two, as processors fetch pairs), so that a reader of one counter does not slow the writer of another.
#[repr(C, align(128))]
struct Line<T>(T);

/// What a rank tells its peers. All zero at first, as fresh memory is.
#[repr(C)]
struct Page {
    /// How many full collectives this rank has entered.
    entered: Line<AtomicU64>,
    /// How many buckets this rank has published.
    published: Line<AtomicU64>,
    /// What the last two full collectives were: call k in place k mod 2. Call k + 2 overwrites the place of call k only
    /// after every rank has entered call k + 1, and so has compared call k.
    calls: Line<[AtomicU64; 2]>,
    /// Changes with every signal; sleepers sleep on it.
    bell: Line<AtomicU32>,
    /// 1 + the rank on whose bell this rank sleeps, or 0.
    sleeping_on: Line<AtomicU32>,
}

/// Which counter is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    Entered,
    Published,
}

impl Page {
    fn counter(&self, counter: Counter) -> &AtomicU64 {
        match counter {
            Counter::Entered => &self.entered.0,
            Counter::Published => &self.published.0,
        }
    }
}

/// The control pages of all ranks, as one rank sees them.
pub(crate) struct Controls {
    rank: u32,
    own: HostMemory,
    /// By rank; none for this rank itself.
    peers: Vec<Option<PeerMemory>>,
}

/// Bytes of a control page.
pub(crate) const CONTROL_BYTES: usize = size_of::<Page>();

impl Controls {
    /// `own` and every peer's memory are [`CONTROL_BYTES`] long (peers' by `PeerMemory::map`).
    pub(crate) fn new(rank: u32, own: HostMemory, peers: Vec<Option<PeerMemory>>) -> Controls {
        assert!(own.len() >= CONTROL_BYTES, "a control page holds {CONTROL_BYTES} bytes");
        Controls { rank, own, peers }
    }

    fn own(&self) -> &Page {
        // SAFETY: the mapping is page aligned, writable, at least CONTROL_BYTES long (checked in `new`) and lives as long
        // as `self`; zeroed memory is a valid Page, and all of it is accessed by atomic operations only.
        unsafe { self.own.ptr().cast::<Page>().as_ref() }
    }

    /// The page of a peer; none for this rank itself.
    fn peer(&self, rank: u32) -> Option<&Page> {
        let memory = self.peers.get(rank as usize)?.as_ref()?;
        // SAFETY: the mapping is page aligned, CONTROL_BYTES long (mapped with that length, its size is sealed) and lives
        // as long as `self`. It is read-only: only relaxed loads of at most 8 bytes are made through it, which never
        // write on the platforms that we serve, and futex calls that only read.
        Some(unsafe { memory.ptr().cast::<Page>().as_ref() })
    }

    /// The ranks other than this one.
    pub(crate) fn peers(&self) -> impl Iterator<Item = u32> + use<> {
        let rank = self.rank;
        (0..self.peers.len() as u32).filter(move |peer| *peer != rank)
    }

    /// Raises one of this rank's counters: everything that this thread wrote before is seen by a peer that sees it.
    pub(crate) fn signal(&self, counter: Counter, value: u64) {
        let page = self.own();
        page.counter(counter).store(value, Ordering::Release);
        // Two threads of this rank may signal at once, one each counter.
        page.bell.0.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        let awaited = self.rank + 1;
        let sleepers = self
            .peers()
            .filter_map(|rank| self.peer(rank))
            .any(|peer| peer.sleeping_on.0.load(Ordering::Relaxed) == awaited);
        if sleepers {
            // A wake-up has no failure that matters: sleepers look again by themselves after a slice.
            let _ = futex::wake(&page.bell.0, futex::Flags::empty(), i32::MAX as u32);
        }
    }

    /// Notes what call number `number` is; a later [`Controls::signal`] makes it visible.
    pub(crate) fn note_call(&self, number: u64, call: u64) {
        self.own().calls.0[(number % 2) as usize].store(call, Ordering::Relaxed);
    }

    /// What a peer noted for call `number`, once [`Controls::reached`] has seen it enter.
    pub(crate) fn call_of(&self, rank: u32, number: u64) -> Option<u64> {
        Some(self.peer(rank)?.calls.0[(number % 2) as usize].load(Ordering::Relaxed))
    }

    /// How much a peer has done, in entered calls and publishes; none where it has no page here.
    pub(crate) fn progress(&self, rank: u32) -> Option<u64> {
        let page = self.peer(rank)?;
        Some(page.entered.0.load(Ordering::Relaxed) + page.published.0.load(Ordering::Relaxed))
    }

    /// Whether a peer's counter has reached `value`; then all that it wrote before is visible here.
    pub(crate) fn reached(&self, rank: u32, counter: Counter, value: u64) -> bool {
        let Some(peer) = self.peer(rank) else { return true };
        if peer.counter(counter).load(Ordering::Relaxed) < value {
            return false;
        }
        fence(Ordering::Acquire);
        true
    }

    /// Sleeps until the peer rings its bell, its counter has reached `value`, or `slice` is over. May return early.
    pub(crate) fn sleep(&self, rank: u32, counter: Counter, value: u64, slice: Duration) -> Result<(), Error> {
        let Some(peer) = self.peer(rank) else { return Ok(()) };
        let announcement = &self.own().sleeping_on.0;
        announcement.store(rank + 1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let bell = peer.bell.0.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let mut result = Ok(());
        if !self.reached(rank, counter, value) {
            let slice = rustix::time::Timespec {
                tv_sec: slice.as_secs() as i64,
                tv_nsec: i64::from(slice.subsec_nanos()),
            };
            use rustix::io::Errno;
            match futex::wait(&peer.bell.0, futex::Flags::empty(), bell, Some(&slice)) {
                Ok(()) | Err(Errno::AGAIN | Errno::TIMEDOUT | Errno::INTR) => {}
                Err(source) => result = Err(Error::system("futex", source)),
            }
        }
        announcement.store(0, Ordering::Relaxed);
        result
    }
}

impl Bell for Controls {
    /// Wakes the sleepers on every peer's bell (those of other processes too; they look, and sleep again).
    fn ring(&self) {
        for peer in self.peers().filter_map(|rank| self.peer(rank)) {
            let _ = futex::wake(&peer.bell.0, futex::Flags::empty(), i32::MAX as u32);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::AsFd;
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// So long that a test which needs a slice to end has failed.
    const SLICE: Duration = Duration::from_secs(20);

    /// The control pages of two ranks, as each of them sees them.
    fn pair() -> [Controls; 2] {
        let pages = [0, 1].map(|_| HostMemory::shared("control", CONTROL_BYTES).unwrap());
        let peer = |rank: usize| Some(PeerMemory::map(pages[rank].1.as_fd(), CONTROL_BYTES, rank as u32).unwrap());
        let peers = [vec![None, peer(1)], vec![peer(0), None]];
        let [(first, _), (second, _)] = pages;
        let [of_first, of_second] = peers;
        [Controls::new(0, first, of_first), Controls::new(1, second, of_second)]
    }

    #[test]
    fn no_wake_up_is_lost_between_a_signal_and_a_sleep() {
        let [first, second] = pair();
        let started = Instant::now();
        // Ping-pong without a spin: every turn is a race between a signal and a sleep.
        let play = |own: &Controls, peer: u32| {
            for turn in 1..=5000 {
                own.signal(Counter::Published, turn);
                while !own.reached(peer, Counter::Published, turn) {
                    own.sleep(peer, Counter::Published, turn, SLICE).unwrap();
                    assert!(started.elapsed() < SLICE, "a sleeper was not woken");
                }
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| play(&second, 0));
            play(&first, 1);
        });
    }

    #[test]
    fn the_bell_wakes_a_sleeper_of_this_process_and_counters_stay_as_they_are() {
        let [first, _second] = pair();
        let started = Instant::now();
        thread::scope(|scope| {
            let sleeper = scope.spawn(|| first.sleep(1, Counter::Entered, 1, SLICE).unwrap());
            while !sleeper.is_finished() && started.elapsed() < SLICE {
                first.ring();
                thread::yield_now();
            }
        });
        assert!(started.elapsed() < SLICE, "the sleeper was not woken");
        assert!(!first.reached(1, Counter::Entered, 1));
    }
}

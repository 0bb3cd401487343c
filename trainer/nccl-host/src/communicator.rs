//! The communicator of one rank: buffers that peers can read, calls that wait for every rank, publishes.
//!
//! What a collective is made of: [`Communicator::enter`] waits until every rank is in the same call, then peers'
//! mappings may be read. Leaving is without a word; the next call tells the peers that this rank has finished reading.

use std::hash::{DefaultHasher, Hasher};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use crate::abort::{Aborter, Bell};
use crate::control::{CONTROL_BYTES, Controls, Counter};
use crate::error::Error;
use crate::id::CommunicatorId;
use crate::link::{Broken, End, Kind, Link, Patience, SLICE};
use crate::memory::{HostMemory, PeerMemory};
use crate::rendezvous::Rendezvous;

/// The largest world: a rank holds a socket to each of the others.
const MOST_RANKS: u32 = 512;

/// How long a wait spins before it sleeps: longer would take the core from a rank that has work.
const SPIN: Duration = Duration::from_micros(20);

/// What a full collective is, so that ranks which disagree find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// Making a buffer.
    Allocate = 1,
    /// Meeting.
    Barrier = 2,
    /// Ranges from their owners to all.
    AllGather = 3,
    /// Slots from their owners to all.
    ExchangeSlots = 4,
    /// One range from one rank to all.
    Broadcast = 5,
}

/// A call, with a digest of the arguments that must be equal on all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call(u64);

impl Call {
    /// A call of this kind; the digest's lower 56 bits count.
    pub fn new(kind: CallKind, digest: u64) -> Call {
        Call((kind as u64) << 56 | digest & (u64::MAX >> 8))
    }

    /// In words, for an error.
    fn describe(self) -> String {
        use CallKind::*;
        let kind = [Allocate, Barrier, AllGather, ExchangeSlots, Broadcast]
            .into_iter()
            .find(|kind| *kind as u64 == self.0 >> 56);
        let name = match kind {
            Some(Allocate) => "allocate",
            Some(Barrier) => "barrier",
            Some(AllGather) => "all_gather_v",
            Some(ExchangeSlots) => "exchange_slots",
            Some(Broadcast) => "broadcast",
            None => "an unknown call",
        };
        format!("{name} (arguments {:014x})", self.0 & (u64::MAX >> 8))
    }
}

/// One buffer: this rank's memory, and the peers' by rank (none for this rank itself).
struct Buffer {
    own: HostMemory,
    peers: Vec<Option<PeerMemory>>,
}

/// Tells the peers what is ready to be read; one thread at a time.
#[derive(Clone)]
pub struct Signal {
    controls: Arc<Controls>,
    spent: Arc<OnceLock<Spent>>,
    aborter: Aborter,
}

impl Signal {
    /// Says that `count` things in all are ready. It never waits, and never goes back.
    pub fn published(&self, count: u64) {
        self.controls.signal(Counter::Published, count);
    }

    /// Whether anybody can still be told.
    ///
    /// # Errors
    /// As [`Communicator::usable`].
    pub fn usable(&self) -> Result<(), Error> {
        usable(&self.aborter, &self.spent)
    }
}

/// The first error of a communicator.
struct Spent {
    /// In words.
    reason: String,
    /// The peer that was lost.
    lost: Option<u32>,
}

/// An error, once somebody has aborted or a call has failed.
fn usable(aborter: &Aborter, spent: &OnceLock<Spent>) -> Result<(), Error> {
    aborter.check()?;
    match spent.get() {
        Some(Spent { reason, .. }) => Err(Error::Aborted {
            reason: format!("an earlier call failed: {reason}"),
        }),
        None => Ok(()),
    }
}

/// One rank's place among ranks that share a machine. Dropping it closes and unmaps all that it has made.
pub struct Communicator {
    rank: u32,
    size: u32,
    controls: Arc<Controls>,
    /// By rank; none for this rank itself.
    links: Vec<Option<Link>>,
    buffers: Vec<Buffer>,
    entered: u64,
    aborter: Aborter,
    spent: Arc<OnceLock<Spent>>,
}

impl Communicator {
    /// Meets the other ranks that hold the same id; `deadline` is counted from now.
    ///
    /// # Errors
    /// A place outside the world; ranks that do not come in time or are lost meanwhile; a peer that cannot prove the
    /// secret or expects another world; abort.
    pub fn connect(
        id: &CommunicatorId,
        rank: u32,
        size: u32,
        deadline: Duration,
        aborter: &Aborter,
    ) -> Result<Communicator, Error> {
        if rank >= size || size > MOST_RANKS {
            return Err(Error::BadWorld {
                rank,
                size,
                most: MOST_RANKS,
            });
        }
        aborter.check()?;
        let (own, descriptor) = HostMemory::shared("control", CONTROL_BYTES)?;
        let started = Instant::now();
        let rendezvous = Rendezvous {
            id,
            rank,
            size,
            control: descriptor.as_fd(),
            started,
            deadline,
            aborter,
        };
        let (mut links, mut pages) = (Vec::new(), Vec::new());
        for peer in rendezvous.meet()? {
            let (link, page) = peer.map(|peer| (peer.link, peer.control)).unzip();
            links.push(link);
            pages.push(page);
        }
        let controls = Arc::new(Controls::new(rank, own, pages));
        let bell: Weak<Controls> = Arc::downgrade(&controls);
        aborter.add_bell(bell as Weak<dyn Bell>);
        Ok(Communicator {
            rank,
            size,
            controls,
            links,
            buffers: Vec::new(),
            entered: 0,
            aborter: aborter.clone(),
            spent: Arc::default(),
        })
    }

    /// This rank.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// The number of ranks.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The aborter that was given to [`Communicator::connect`].
    pub fn aborter(&self) -> &Aborter {
        &self.aborter
    }

    /// Makes a buffer on every rank and maps the peers'. Returns its number, the same on every rank. A full collective.
    ///
    /// # Errors
    /// No memory; a rank that makes another call or another buffer; a rank that is gone; abort.
    pub fn allocate(&mut self, name: &str, bytes: usize) -> Result<usize, Error> {
        let mut hasher = DefaultHasher::new();
        hasher.write(name.as_bytes());
        hasher.write_usize(bytes);
        self.enter(Call::new(CallKind::Allocate, hasher.finish()))?;
        let made = self.make_buffer(name, bytes);
        let buffer = self.keep_first_error(made)?;
        self.buffers.push(buffer);
        Ok(self.buffers.len() - 1)
    }

    fn make_buffer(&mut self, name: &str, bytes: usize) -> Result<Buffer, Error> {
        let (own, descriptor) = HostMemory::shared(name, bytes)?;
        let aborter = self.aborter.clone();
        let patience = Patience {
            until: None,
            aborter: &aborter,
        };
        // One small frame to each: socket buffers take them all, so nobody waits for a reader here.
        for rank in self.controls.peers() {
            let sent = self.link(rank).map_or(Ok(()), |link| {
                link.send(Kind::Buffer, &[], Some(descriptor.as_fd()), patience)
            });
            sent.map_err(|broken| self.broken(rank, broken))?;
        }
        let mut peers: Vec<Option<PeerMemory>> = (0..self.size).map(|_| None).collect();
        for rank in self.controls.peers() {
            let Some(link) = self.link(rank) else { continue };
            let pid = link.pid;
            let frame = link.receive(patience).map_err(|broken| self.broken(rank, broken))?;
            let lost = frame.lost();
            match (frame.kind, frame.descriptor) {
                (Kind::Buffer, Some(descriptor)) => {
                    peers[rank as usize] = Some(PeerMemory::map(descriptor.as_fd(), bytes, rank)?);
                }
                (Kind::Goodbye, _) => return Err(self.left(rank, pid, lost)),
                (_, _) => {
                    return Err(Error::Refused {
                        rank: Some(rank),
                        why: "it did not send its buffer".into(),
                    });
                }
            }
        }
        Ok(Buffer { own, peers })
    }

    fn link(&self, rank: u32) -> Option<&Link> {
        self.links.get(rank as usize)?.as_ref()
    }

    /// This rank's memory of a buffer.
    pub fn own(&self, buffer: usize) -> Option<&HostMemory> {
        self.buffers.get(buffer).map(|buffer| &buffer.own)
    }

    /// This rank's memory of a buffer, to write.
    pub fn own_mut(&mut self, buffer: usize) -> Option<&mut HostMemory> {
        self.buffers.get_mut(buffer).map(|buffer| &mut buffer.own)
    }

    /// A peer's memory of a buffer; none for this rank itself.
    pub fn peer(&self, buffer: usize, rank: u32) -> Option<&PeerMemory> {
        self.buffers.get(buffer)?.peers.get(rank as usize)?.as_ref()
    }

    /// This rank's memory of a buffer to write, and all peers' to read.
    pub fn own_mut_and_peers(&mut self, buffer: usize) -> Option<(&mut HostMemory, &[Option<PeerMemory>])> {
        self.buffers
            .get_mut(buffer)
            .map(|buffer| (&mut buffer.own, buffer.peers.as_slice()))
    }

    /// Waits until every rank has entered this call. Then every rank has finished all calls before it, and what it wrote
    /// before entering is visible here.
    ///
    /// # Errors
    /// A rank that is in another call; a rank that is gone; abort.
    pub fn enter(&mut self, call: Call) -> Result<(), Error> {
        self.usable()?;
        self.entered += 1;
        self.controls.note_call(self.entered, call.0);
        self.controls.signal(Counter::Entered, self.entered);
        let met = self
            .wait(Counter::Entered, self.entered)
            .and_then(|()| self.compare(call));
        self.keep_first_error(met)
    }

    fn compare(&self, ours: Call) -> Result<(), Error> {
        for rank in self.controls.peers() {
            let theirs = self.controls.call_of(rank, self.entered).map_or(ours, Call);
            if theirs != ours {
                return Err(Error::Mismatch {
                    rank,
                    theirs: theirs.describe(),
                    ours: ours.describe(),
                });
            }
        }
        Ok(())
    }

    /// What tells the peers, from any thread, how many things of this rank are ready to be read.
    pub fn signal(&self) -> Signal {
        Signal {
            controls: Arc::clone(&self.controls),
            spent: Arc::clone(&self.spent),
            aborter: self.aborter.clone(),
        }
    }

    /// Waits until every rank has published `count` times.
    ///
    /// # Errors
    /// A rank that is gone; abort.
    pub fn wait_published(&mut self, count: u64) -> Result<(), Error> {
        self.usable()?;
        let met = self.wait(Counter::Published, count);
        self.keep_first_error(met)
    }

    /// Whether calls can still be made.
    ///
    /// # Errors
    /// [`Error::Aborted`], with the reason: somebody aborted, or an earlier call failed.
    pub fn usable(&self) -> Result<(), Error> {
        usable(&self.aborter, &self.spent)
    }

    fn keep_first_error<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result {
            let lost = match error {
                Error::PeerLost { rank, .. } => Some(*rank),
                _ => None,
            };
            self.spent.get_or_init(|| Spent {
                reason: error.to_string(),
                lost,
            });
        }
        result
    }

    /// Waits for the counters of all peers.
    fn wait(&mut self, counter: Counter, value: u64) -> Result<(), Error> {
        for rank in self.controls.peers() {
            if !self.spin(rank, counter, value)? {
                while !self.controls.reached(rank, counter, value) {
                    self.controls.sleep(rank, counter, value, SLICE)?;
                    self.aborter.check()?;
                    if !self.controls.reached(rank, counter, value) {
                        self.find_lost(counter, value)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the peer came while this rank spun.
    fn spin(&self, rank: u32, counter: Counter, value: u64) -> Result<bool, Error> {
        let started = Instant::now();
        loop {
            for _ in 0..32 {
                if self.controls.reached(rank, counter, value) {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            if started.elapsed() >= SPIN {
                return Ok(false);
            }
            self.aborter.check()?;
        }
    }

    /// An error when a peer is gone that has not reached `value`. (One that has may leave: it has given all it had to.)
    fn find_lost(&mut self, counter: Counter, value: u64) -> Result<(), Error> {
        let mut left = None;
        for rank in self.controls.peers() {
            let Some(link) = self.links[rank as usize].as_mut() else {
                continue;
            };
            let Some(end) = link.end()? else { continue };
            // Looked at after the hang-up was seen, so this is the peer's last word.
            if self.controls.reached(rank, counter, value) {
                continue;
            }
            let pid = link.pid;
            match end {
                End::Silent => return Err(Error::PeerLost { rank, pid }),
                End::Goodbye { lost } => left = Some((rank, pid, lost)),
            }
        }
        left.map_or(Ok(()), |(rank, pid, lost)| Err(self.left(rank, pid, lost)))
    }

    /// The error for a peer that closed its end: the root of the matter, where the peer named it.
    fn left(&self, rank: u32, pid: u32, lost: Option<u32>) -> Error {
        match lost.and_then(|lost| Some((lost, self.link(lost)?.pid))) {
            Some((rank, pid)) => Error::PeerLost { rank, pid },
            None => Error::PeerLeft { rank, pid },
        }
    }

    /// The error for a link that failed outside a wait for counters.
    fn broken(&mut self, rank: u32, broken: Broken) -> Error {
        if let Broken::Error(error) = broken {
            return error;
        }
        let Some(link) = self.links[rank as usize].as_mut() else {
            return Error::PeerLost { rank, pid: 0 };
        };
        let pid = link.pid;
        match link.end() {
            Ok(Some(End::Goodbye { lost })) => self.left(rank, pid, lost),
            Ok(_) => Error::PeerLost { rank, pid },
            Err(error) => error,
        }
    }
}

impl Drop for Communicator {
    /// Says goodbye, so that a peer that still waits for this rank can tell an end from a death.
    fn drop(&mut self) {
        let lost = self.spent.get().and_then(|spent| spent.lost);
        for link in self.links.iter().flatten() {
            link.say_goodbye(lost);
        }
    }
}

//! The communicator of one rank: buffers that peers can read, calls that wait for every rank, publishes, transfers.
//!
//! What a collective is made of: [`Communicator::enter`] waits until every rank is in the same call, then peers'
//! mappings may be read. Leaving is without a word; the next call tells the peers that this rank has finished reading. What
//! ranks of other hosts have passes as [`Transfer`]s, with the call or (for reductions) on its own.

mod waits;

use std::cell::Cell;
use std::hash::{DefaultHasher, Hasher};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use crate::abort::{Aborter, Bell};
use crate::call::{Call, CallKind};
use crate::control::{CONTROL_BYTES, Controls, Counter};
use crate::error::Error;
use crate::exchange::{self, Buffers, Into, Operation, Stopped, Transfer, Waiting};
use crate::goodbye::{Blame, farewell};
use crate::id::{CommunicatorId, Listener, Root, listen};
use crate::link::{Kind, Link, Patience};
use crate::memory::{HostMemory, PeerMemory};
use crate::peer::PeerView;
use crate::rendezvous::{GRACE, Peer, Rendezvous};
use crate::tcp::TcpLink;

/// The largest world: a rank holds a socket to each of the others.
const MOST_RANKS: u32 = 512;

/// How long a wait spins before it sleeps: longer would take the core from a rank that has work.
const SPIN: Duration = Duration::from_micros(20);

/// One buffer: this rank's memory, and the peers' by rank (none for this rank itself).
struct Buffer {
    own: HostMemory,
    peers: Vec<Option<PeerView>>,
}

impl Buffers for Vec<Buffer> {
    fn own(&self, buffer: usize) -> &HostMemory {
        &self[buffer].own
    }

    fn destination(&mut self, buffer: usize, peer: u32, into: Into) -> &mut HostMemory {
        let buffer = &mut self[buffer];
        match (into, &mut buffer.peers[peer as usize]) {
            (Into::Mirror, Some(PeerView::Mirror(mirror))) => mirror,
            _ => &mut buffer.own,
        }
    }
}

/// How a rank joins a communicator.
#[derive(Default)]
pub struct Options<'a> {
    /// What rank 0 listens at, where the id was made by [`Root::open`]: rank 0 alone brings it.
    pub root: Option<Root>,
    /// The address at which other hosts reach this one; needed where the id was made by [`Root::open`].
    pub advertise: Option<IpAddr>,
    /// Where this rank listens, in place of a free port at `advertise`; rank 0 has it in its root.
    pub listener: Option<Listener>,
    /// Whether TCP is used also between ranks of one host: for tests and measurements.
    pub only_tcp: bool,
    /// How long a call waits for a peer that does nothing; for ever if not given.
    pub stall: Option<Duration>,
    /// Ends the wait here and every wait of the communicator.
    pub aborter: Option<&'a Aborter>,
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
    /// The peer that is responsible.
    blame: Option<Blame>,
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

/// One rank's place among the others. Dropping it closes and unmaps all that it has made.
pub struct Communicator {
    rank: u32,
    size: u32,
    controls: Arc<Controls>,
    /// By rank; none for this rank itself and for ranks elsewhere.
    links: Vec<Option<Link>>,
    /// By rank; none for this rank itself and for ranks that share its memory.
    remotes: Vec<Option<TcpLink>>,
    buffers: Vec<Buffer>,
    entered: u64,
    /// Operations with ranks elsewhere.
    operations: u64,
    stall: Option<Duration>,
    aborter: Aborter,
    spent: Arc<OnceLock<Spent>>,
    /// Whom a peer that left has blamed.
    heard: Cell<Option<Blame>>,
}

impl Communicator {
    /// Meets the other ranks that hold the same id, all on this host; `deadline` is counted from now.
    ///
    /// # Errors
    /// As [`Communicator::join`].
    pub fn connect(
        id: &CommunicatorId,
        rank: u32,
        size: u32,
        deadline: Duration,
        aborter: &Aborter,
    ) -> Result<Communicator, Error> {
        let options = Options {
            aborter: Some(aborter),
            ..Options::default()
        };
        Communicator::join(id, rank, size, deadline, options)
    }

    /// Meets the other ranks that hold the same id; `deadline` is counted from now. Returns when every rank has met every
    /// other one.
    ///
    /// # Errors
    /// A place outside the world; ranks that do not come in time or are lost meanwhile; a peer that cannot prove the
    /// secret or expects another world; an address that is not this host's; abort.
    pub fn join(
        id: &CommunicatorId,
        rank: u32,
        size: u32,
        deadline: Duration,
        options: Options<'_>,
    ) -> Result<Communicator, Error> {
        if rank >= size || size > MOST_RANKS {
            return Err(Error::BadWorld {
                rank,
                size,
                most: MOST_RANKS,
            });
        }
        let aborter = options.aborter.cloned().unwrap_or_default();
        aborter.check()?;
        let started = Instant::now();
        let (own, descriptor) = HostMemory::shared("control", CONTROL_BYTES)?;
        let listener = match (id.root, options.root, options.listener, options.advertise) {
            (None, ..) => None,
            (Some(address), Some(root), ..) if rank == 0 => Some((root.listener, address)),
            (Some(_), _, Some(listener), _) if rank > 0 => Some((listener.socket, listener.address)),
            (Some(_), _, None, Some(advertise)) if rank > 0 => Some(listen(advertise)?),
            (Some(_), ..) => {
                return Err(Error::BadId {
                    why: "it is for several hosts, and this rank has no address to be reached at".into(),
                });
            }
        };
        let rendezvous = Rendezvous {
            id,
            rank,
            size,
            control: descriptor.as_fd(),
            listener: listener
                .as_ref()
                .map(|(listener, address)| (listener.as_fd(), *address)),
            only_tcp: options.only_tcp,
            started,
            deadline,
            aborter: &aborter,
            heard: Cell::new(None),
        };
        let (mut links, mut pages, mut remotes) = (Vec::new(), Vec::new(), Vec::new());
        for peer in rendezvous.meet()? {
            let (link, page, remote) = match peer {
                Some(Peer::Local(link, page)) => (Some(link), Some(page), None),
                Some(Peer::Remote(link)) => (None, None, Some(*link)),
                None => (None, None, None),
            };
            links.push(link);
            pages.push(page);
            remotes.push(remote);
        }
        let controls = Arc::new(Controls::new(rank, own, pages));
        let bell: Weak<Controls> = Arc::downgrade(&controls);
        aborter.add_bell(bell as Weak<dyn Bell>);
        let mut communicator = Communicator {
            rank,
            size,
            controls,
            links,
            remotes,
            buffers: Vec::new(),
            entered: 0,
            operations: 0,
            // Others may still be meeting.
            stall: Some(deadline.saturating_sub(started.elapsed()) + GRACE.min(deadline / 4)),
            aborter,
            spent: Arc::default(),
            heard: Cell::new(None),
        };
        let all_met = communicator.enter(Call::new(CallKind::Join, 0));
        communicator.stall = options.stall;
        match all_met {
            Ok(()) => Ok(communicator),
            Err(Error::Stalled { rank: missing, .. }) => Err(Error::Deadline {
                rank,
                missing: vec![missing],
                waited_ms: started.elapsed().as_millis() as u64,
                refused: None,
            }),
            Err(error) => Err(error),
        }
    }

    /// This rank.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// The number of ranks.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Whether payload passes between this rank and a peer over TCP; else they share memory.
    pub fn is_remote(&self, rank: u32) -> bool {
        self.remotes.get(rank as usize).is_some_and(Option::is_some)
    }

    /// The aborter that was given to [`Communicator::join`].
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
        let mut peers: Vec<Option<PeerView>> = Vec::new();
        for remote in &self.remotes {
            let mirror = remote.as_ref().map(|_| HostMemory::sparse(bytes).map(PeerView::Mirror));
            peers.push(mirror.transpose()?);
        }
        let aborter = self.aborter.clone();
        let started = Instant::now();
        let patience = Patience {
            until: self.stall.map(|stall| started + stall),
            aborter: &aborter,
        };
        // One small frame to each: socket buffers take them all, so nobody waits for a reader here.
        for rank in self.controls.peers() {
            let sent = self.link(rank).map_or(Ok(()), |link| {
                link.send(Kind::Buffer, &[], Some(descriptor.as_fd()), patience)
            });
            sent.map_err(|broken| self.broken(rank, broken, started))?;
        }
        for rank in self.controls.peers() {
            let Some(link) = self.link(rank) else { continue };
            let pid = link.pid;
            let frame = link
                .receive(patience)
                .map_err(|broken| self.broken(rank, broken, started))?;
            let blame = frame.blame();
            match (frame.kind, frame.descriptor) {
                (Kind::Buffer, Some(descriptor)) => {
                    let memory = PeerMemory::map(descriptor.as_fd(), bytes, rank)?;
                    peers[rank as usize] = Some(PeerView::Mapped(memory));
                }
                (Kind::Goodbye, _) => return Err(self.left(rank, pid, blame)),
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
    pub fn peer(&self, buffer: usize, rank: u32) -> Option<&PeerView> {
        self.buffers.get(buffer)?.peers.get(rank as usize)?.as_ref()
    }

    /// This rank's memory of a buffer to write, and all peers' to read.
    pub fn own_mut_and_peers(&mut self, buffer: usize) -> Option<(&mut HostMemory, &[Option<PeerView>])> {
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
        self.enter_with(call, &[], &[])
    }

    /// As [`Communicator::enter`], and does transfers with ranks elsewhere: what a rank sends is read after it has entered.
    ///
    /// # Errors
    /// As [`Communicator::enter`].
    pub fn enter_with(&mut self, call: Call, sends: &[Transfer], receives: &[Transfer]) -> Result<(), Error> {
        self.usable()?;
        self.entered += 1;
        self.controls.note_call(self.entered, call.0);
        self.controls.signal(Counter::Entered, self.entered);
        let met = self
            .transfer(call, true, sends, receives)
            .and_then(|()| self.wait(Counter::Entered, self.entered, call))
            .and_then(|()| self.compare(call));
        self.keep_first_error(met)
    }

    /// Does transfers with ranks elsewhere, each of which does its own part of the same call. It waits for nobody else.
    ///
    /// # Errors
    /// A rank that is in another call; a rank that is gone; abort.
    pub fn exchange(&mut self, call: Call, sends: &[Transfer], receives: &[Transfer]) -> Result<(), Error> {
        self.usable()?;
        let done = self.transfer(call, false, sends, receives);
        self.keep_first_error(done)
    }

    fn transfer(&mut self, call: Call, full: bool, sends: &[Transfer], receives: &[Transfer]) -> Result<(), Error> {
        if self.remotes.iter().all(Option::is_none) {
            return Ok(());
        }
        self.operations += 1;
        let operation = Operation {
            number: self.operations,
            call: call.0,
            full,
            rank: self.rank,
        };
        let aborter = self.aborter.clone();
        let started = Instant::now();
        let waiting = Waiting {
            spin: SPIN,
            patience: Patience {
                until: self.stall.map(|stall| started + stall),
                aborter: &aborter,
            },
            grace: self.stall.unwrap_or_default() / 4,
        };
        let (links, buffers) = (&mut self.remotes, &mut self.buffers);
        exchange::run(operation, links, (sends, receives), buffers, waiting).map_err(|stopped| match stopped {
            Stopped::Error(error) => error,
            Stopped::Peer(rank, ended) => self.ended(rank, ended, call, started),
        })
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
        let met = self.wait(Counter::Published, count, Call::new(CallKind::Reduce, 0));
        self.keep_first_error(met)
    }

    /// Whether calls can still be made.
    ///
    /// # Errors
    /// [`Error::Aborted`], with the reason: somebody aborted, or an earlier call failed.
    pub fn usable(&self) -> Result<(), Error> {
        usable(&self.aborter, &self.spent)
    }

    /// Notes the first error, and tells the peers at once that this rank is out of it: its owner may keep it for long.
    fn keep_first_error<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result
            && self.spent.get().is_none()
        {
            let blame = self.heard.get().or_else(|| Blame::of(error, self.rank));
            self.spent.get_or_init(|| Spent {
                reason: error.to_string(),
                blame,
            });
            self.leave();
        }
        result
    }

    /// Says goodbye, so that a peer that still waits for this rank can tell an end from a death, and whose fault it is.
    fn leave(&mut self) {
        let blame = self.spent.get().and_then(|spent| spent.blame);
        for link in self.links.iter().flatten() {
            link.say_goodbye(blame);
        }
        farewell(self.remotes.iter_mut().flatten(), blame);
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // After an error they have been told already.
        if self.spent.get().is_none() {
            self.leave();
        }
    }
}

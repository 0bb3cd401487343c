//! How ranks meet.
//!
//! Where the id names an address of rank 0, every rank first tells rank 0 where it is (a [`Card`]), and gets all cards. Then
//! each rank connects to all lower ranks (`visits`), and hears those of the higher ranks that connect (`reception`): at an
//! abstract unix socket, named by the id's nonce, to those in its own place, who exchange the descriptors of their control
//! pages; over TCP to the others. An id without an address is for ranks that all share one place, and needs no cards. A rank that gives up says goodbye to those
//! whom it has met, and whom it misses: a meeting that one rank has left is over for all.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use crate::abort::Aborter;
use crate::error::Error;
use crate::goodbye::{Blame, Fault, farewell};
use crate::handshake::{Failure, Introduction, Purpose};
use crate::id::CommunicatorId;
use crate::link::{Broken, End, Link, Patience, SLICE, poll_for};
use crate::memory::PeerMemory;
use crate::place::Card;
use crate::reception::{Guest, Reception};
use crate::tcp::TcpLink;
use crate::visits::{Host, RETRY, Visits, Way, seqpacket};

/// How much longer than the deadline a rank waits, at most, for those that wait for others themselves: their deadline comes
/// first, and they then say who it is that does not come.
pub(crate) const GRACE: Duration = Duration::from_millis(500);

/// How long a rank that gives up takes in those who are just coming, to tell them why.
const LAST_CALL: Duration = Duration::from_millis(50);

/// A peer that has proved itself.
pub(crate) enum Peer {
    /// It shares this rank's memory: the socket, and the peer's control page.
    Local(Link, PeerMemory),
    /// It is reached over TCP.
    Remote(Box<TcpLink>),
}

/// One rank on its way to meet the others.
pub(crate) struct Rendezvous<'a> {
    pub(crate) id: &'a CommunicatorId,
    pub(crate) rank: u32,
    pub(crate) size: u32,
    /// This rank's control page, for the peers.
    pub(crate) control: BorrowedFd<'a>,
    /// Where this rank listens for ranks of other hosts, and the address that leads there.
    pub(crate) listener: Option<(BorrowedFd<'a>, std::net::SocketAddr)>,
    /// Whether TCP is used also between ranks in one place.
    pub(crate) only_tcp: bool,
    pub(crate) started: Instant,
    pub(crate) deadline: Duration,
    pub(crate) aborter: &'a Aborter,
    /// What a peer that left has said.
    pub(crate) heard: Cell<Option<Blame>>,
}

impl Rendezvous<'_> {
    /// Meets every other rank. By rank; none for this rank itself.
    pub(crate) fn meet(&self) -> Result<Vec<Option<Peer>>, Error> {
        let mut peers: Vec<Option<Peer>> = (0..self.size).map(|_| None).collect();
        let local = self.listen()?;
        let cards = match self.listener {
            Some((listener, address)) => Some(self.cards(Card::of(self.rank, address)?, listener)?),
            None => None,
        };
        let mut visits = Visits::new(self.introduction(), self.control, self.ways(cards.as_deref())?);
        let remote = self.listener.map(|(listener, _)| listener);
        let doors = std::iter::once(local.as_fd()).chain(remote).collect();
        let mut reception = Reception::new(self.introduction(), self.control, doors, cards.as_deref());
        let met = self.meet_all(&mut peers, &mut visits, &mut reception);
        let Err(error) = met else { return Ok(peers) };
        let error = self.seen_from_here(error, &peers);
        let blame = self.blame(&error);
        self.last_call(|patience| {
            let goes_on = peers.iter().flatten().count() + 1 < self.size as usize;
            goes_on && self.turn(&mut peers, &mut visits, &mut reception, patience).is_ok()
        });
        let mut elsewhere = reception.say_goodbye(blame);
        elsewhere.extend(visits.say_goodbye(blame));
        for peer in peers.iter_mut().flatten() {
            match peer {
                Peer::Local(link, _) => link.say_goodbye(blame),
                Peer::Remote(link) => elsewhere.push(link),
            }
        }
        farewell(elsewhere.into_iter(), blame);
        Err(error)
    }

    /// Where a peer accuses this rank of not coming: whom this rank misses itself.
    fn seen_from_here(&self, error: Error, peers: &[Option<Peer>]) -> Error {
        let misses = |rank: u32| rank != self.rank && peers[rank as usize].is_none();
        match error {
            // This rank did not come on because somebody else did not come to it.
            Error::Accused {
                by,
                fault: Fault::Silent,
            } if (0..self.size).any(|rank| rank != by && misses(rank)) => {
                self.heard.set(None);
                self.late(&|rank| rank != by && misses(rank), None)
            }
            error => error,
        }
    }

    /// Takes in for a moment those who are just coming, so that they hear why it is all in vain. `turn` says whether there
    /// is more to do.
    pub(crate) fn last_call(&self, mut turn: impl FnMut(Patience<'_>) -> bool) {
        // An abort ends waiting for others, and not telling them.
        let aborter = Aborter::new();
        let patience = Patience {
            until: Some(Instant::now() + LAST_CALL),
            aborter: &aborter,
        };
        while patience.slice().is_ok() && turn(patience) {}
    }

    /// Whom this rank holds responsible for an error: who was named to it, else what it has seen itself.
    pub(crate) fn blame(&self, error: &Error) -> Option<Blame> {
        self.heard.get().or_else(|| Blame::of(error, self.rank))
    }

    fn meet_all(
        &self,
        peers: &mut [Option<Peer>],
        visits: &mut Visits<'_>,
        reception: &mut Reception<'_>,
    ) -> Result<(), Error> {
        while (0..self.size).any(|rank| rank != self.rank && peers[rank as usize].is_none()) {
            match self.patience().slice() {
                Ok(_) => self.turn(peers, visits, reception, self.patience())?,
                Err(Broken::Error(error)) => return Err(error),
                Err(_) => {
                    let refused = reception.refused.take().or(visits.refused.take());
                    return Err(self.late(&|rank| peers[rank as usize].is_none(), refused));
                }
            }
            self.look_for_lost(peers)?;
        }
        Ok(())
    }

    /// Waits for something to come, for a slice, and takes it.
    fn turn(
        &self,
        peers: &mut [Option<Peer>],
        visits: &mut Visits<'_>,
        reception: &mut Reception<'_>,
        patience: Patience<'_>,
    ) -> Result<(), Error> {
        let mut polled = Vec::new();
        reception.watch(&mut polled);
        visits.watch(&mut polled);
        poll_for(&mut polled, if visits.is_away() { RETRY } else { SLICE })?;
        let expects = |rank: u32, purpose: u8| {
            let may_come = self.rank < rank && rank < self.size && peers[rank as usize].is_none();
            [Purpose::Local, Purpose::Remote]
                .into_iter()
                .find(|known| may_come && *known as u8 == purpose)
        };
        let guest = reception.next(expects, patience);
        match guest.map_err(|failure| self.failed(failure))? {
            Some(Guest::Local(rank, link, page)) => peers[rank as usize] = Some(Peer::Local(link, page)),
            Some(Guest::Remote(rank, link)) => peers[rank as usize] = Some(Peer::Remote(link)),
            Some(Guest::Card(..)) | None => {}
        }
        let gone_on = visits.go_on(patience, |rank, host| {
            peers[rank as usize] = Some(match host {
                Host::Local(link, page) => Peer::Local(link, page),
                Host::Remote(link) => Peer::Remote(link),
            });
        });
        gone_on.map_err(|failure| self.failed(failure))
    }

    /// How each lower rank is reached.
    fn ways(&self, cards: Option<&[Card]>) -> Result<Vec<Way>, Error> {
        let way = |rank: u32| match cards {
            Some(cards) if self.only_tcp || cards[self.rank as usize].place != cards[rank as usize].place => {
                let Card { address, pid, host, .. } = &cards[rank as usize];
                Ok(Way::Remote(*address, *pid, host.clone()))
            }
            _ => self.address(rank).map(Way::Local),
        };
        (0..self.rank).map(way).collect()
    }

    pub(crate) fn introduction(&self) -> Introduction<'_> {
        Introduction {
            id: self.id,
            rank: self.rank,
            size: self.size,
        }
    }

    pub(crate) fn patience(&self) -> Patience<'_> {
        Patience {
            until: Some(self.started + self.deadline),
            aborter: self.aborter,
        }
    }

    /// The error for a connection to a known peer that failed while ranks met.
    pub(crate) fn with_peer(&self, rank: u32, link: &TcpLink, broken: Broken) -> Error {
        match broken {
            Broken::Closed => connection_lost(rank, link),
            Broken::Late => self.late(&|other| other == rank, None),
            Broken::Left(blame) => self.left(rank, link.pid, blame),
            Broken::Error(Error::Refused { why, .. }) => Error::Refused { rank: Some(rank), why },
            Broken::Error(error) => error,
        }
    }

    /// The error for a connection whose failure ends the meeting.
    pub(crate) fn failed(&self, failure: Failure) -> Error {
        match failure {
            Failure::Left(rank, pid, blame) => self.left(rank, pid, blame),
            Failure::Meeting(error) => error,
            Failure::Connection(why) => Error::Refused { rank: None, why },
            Failure::NotYet => self.late(&|_| true, None),
        }
    }

    /// The error for a peer that left the meeting.
    fn left(&self, rank: u32, pid: u32, blame: Option<Blame>) -> Error {
        let Some(blame) = blame else {
            return Error::PeerLeft { rank, pid };
        };
        self.heard.set(Some(blame));
        blame.heard_by(self.rank, 0)
    }

    /// A peer that had come and is gone ends the meeting: an ordinary failed generation.
    fn look_for_lost(&self, peers: &mut [Option<Peer>]) -> Result<(), Error> {
        for (rank, peer) in (0u32..).zip(peers) {
            let error = match peer {
                Some(Peer::Local(link, _)) => link.end()?.map(|end| match end {
                    End::Silent => Error::PeerLost { rank, pid: link.pid },
                    End::Goodbye { blame } => self.left(rank, link.pid, blame),
                }),
                Some(Peer::Remote(link)) if link.is_closed()? => {
                    let broken = link.last_word();
                    Some(self.with_peer(rank, link, broken))
                }
                Some(Peer::Remote(_)) | None => None,
            };
            if let Some(error) = error {
                return Err(error);
            }
        }
        Ok(())
    }

    /// The error at the deadline; `missing`: who of the others has not come.
    pub(crate) fn late(&self, missing: &dyn Fn(u32) -> bool, refused: Option<String>) -> Error {
        Error::Deadline {
            rank: self.rank,
            missing: (0..self.size)
                .filter(|rank| *rank != self.rank && missing(*rank))
                .collect(),
            waited_ms: self.started.elapsed().as_millis() as u64,
            refused,
        }
    }

    /// The name at which `rank` listens. Knowing one rank's name does not give another's: it is a hash of the nonce.
    fn address(&self, rank: u32) -> Result<SocketAddrUnix, Error> {
        let mut hasher = blake3::Hasher::new_derive_key("lockstep nccl-host 1 socket name");
        hasher.update(&self.id.nonce).update(&rank.to_le_bytes());
        let name = format!("lockstep-host-{}", &hasher.finalize().to_hex()[..32]);
        SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(|source| Error::system("socket name", source))
    }

    fn listen(&self) -> Result<OwnedFd, Error> {
        let socket = seqpacket()?;
        rustix::net::bind(&socket, &self.address(self.rank)?).map_err(|source| match source {
            Errno::ADDRINUSE => Error::Refused {
                rank: Some(self.rank),
                why: "another process already listens as this rank of the same communicator".into(),
            },
            source => Error::system("bind", source),
        })?;
        rustix::net::listen(&socket, self.size as i32).map_err(|source| Error::system("listen", source))?;
        Ok(socket)
    }
}

fn connection_lost(rank: u32, link: &TcpLink) -> Error {
    Error::ConnectionLost {
        rank,
        pid: link.pid,
        host: link.host.clone(),
    }
}

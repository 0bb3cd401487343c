//! How ranks meet.
//!
//! Where the id names an address of rank 0, every rank first tells rank 0 where it is (a [`Card`]), and gets all cards. Then
//! each rank connects to all lower ranks: at an abstract unix socket, named by the id's nonce, to those in its own place, who
//! exchange the descriptors of their control pages; over TCP to the others. An id without an address is for ranks that all
//! share one place, and needs no cards. Until a connection has proved itself (see `handshake`) it costs its listener at
//! most [`HANDSHAKE`], and cannot end the listener's wait.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::abort::Aborter;
use crate::control::CONTROL_BYTES;
use crate::error::Error;
use crate::handshake::{Failure, Introduction, Purpose, refused, refused_by};
use crate::id::CommunicatorId;
use crate::link::{Broken, Frame, Kind, Link, Patience, poll_for};
use crate::memory::PeerMemory;
use crate::place::Card;
use crate::tcp::{Stream, TcpLink, TcpSocket};

/// The longest that one connection may keep a listener from the next.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// Between two tries to connect to a rank that does not listen yet.
const RETRY: Duration = Duration::from_millis(2);

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
}

impl Rendezvous<'_> {
    /// Meets every other rank. By rank; none for this rank itself.
    pub(crate) fn meet(&self) -> Result<Vec<Option<Peer>>, Error> {
        let local = self.listen()?;
        let mut peers: Vec<Option<Peer>> = (0..self.size).map(|_| None).collect();
        let cards = match self.listener {
            Some((listener, address)) => Some(self.cards(Card::of(self.rank, address)?, listener)?),
            None => None,
        };
        for rank in 0..self.rank {
            let peer = self.reach(rank, cards.as_deref(), &mut peers)?;
            peers[rank as usize] = Some(peer);
        }
        let mut refused = None;
        while peers
            .iter()
            .enumerate()
            .any(|(rank, peer)| rank > self.rank as usize && peer.is_none())
        {
            let missing = |rank: u32| peers[rank as usize].is_none();
            let taken = match self.next(&local, &missing) {
                Ok(Some(Incoming::Local(link))) => self.take_local(link, &peers).map(Some),
                Ok(Some(Incoming::Remote(socket))) => self.take_remote(socket, &peers, cards.as_deref()).map(Some),
                Ok(None) => Ok(None),
                Err(failure) => Err(failure),
            };
            match taken {
                Ok(Some((rank, peer))) => peers[rank as usize] = Some(peer),
                Ok(None) => lost(&mut peers)?,
                Err(Failure::Connection(why)) => refused = Some(why),
                Err(Failure::Meeting(Error::Deadline { .. })) => {
                    return Err(self.late(&missing, refused));
                }
                Err(Failure::Meeting(error)) => return Err(error),
            }
        }
        Ok(peers)
    }

    fn introduction(&self) -> Introduction<'_> {
        Introduction {
            id: self.id,
            rank: self.rank,
            size: self.size,
        }
    }

    fn patience(&self) -> Patience<'_> {
        Patience {
            until: Some(self.started + self.deadline),
            aborter: self.aborter,
        }
    }

    /// Patience with a connection that has not proved itself.
    fn short_patience(&self) -> Patience<'_> {
        Patience {
            until: Some((self.started + self.deadline).min(Instant::now() + HANDSHAKE)),
            aborter: self.aborter,
        }
    }

    /// Exchanges cards through rank 0. By rank.
    fn cards(&self, own: Card, listener: BorrowedFd<'_>) -> Result<Vec<Card>, Error> {
        if self.rank > 0 {
            return self.ask_for_cards(&own);
        }
        let mut cards: Vec<Option<(Card, Option<TcpLink>)>> = (0..self.size).map(|_| None).collect();
        cards[0] = Some((own, None));
        let mut refused = None;
        while cards.iter().any(Option::is_none) {
            let missing = |rank: u32| cards[rank as usize].is_none();
            let taken = match self.accept(&[listener], &missing) {
                Ok(Some(socket)) => self.take_card(socket, &missing).map(Some),
                Ok(None) => Ok(None),
                Err(failure) => Err(failure),
            };
            match taken {
                Ok(Some((card, link))) => {
                    let place = card.rank as usize;
                    cards[place] = Some((card, Some(link)));
                }
                Ok(None) => {}
                Err(Failure::Connection(why)) => refused = Some(why),
                Err(Failure::Meeting(Error::Deadline { .. })) => return Err(self.late(&missing, refused)),
                Err(Failure::Meeting(error)) => return Err(error),
            }
            for (card, link) in cards.iter().flatten() {
                if let Some(link) = link
                    && link.is_closed()?
                {
                    return Err(connection_lost(card.rank, link));
                }
            }
        }
        let (cards, links): (Vec<Card>, Vec<Option<TcpLink>>) = cards.into_iter().flatten().unzip();
        for (rank, link) in (0u32..).zip(links) {
            let Some(mut link) = link else { continue };
            for card in &cards {
                link.send(Stream::Card, &card.to_bytes(), self.patience())
                    .map_err(|broken| self.with_peer(rank, &link, broken))?;
            }
        }
        Ok(cards)
    }

    /// Rank 0's part for one other rank.
    fn take_card(&self, socket: OwnedFd, missing: &impl Fn(u32) -> bool) -> Result<(Card, TcpLink), Failure> {
        let socket = tcp(socket)?;
        let expects = |rank, purpose| {
            (rank < self.size && missing(rank) && purpose == Purpose::Card as u8).then_some(Purpose::Card)
        };
        let patience = self.short_patience();
        let (rank, parties) = self.introduction().answer(&socket, expects, patience)?;
        let mut link = socket.into_link(self.introduction().keys(&parties), 0, String::new());
        let card = Card::from_bytes(&link.receive(Stream::Card, patience)?)
            .filter(|card| card.rank == rank)
            .ok_or_else(|| Failure::Connection(format!("rank {rank} sent a card that is not its own")))?;
        link.pid = card.pid;
        link.host.clone_from(&card.host);
        Ok((card, link))
    }

    /// Every other rank's part.
    fn ask_for_cards(&self, own: &Card) -> Result<Vec<Card>, Error> {
        let Some(root) = self.id.root else {
            return Err(Error::BadId {
                why: "it names no address of rank 0, and this rank was told to use TCP".into(),
            });
        };
        let mut link = self.reach_over_tcp(0, root, Purpose::Card, None, &mut [])?;
        let patience = self.patience();
        link.send(Stream::Card, &own.to_bytes(), patience)
            .map_err(|broken| self.with_peer(0, &link, broken))?;
        let mut cards = Vec::new();
        for rank in 0..self.size {
            let bytes = link
                .receive(Stream::Card, patience)
                .map_err(|broken| self.with_peer(0, &link, broken))?;
            cards.push(
                Card::from_bytes(&bytes)
                    .filter(|card| card.rank == rank)
                    .ok_or(Error::Refused {
                        rank: Some(0),
                        why: "it sent a list of ranks that is none".into(),
                    })?,
            );
        }
        Ok(cards)
    }

    /// The error for a connection to a known peer that failed while ranks met.
    fn with_peer(&self, rank: u32, link: &TcpLink, broken: Broken) -> Error {
        match broken {
            Broken::Closed => connection_lost(rank, link),
            Broken::Late => self.late(&|other| other == rank || other > self.rank, None),
            Broken::Error(Error::Refused { why, .. }) => Error::Refused { rank: Some(rank), why },
            Broken::Error(error) => error,
        }
    }

    /// The error at the deadline; `missing`: who of the others has not come.
    fn late(&self, missing: &dyn Fn(u32) -> bool, refused: Option<String>) -> Error {
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

    fn socket(&self) -> Result<OwnedFd, Error> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|source| Error::system("socket", source))
    }

    fn listen(&self) -> Result<OwnedFd, Error> {
        let socket = self.socket()?;
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

    /// Connects to a lower rank, as soon as it listens.
    fn reach(&self, rank: u32, cards: Option<&[Card]>, peers: &mut [Option<Peer>]) -> Result<Peer, Error> {
        let Some(cards) = cards else {
            return self.reach_locally(rank, peers);
        };
        let (own, theirs) = (&cards[self.rank as usize], &cards[rank as usize]);
        if self.only_tcp || own.place != theirs.place {
            let link = self.reach_over_tcp(rank, theirs.address, Purpose::Remote, Some(theirs), peers)?;
            return Ok(Peer::Remote(Box::new(link)));
        }
        self.reach_locally(rank, peers)
    }

    fn reach_locally(&self, rank: u32, peers: &mut [Option<Peer>]) -> Result<Peer, Error> {
        let address = self.address(rank)?;
        self.persist(rank, peers, || {
            let socket = self.socket()?;
            match rustix::net::connect(&socket, &address) {
                Ok(()) => self.greet_locally(Link::new(socket)?, rank).map(Some),
                // Nobody listens yet, or too many wait to be heard.
                Err(Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR) => Ok(None),
                Err(source) => Err(Failure::Meeting(Error::system("connect", source))),
            }
        })
    }

    /// The connecting side, and the exchange of control pages.
    fn greet_locally(&self, link: Link, rank: u32) -> Result<Peer, Failure> {
        let patience = self.patience();
        self.introduction().greet(&link, rank, Purpose::Local, patience)?;
        let answer = link.receive(patience)?;
        if answer.kind == Kind::Refusal {
            return Err(refused_by(rank, &answer));
        }
        let control = control_page(answer, rank)?;
        link.send(Kind::Control, &[], Some(self.control), patience)?;
        Ok(Peer::Local(link, control))
    }

    fn reach_over_tcp(
        &self,
        rank: u32,
        address: std::net::SocketAddr,
        purpose: Purpose,
        card: Option<&Card>,
        peers: &mut [Option<Peer>],
    ) -> Result<TcpLink, Error> {
        let (pid, host) = card.map_or((0, address.to_string()), |card| (card.pid, card.host.clone()));
        self.persist(rank, peers, || {
            let Ok(socket) = TcpSocket::connect(address) else {
                return Ok(None);
            };
            // Whether the connection comes about shows at the first frame.
            let parties = self.introduction().greet(&socket, rank, purpose, self.patience())?;
            let mut link = socket.into_link(self.introduction().keys(&parties), pid, host.clone());
            if purpose == Purpose::Remote {
                // The other end says that it has taken this rank in, or closes.
                let welcome = link.receive(Stream::Enter, self.patience())?;
                if !welcome.is_empty() {
                    return Err(refused(rank, "it did not take this rank in"));
                }
            }
            Ok(Some(link))
        })
    }

    /// Tries again, until it works, fails for good, or the time is over.
    fn persist<T>(
        &self,
        rank: u32,
        peers: &mut [Option<Peer>],
        mut attempt: impl FnMut() -> Result<Option<T>, Failure>,
    ) -> Result<T, Error> {
        let mut refused = None;
        loop {
            match attempt() {
                Ok(Some(peer)) => return Ok(peer),
                Ok(None) => {}
                Err(Failure::Connection(why)) => refused = Some(why),
                Err(Failure::Meeting(error)) => return Err(error),
            }
            lost(peers)?;
            match self.patience().slice() {
                Ok(slice) => std::thread::sleep(slice.min(RETRY)),
                Err(Broken::Error(error)) => return Err(error),
                Err(_) => return Err(self.late(&|other| other == rank, refused)),
            }
        }
    }

    /// The next connection, from this place or over TCP.
    fn next(&self, local: &OwnedFd, missing: &impl Fn(u32) -> bool) -> Result<Option<Incoming>, Failure> {
        let remote = self.listener.map(|(listener, _)| listener);
        let listeners: Vec<BorrowedFd<'_>> = std::iter::once(local.as_fd()).chain(remote).collect();
        let Some(socket) = self.accept(&listeners, missing)? else {
            return Ok(None);
        };
        let domain = rustix::net::sockopt::socket_domain(&socket)
            .map_err(|source| Failure::Meeting(Error::system("getsockopt(SO_DOMAIN)", source)))?;
        if domain != AddressFamily::UNIX {
            return Ok(Some(Incoming::Remote(socket)));
        }
        let link = Link::new(socket).map_err(|error| match error {
            Error::Refused { why, .. } => Failure::Connection(why),
            error => Failure::Meeting(error),
        })?;
        Ok(Some(Incoming::Local(link)))
    }

    /// The next connection of any of the listeners; none when a slice went by without one.
    fn accept(&self, listeners: &[BorrowedFd<'_>], missing: &impl Fn(u32) -> bool) -> Result<Option<OwnedFd>, Failure> {
        let slice = match self.patience().slice() {
            Ok(slice) => slice,
            Err(Broken::Error(error)) => return Err(Failure::Meeting(error)),
            Err(_) => return Err(Failure::Meeting(self.late(missing, None))),
        };
        let mut polled: Vec<PollFd<'_>> = listeners
            .iter()
            .map(|listener| PollFd::new(listener, PollFlags::IN))
            .collect();
        poll_for(&mut polled, slice)?;
        for listener in listeners {
            match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => return Ok(Some(socket)),
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
                Err(source) => return Err(Failure::Meeting(Error::system("accept", source))),
            }
        }
        Ok(None)
    }

    /// Whether `rank` may come now.
    fn expects(&self, rank: u32, peers: &[Option<Peer>]) -> bool {
        self.rank < rank && rank < self.size && peers[rank as usize].is_none()
    }

    /// Takes one connection of a higher rank in this place.
    fn take_local(&self, link: Link, peers: &[Option<Peer>]) -> Result<(u32, Peer), Failure> {
        let patience = self.short_patience();
        let expects =
            |rank, purpose| (self.expects(rank, peers) && purpose == Purpose::Local as u8).then_some(Purpose::Local);
        let (rank, _) = self.introduction().answer(&link, expects, patience)?;
        link.send(Kind::Control, &[], Some(self.control), patience)?;
        let control = control_page(link.receive(patience)?, rank)?;
        Ok((rank, Peer::Local(link, control)))
    }

    /// Takes one connection of a higher rank elsewhere.
    fn take_remote(
        &self,
        socket: OwnedFd,
        peers: &[Option<Peer>],
        cards: Option<&[Card]>,
    ) -> Result<(u32, Peer), Failure> {
        let socket = tcp(socket)?;
        let patience = self.short_patience();
        let expects =
            |rank, purpose| (self.expects(rank, peers) && purpose == Purpose::Remote as u8).then_some(Purpose::Remote);
        let (rank, parties) = self.introduction().answer(&socket, expects, patience)?;
        let card = cards.and_then(|cards| cards.get(rank as usize));
        let (pid, host) = card.map_or((0, String::new()), |card| (card.pid, card.host.clone()));
        let mut link = socket.into_link(self.introduction().keys(&parties), pid, host);
        link.send(Stream::Enter, &[], patience)?;
        Ok((rank, Peer::Remote(Box::new(link))))
    }
}

/// A connection that has not proved itself.
enum Incoming {
    Local(Link),
    Remote(OwnedFd),
}

/// Takes an accepted TCP socket.
fn tcp(socket: OwnedFd) -> Result<TcpSocket, Failure> {
    TcpSocket::accepted(socket).map_err(|source| Failure::Connection(format!("its socket cannot be used: {source}")))
}

/// Maps the control page that a frame brings.
fn control_page(frame: Frame, rank: u32) -> Result<PeerMemory, Error> {
    match (frame.kind, frame.descriptor) {
        (Kind::Control, Some(descriptor)) => PeerMemory::map(descriptor.as_fd(), CONTROL_BYTES, rank),
        (_, _) => Err(Error::Refused {
            rank: Some(rank),
            why: "it did not send its control page".into(),
        }),
    }
}

fn connection_lost(rank: u32, link: &TcpLink) -> Error {
    Error::ConnectionLost {
        rank,
        pid: link.pid,
        host: link.host.clone(),
    }
}

/// A peer that had come and is gone ends the meeting: an ordinary failed generation.
fn lost(peers: &mut [Option<Peer>]) -> Result<(), Error> {
    for (rank, peer) in (0u32..).zip(peers) {
        let error = match peer {
            Some(Peer::Local(link, _)) => link.end()?.map(|_| Error::PeerLost { rank, pid: link.pid }),
            Some(Peer::Remote(link)) => link.is_closed()?.then(|| connection_lost(rank, link)),
            None => None,
        };
        if let Some(error) = error {
            return Err(error);
        }
    }
    Ok(())
}

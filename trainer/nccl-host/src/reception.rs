//! The listening side of a meeting: many connections at once, each of which has to prove itself.
//!
//! Nobody waits for anybody: a frame is taken when it is there. So a connection that is silent, or stops in the middle,
//! costs a descriptor for [`HANDSHAKE`] and keeps no other one waiting.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags};

use crate::control::CONTROL_BYTES;
use crate::error::Error;
use crate::goodbye::Blame;
use crate::handshake::{Failure, Introduction, Parties, Purpose};
use crate::link::{Broken, Frame, Kind, Link, Patience};
use crate::memory::PeerMemory;
use crate::place::Card;
use crate::socket::TcpSocket;
use crate::tcp::{Stream, TcpLink};

/// How long a connection may take to prove itself.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// How many connections that have proved nothing are kept: the oldest one makes room, and tries again if it is one of ours.
const MOST_CALLERS: usize = 64;

/// Who has proved itself, by rank and what for.
pub(crate) enum Guest {
    /// It shares this rank's memory: the socket, and its control page.
    Local(u32, Link, PeerMemory),
    /// Payload passes over TCP.
    Remote(u32, Box<TcpLink>),
    /// It said where it is, and waits for all cards.
    Card(Card, Box<TcpLink>),
}

/// A connection that has not come so far yet.
struct Caller {
    came: Instant,
    stage: Stage,
}

enum Stage {
    /// Its greeting is awaited.
    Local(Link),
    /// Its greeting is awaited, over TCP.
    Remote(TcpSocket),
    /// It has greeted and was challenged; its proof is awaited.
    LocalProof(Link, Parties),
    /// The same over TCP.
    RemoteProof(TcpSocket, Parties),
    /// It has proved itself; its control page is awaited.
    Control(Link, u32),
    /// It has proved itself; its card is awaited.
    Card(Box<TcpLink>, u32),
}

impl Stage {
    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Stage::Local(link) | Stage::LocalProof(link, _) | Stage::Control(link, _) => link.as_fd(),
            Stage::Remote(socket) | Stage::RemoteProof(socket, _) => socket.as_fd(),
            Stage::Card(link, _) => link.as_fd(),
        }
    }
}

/// How far a connection has come.
enum Advance {
    /// Not further.
    Waits(Stage),
    /// One frame further.
    Goes(Stage),
    Arrived(Guest),
}

/// Those who connect to one rank.
pub(crate) struct Reception<'a> {
    introduction: Introduction<'a>,
    /// This rank's control page, for those who share its memory.
    control: BorrowedFd<'a>,
    listeners: Vec<BorrowedFd<'a>>,
    /// By rank, where they are known.
    cards: Option<&'a [Card]>,
    callers: Vec<Caller>,
    /// The last connection that was turned away, and why.
    pub(crate) refused: Option<String>,
}

impl<'a> Reception<'a> {
    pub(crate) fn new(
        introduction: Introduction<'a>,
        control: BorrowedFd<'a>,
        listeners: Vec<BorrowedFd<'a>>,
        cards: Option<&'a [Card]>,
    ) -> Reception<'a> {
        Reception {
            introduction,
            control,
            listeners,
            cards,
            callers: Vec::new(),
            refused: None,
        }
    }

    /// What to wait for.
    pub(crate) fn watch<'b>(&'b self, polled: &mut Vec<PollFd<'b>>) {
        for listener in &self.listeners {
            polled.push(PollFd::new(listener, PollFlags::IN));
        }
        for caller in &self.callers {
            polled.push(PollFd::from_borrowed_fd(caller.stage.descriptor(), PollFlags::IN));
        }
    }

    /// Takes what has come, up to the first that has proved itself. `expects`: whether a rank may come for a purpose now.
    ///
    /// # Errors
    /// A system call's failure; a peer that has proved itself and leaves, or sends what cannot be used.
    pub(crate) fn next(
        &mut self,
        expects: impl Fn(u32, u8) -> Option<Purpose>,
        patience: Patience<'_>,
    ) -> Result<Option<Guest>, Failure> {
        self.accept()?;
        let mut guest = None;
        let now = Instant::now();
        for mut caller in std::mem::take(&mut self.callers) {
            if guest.is_some() {
                self.callers.push(caller);
                continue;
            }
            match self.advance(caller.stage, &expects, patience) {
                Ok(Advance::Arrived(arrived)) => guest = Some(arrived),
                Ok(Advance::Waits(_)) if now.saturating_duration_since(caller.came) > HANDSHAKE => {
                    self.refused = Some("it was silent during the handshake".into());
                }
                Ok(Advance::Waits(stage) | Advance::Goes(stage)) => {
                    caller.stage = stage;
                    self.callers.push(caller);
                }
                // A socket that does not take a first short frame is not one of ours.
                Err(Failure::NotYet) => self.refused = Some("it did not take an answer".into()),
                Err(Failure::Connection(why)) => self.refused = Some(why),
                Err(failure @ (Failure::Meeting(_) | Failure::Left(..))) => return Err(failure),
            }
        }
        Ok(guest)
    }

    /// Says goodbye to those of its place that have proved themselves and wait for more. Returns those elsewhere, to whom it
    /// is still to be said.
    pub(crate) fn say_goodbye(&mut self, blame: Option<Blame>) -> Vec<&mut TcpLink> {
        let mut elsewhere = Vec::new();
        for caller in &mut self.callers {
            match &mut caller.stage {
                Stage::Control(link, _) => link.say_goodbye(blame),
                Stage::Card(link, _) => elsewhere.push(link.as_mut()),
                _ => {}
            }
        }
        elsewhere
    }

    /// Takes in all who wait at the doors.
    fn accept(&mut self) -> Result<(), Error> {
        for place in 0..self.listeners.len() {
            // At most so many at a time, so that a crowd at the door does not keep those inside waiting.
            for _ in 0..MOST_CALLERS {
                let listener = self.listeners[place];
                match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                    Ok(socket) => self.admit(socket)?,
                    Err(Errno::AGAIN) => break,
                    Err(error) if is_of_one_connection(error) => {}
                    Err(source) => return Err(Error::system("accept", source)),
                }
            }
        }
        Ok(())
    }

    fn admit(&mut self, socket: OwnedFd) -> Result<(), Error> {
        let domain = rustix::net::sockopt::socket_domain(&socket)
            .map_err(|source| Error::system("getsockopt(SO_DOMAIN)", source))?;
        let stage = if domain == AddressFamily::UNIX {
            match Link::new(socket) {
                Ok(link) => Stage::Local(link),
                Err(Error::Refused { why, .. }) => {
                    self.refused = Some(why);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        } else {
            match TcpSocket::accepted(socket) {
                Ok(socket) => Stage::Remote(socket),
                // It may be closed again already.
                Err(source) => {
                    self.refused = Some(format!("its socket cannot be used: {source}"));
                    return Ok(());
                }
            }
        };
        if self.callers.len() >= MOST_CALLERS {
            self.callers.remove(0);
        }
        self.callers.push(Caller {
            came: Instant::now(),
            stage,
        });
        Ok(())
    }

    /// Takes the next frame of one connection, if it is there.
    fn advance(
        &self,
        stage: Stage,
        expects: &impl Fn(u32, u8) -> Option<Purpose>,
        patience: Patience<'_>,
    ) -> Result<Advance, Failure> {
        // What is sent here is short and the first that is sent: the socket takes it at once.
        let at_once = Patience {
            until: Some(Instant::now()),
            ..patience
        };
        let introduction = &self.introduction;
        Ok(match stage {
            Stage::Local(link) => match link.try_receive()? {
                None => Advance::Waits(Stage::Local(link)),
                Some(greeting) => {
                    let parties = introduction.challenge(&link, &greeting, local_only(expects), at_once)?;
                    Advance::Goes(Stage::LocalProof(link, parties))
                }
            },
            Stage::Remote(mut socket) => match socket.try_receive()? {
                None => Advance::Waits(Stage::Remote(socket)),
                Some(greeting) => {
                    let parties = introduction.challenge(&socket, &greeting, remote_only(expects), at_once)?;
                    Advance::Goes(Stage::RemoteProof(socket, parties))
                }
            },
            Stage::LocalProof(link, parties) => match link.try_receive()? {
                None => Advance::Waits(Stage::LocalProof(link, parties)),
                Some(answer) => {
                    introduction.conclude(&link, &answer, &parties, at_once)?;
                    link.send(Kind::Control, &[], Some(self.control), at_once)?;
                    Advance::Goes(Stage::Control(link, parties.connecting))
                }
            },
            Stage::RemoteProof(mut socket, parties) => match socket.try_receive()? {
                None => Advance::Waits(Stage::RemoteProof(socket, parties)),
                Some(answer) => {
                    introduction.conclude(&socket, &answer, &parties, at_once)?;
                    self.go_on(socket, &parties, expects, at_once)?
                }
            },
            Stage::Control(link, rank) => match link.try_receive()? {
                None => Advance::Waits(Stage::Control(link, rank)),
                Some(frame) if frame.kind == Kind::Goodbye => {
                    return Err(Failure::Left(rank, link.pid, frame.blame()));
                }
                Some(frame) => {
                    still_expected(rank, Purpose::Local, expects)?;
                    Advance::Arrived(Guest::Local(rank, link, control_page(frame, rank)?))
                }
            },
            Stage::Card(mut link, rank) => match link
                .try_receive(Stream::Card)
                .map_err(|broken| left(rank, &link, broken))?
            {
                None => Advance::Waits(Stage::Card(link, rank)),
                Some(bytes) => {
                    still_expected(rank, Purpose::Card, expects)?;
                    let card = Card::from_bytes(&bytes)
                        .filter(|card| card.rank == rank)
                        .ok_or_else(|| Failure::Connection(format!("rank {rank} sent a card that is not its own")))?;
                    link.pid = card.pid;
                    link.host.clone_from(&card.host);
                    Advance::Arrived(Guest::Card(card, link))
                }
            },
        })
    }

    /// What follows the proof over TCP.
    fn go_on(
        &self,
        socket: TcpSocket,
        parties: &Parties,
        expects: &impl Fn(u32, u8) -> Option<Purpose>,
        patience: Patience<'_>,
    ) -> Result<Advance, Failure> {
        let rank = parties.connecting;
        let card = self.cards.and_then(|cards| cards.get(rank as usize));
        let (pid, host) = card.map_or((0, String::new()), |card| (card.pid, card.host.clone()));
        let mut link = Box::new(TcpLink::new(socket, self.introduction.keys(parties), pid, host));
        if parties.purpose == Purpose::Card {
            return Ok(Advance::Goes(Stage::Card(link, rank)));
        }
        still_expected(rank, parties.purpose, expects)?;
        link.send(Stream::Enter, &[], patience)?;
        Ok(Advance::Arrived(Guest::Remote(rank, link)))
    }
}

/// Errors of accept that are about the connection and not about the listener.
fn is_of_one_connection(error: Errno) -> bool {
    matches!(
        error,
        Errno::INTR
            | Errno::CONNABORTED
            | Errno::PROTO
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NONET
            | Errno::OPNOTSUPP
    )
}

/// Another connection may have proved to be this rank meanwhile.
fn still_expected(rank: u32, purpose: Purpose, expects: &impl Fn(u32, u8) -> Option<Purpose>) -> Result<(), Failure> {
    expects(rank, purpose as u8)
        .map(|_| ())
        .ok_or_else(|| Failure::Connection(format!("rank {rank} came twice")))
}

/// A socket that passes descriptors serves those who share memory, and nobody else.
fn local_only(expects: &impl Fn(u32, u8) -> Option<Purpose>) -> impl Fn(u32, u8) -> Option<Purpose> {
    move |rank, purpose| expects(rank, purpose).filter(|purpose| *purpose == Purpose::Local)
}

fn remote_only(expects: &impl Fn(u32, u8) -> Option<Purpose>) -> impl Fn(u32, u8) -> Option<Purpose> {
    move |rank, purpose| expects(rank, purpose).filter(|purpose| *purpose != Purpose::Local)
}

/// The failure of a connection that has proved itself.
pub(crate) fn left(rank: u32, link: &TcpLink, broken: Broken) -> Failure {
    match broken {
        Broken::Left(blame) => Failure::Left(rank, link.pid, blame),
        broken => broken.into(),
    }
}

/// Maps the control page that a frame brings.
pub(crate) fn control_page(frame: Frame, rank: u32) -> Result<PeerMemory, Error> {
    match (frame.kind, frame.descriptor) {
        (Kind::Control, Some(descriptor)) => PeerMemory::map(descriptor.as_fd(), CONTROL_BYTES, rank),
        (_, _) => Err(Error::Refused {
            rank: Some(rank),
            why: "it did not send its control page".into(),
        }),
    }
}

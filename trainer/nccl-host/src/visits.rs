//! The connecting side of a meeting: one rank on its way to all lower ones, at once.
//!
//! Nobody waits for anybody: a rank that does not answer keeps this one from no other. So when the time is over, a rank
//! misses exactly those that have not come, and not those that were kept by them.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::Error;
use crate::goodbye::Blame;
use crate::handshake::{Failure, Introduction, Purpose, refused, refused_by};
use crate::link::{Kind, Link, Patience};
use crate::memory::PeerMemory;
use crate::reception::{control_page, left};
use crate::socket::TcpSocket;
use crate::tcp::{Stream, TcpLink};

/// Between two tries to connect to a rank that does not listen yet.
pub(crate) const RETRY: Duration = Duration::from_millis(2);

/// Where a rank is.
pub(crate) enum Way {
    /// In this place, at this name.
    Local(SocketAddrUnix),
    /// Over TCP: its address, and its process and host as it has named them.
    Remote(SocketAddr, u32, String),
}

/// A rank that was reached.
pub(crate) enum Host {
    Local(Link, PeerMemory),
    Remote(Box<TcpLink>),
}

/// How far this rank has come with another one.
enum Stage {
    /// Not connected; it tries again then.
    Away(Instant),
    /// The connection is on its way.
    Connecting(TcpSocket),
    /// It has greeted; the challenge is awaited.
    Local(Link, [u8; 32]),
    /// The same over TCP.
    Remote(TcpSocket, [u8; 32]),
    /// It has proved itself; the control page is awaited.
    Control(Link),
    /// It has proved itself; the word that it was taken in is awaited.
    Welcome(Box<TcpLink>),
    Arrived,
}

struct Visit {
    rank: u32,
    way: Way,
    stage: Stage,
}

/// The ranks that this one connects to.
pub(crate) struct Visits<'a> {
    introduction: Introduction<'a>,
    /// This rank's control page, for those who share its memory.
    control: BorrowedFd<'a>,
    visits: Vec<Visit>,
    /// The last connection that came to nothing, and why.
    pub(crate) refused: Option<String>,
}

impl<'a> Visits<'a> {
    pub(crate) fn new(introduction: Introduction<'a>, control: BorrowedFd<'a>, ways: Vec<Way>) -> Visits<'a> {
        let now = Instant::now();
        Visits {
            introduction,
            control,
            visits: (0..)
                .zip(ways)
                .map(|(rank, way)| Visit {
                    rank,
                    way,
                    stage: Stage::Away(now),
                })
                .collect(),
            refused: None,
        }
    }

    /// What to wait for.
    pub(crate) fn watch<'b>(&'b self, polled: &mut Vec<PollFd<'b>>) {
        polled.extend(self.visits.iter().filter_map(|visit| {
            let (descriptor, events) = match &visit.stage {
                Stage::Away(_) | Stage::Arrived => return None,
                Stage::Connecting(socket) => (socket.as_fd(), PollFlags::OUT),
                Stage::Remote(socket, _) => (socket.as_fd(), PollFlags::IN),
                Stage::Local(link, _) | Stage::Control(link) => (link.as_fd(), PollFlags::IN),
                Stage::Welcome(link) => (link.as_fd(), PollFlags::IN),
            };
            Some(PollFd::from_borrowed_fd(descriptor, events))
        }));
    }

    /// Whether somebody has to be tried again, soon.
    pub(crate) fn is_away(&self) -> bool {
        self.visits.iter().any(|visit| matches!(visit.stage, Stage::Away(_)))
    }

    /// Says goodbye to those of its place that it has proved itself to and waits for. Returns those elsewhere, to whom it is
    /// still to be said.
    pub(crate) fn say_goodbye(&mut self, blame: Option<Blame>) -> Vec<&mut TcpLink> {
        let mut elsewhere = Vec::new();
        for visit in &mut self.visits {
            match &mut visit.stage {
                Stage::Control(link) => link.say_goodbye(blame),
                Stage::Welcome(link) => elsewhere.push(link.as_mut()),
                _ => {}
            }
        }
        elsewhere
    }

    /// Goes as far as it goes without waiting. `reached` takes those who were reached, by rank.
    ///
    /// # Errors
    /// A rank that turns this one away, that this one turns away, or that leaves; a system call's failure.
    pub(crate) fn go_on(&mut self, patience: Patience<'_>, mut reached: impl FnMut(u32, Host)) -> Result<(), Failure> {
        for visit in &mut self.visits {
            loop {
                let stage = std::mem::replace(&mut visit.stage, Stage::Arrived);
                let step = Step {
                    introduction: &self.introduction,
                    control: self.control,
                    rank: visit.rank,
                    way: &visit.way,
                    // What is sent here is short and the first that is sent: the socket takes it at once.
                    patience: Patience {
                        until: Some(Instant::now()),
                        ..patience
                    },
                };
                match step.take(stage) {
                    Ok(Taken::Goes(stage)) => visit.stage = stage,
                    Ok(Taken::Waits(stage)) => {
                        visit.stage = stage;
                        break;
                    }
                    Ok(Taken::Reached(host)) => {
                        reached(visit.rank, host);
                        break;
                    }
                    Err(failure @ (Failure::Connection(_) | Failure::NotYet)) => {
                        if let Failure::Connection(why) = failure {
                            self.refused = Some(why);
                        }
                        visit.stage = Stage::Away(Instant::now() + RETRY);
                        break;
                    }
                    Err(failure @ (Failure::Meeting(_) | Failure::Left(..))) => return Err(failure),
                }
            }
        }
        Ok(())
    }
}

/// What one step came to.
enum Taken {
    Waits(Stage),
    Goes(Stage),
    Reached(Host),
}

/// One step towards one rank.
struct Step<'a> {
    introduction: &'a Introduction<'a>,
    control: BorrowedFd<'a>,
    rank: u32,
    way: &'a Way,
    patience: Patience<'a>,
}

impl Step<'_> {
    fn take(&self, stage: Stage) -> Result<Taken, Failure> {
        Ok(match stage {
            Stage::Arrived => Taken::Waits(Stage::Arrived),
            Stage::Away(until) if Instant::now() < until => Taken::Waits(Stage::Away(until)),
            Stage::Away(_) => self.connect()?,
            Stage::Connecting(socket) => match self.introduction.say_hello(&socket, Purpose::Remote, self.patience) {
                Ok(nonce) => Taken::Goes(Stage::Remote(socket, nonce)),
                Err(Failure::NotYet) => Taken::Waits(Stage::Connecting(socket)),
                Err(failure) => return Err(failure),
            },
            Stage::Local(link, nonce) => match link.try_receive()? {
                None => Taken::Waits(Stage::Local(link, nonce)),
                Some(answer) => {
                    let about = (self.rank, Purpose::Local, nonce);
                    self.introduction.prove(&link, &answer, about, self.patience)?;
                    Taken::Goes(Stage::Control(link))
                }
            },
            Stage::Remote(mut socket, nonce) => match socket.try_receive()? {
                None => Taken::Waits(Stage::Remote(socket, nonce)),
                Some(answer) => {
                    let about = (self.rank, Purpose::Remote, nonce);
                    let parties = self.introduction.prove(&socket, &answer, about, self.patience)?;
                    let (pid, host) = match self.way {
                        Way::Remote(_, pid, host) => (*pid, host.clone()),
                        Way::Local(_) => (0, String::new()),
                    };
                    let keys = self.introduction.keys(&parties);
                    Taken::Goes(Stage::Welcome(Box::new(TcpLink::new(socket, keys, pid, host))))
                }
            },
            Stage::Control(link) => match link.try_receive()? {
                None => Taken::Waits(Stage::Control(link)),
                Some(answer) if answer.kind == Kind::Refusal => return Err(refused_by(self.rank, &answer)),
                Some(answer) if answer.kind == Kind::Goodbye => {
                    return Err(Failure::Left(self.rank, link.pid, answer.blame()));
                }
                Some(answer) => {
                    let control = control_page(answer, self.rank)?;
                    link.send(Kind::Control, &[], Some(self.control), self.patience)?;
                    Taken::Reached(Host::Local(link, control))
                }
            },
            Stage::Welcome(mut link) => match link
                .try_receive(Stream::Enter)
                .map_err(|broken| left(self.rank, &link, broken))?
            {
                None => Taken::Waits(Stage::Welcome(link)),
                Some(welcome) if welcome.is_empty() => Taken::Reached(Host::Remote(link)),
                Some(_) => return Err(refused(self.rank, "it did not take this rank in")),
            },
        })
    }

    fn connect(&self) -> Result<Taken, Failure> {
        let name = match self.way {
            Way::Remote(address, ..) => return Ok(Taken::Goes(Stage::Connecting(connect_over_tcp(*address)?))),
            Way::Local(name) => name,
        };
        let socket = seqpacket()?;
        match rustix::net::connect(&socket, name) {
            Ok(()) => {
                let link = Link::new(socket)?;
                let nonce = self.introduction.say_hello(&link, Purpose::Local, self.patience)?;
                Ok(Taken::Goes(Stage::Local(link, nonce)))
            }
            // Nobody listens yet, or too many wait to be heard.
            Err(Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR) => {
                Ok(Taken::Waits(Stage::Away(Instant::now() + RETRY)))
            }
            Err(source) => Err(Failure::Meeting(Error::system("connect", source))),
        }
    }
}

/// A socket for ranks of one place.
pub(crate) fn seqpacket() -> Result<OwnedFd, Error> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|source| Error::system("socket", source))
}

/// Begins to connect. Where this process has no room for a socket, trying again does not help.
pub(crate) fn connect_over_tcp(address: SocketAddr) -> Result<TcpSocket, Failure> {
    TcpSocket::connect(address).map_err(|source| match source {
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => {
            Failure::Meeting(Error::system("connect", source))
        }
        source => Failure::Connection(format!("{address} cannot be reached: {source}")),
    })
}

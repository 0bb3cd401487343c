//! How ranks meet: every rank listens at an abstract socket whose name follows from the id's nonce, and connects to all
//! lower ranks.
//!
//! Hello (rank, nonce) → Challenge (nonce, proof) → Proof → the two control pages' descriptors. A proof is the keyed
//! BLAKE3 of both ranks, size, generation and both nonces under the id's secret, with a label for its direction, so it
//! can be neither replayed nor reflected. Until a connection has proved itself it costs its listener at most
//! `HANDSHAKE`, and cannot end the listener's wait.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::abort::Aborter;
use crate::control::CONTROL_BYTES;
use crate::error::Error;
use crate::id::{CommunicatorId, random};
use crate::link::{Broken, Frame, Kind, Link, Patience, poll_for};
use crate::memory::PeerMemory;

/// The longest that one connection may keep a listener from the next.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// Between two tries to connect to a rank that does not listen yet.
const RETRY: Duration = Duration::from_millis(2);

/// A peer that has proved itself, with its control page.
pub(crate) struct Peer {
    pub(crate) link: Link,
    pub(crate) control: PeerMemory,
}

/// One rank on its way to meet the others.
pub(crate) struct Rendezvous<'a> {
    pub(crate) id: &'a CommunicatorId,
    pub(crate) rank: u32,
    pub(crate) size: u32,
    /// This rank's control page, for the peers.
    pub(crate) control: BorrowedFd<'a>,
    pub(crate) started: Instant,
    pub(crate) deadline: Duration,
    pub(crate) aborter: &'a Aborter,
}

/// Why a handshake came to nothing.
enum Failure {
    /// Not this connection; the next may do.
    Connection(String),
    /// The whole meeting has failed.
    Meeting(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Meeting(error)
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Failure {
        match broken {
            Broken::Closed => Failure::Connection("it was closed during the handshake".into()),
            Broken::Late => Failure::Connection("it was silent during the handshake".into()),
            Broken::Error(Error::Refused { why, .. }) => Failure::Connection(why),
            Broken::Error(error) => Failure::Meeting(error),
        }
    }
}

impl Rendezvous<'_> {
    /// Meets every other rank. By rank; none for this rank itself.
    pub(crate) fn meet(&self) -> Result<Vec<Option<Peer>>, Error> {
        let listener = self.listen()?;
        let mut peers: Vec<Option<Peer>> = (0..self.size).map(|_| None).collect();
        for rank in 0..self.rank {
            let peer = self.reach(rank, &mut peers)?;
            peers[rank as usize] = Some(peer);
        }
        let mut refused = None;
        while let Some(missing) = self.missing(&peers) {
            match self.accept(&listener, &mut peers) {
                Ok(()) => {}
                Err(Failure::Connection(why)) => refused = Some(why),
                Err(Failure::Meeting(Error::Deadline { .. })) => return Err(self.late(missing, refused)),
                Err(Failure::Meeting(error)) => return Err(error),
            }
        }
        Ok(peers)
    }

    fn patience(&self) -> Patience<'_> {
        Patience {
            until: Some(self.started + self.deadline),
            aborter: self.aborter,
        }
    }

    /// Who of the higher ranks has not come, in words.
    fn missing(&self, peers: &[Option<Peer>]) -> Option<String> {
        let missing: Vec<String> = (self.rank + 1..self.size)
            .filter(|rank| peers[*rank as usize].is_none())
            .map(|rank| rank.to_string())
            .collect();
        match missing.len() {
            0 => None,
            1 => Some(format!("rank {}", missing[0])),
            _ => Some(format!("ranks {}", missing.join(", "))),
        }
    }

    fn late(&self, missing: String, refused: Option<String>) -> Error {
        let waited_ms = self.started.elapsed().as_millis() as u64;
        Error::Deadline {
            rank: self.rank,
            missing,
            waited_ms,
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
    fn reach(&self, rank: u32, peers: &mut [Option<Peer>]) -> Result<Peer, Error> {
        let address = self.address(rank)?;
        let mut refused = None;
        loop {
            let socket = self.socket()?;
            match rustix::net::connect(&socket, &address) {
                Ok(()) => match self.greet(Link::new(socket)?, rank) {
                    Ok(peer) => return Ok(peer),
                    Err(Failure::Connection(why)) => refused = Some(why),
                    Err(Failure::Meeting(error)) => return Err(error),
                },
                // Nobody listens yet, or too many wait to be heard.
                Err(Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR) => {}
                Err(source) => return Err(Error::system("connect", source)),
            }
            lost(peers)?;
            match self.patience().slice() {
                Ok(slice) => std::thread::sleep(slice.min(RETRY)),
                Err(Broken::Error(error)) => return Err(error),
                Err(_) => return Err(self.late(format!("rank {rank}"), refused)),
            }
        }
    }

    /// The connecting side of the handshake.
    fn greet(&self, link: Link, rank: u32) -> Result<Peer, Failure> {
        let refused = |why: &str| {
            Failure::Meeting(Error::Refused {
                rank: Some(rank),
                why: why.into(),
            })
        };
        let patience = self.patience();
        let nonce: [u8; 32] = random()?;
        let mut hello = Vec::new();
        hello.extend_from_slice(&self.rank.to_le_bytes());
        hello.extend_from_slice(&self.size.to_le_bytes());
        hello.extend_from_slice(&self.id.generation.to_le_bytes());
        hello.extend_from_slice(&nonce);
        link.send(Kind::Hello, &hello, None, patience)?;
        let answer = link.receive(patience)?;
        let (theirs, proof) = match (answer.kind, answer.payload.split_first_chunk::<32>()) {
            (Kind::Challenge, Some((theirs, proof))) => (theirs, proof),
            (Kind::Refusal, _) => return Err(refused(&format!("it said: {}", sentence(&answer.payload)))),
            _ => return Err(refused("it answered the greeting with something else than a challenge")),
        };
        let parties = Parties {
            listening: rank,
            connecting: self.rank,
            connecting_nonce: &nonce,
            listening_nonce: theirs,
        };
        if !self.proves(proof, "listening", &parties) {
            // A courtesy to a peer that was configured wrongly; it may be gone already.
            let _ = link.send(Kind::Refusal, b"the proof of the secret was wrong", None, patience);
            return Err(refused(
                "it could not prove that it knows the secret of this generation",
            ));
        }
        link.send(
            Kind::Proof,
            self.proof("connecting", &parties).as_bytes(),
            None,
            patience,
        )?;
        let answer = link.receive(patience)?;
        if answer.kind == Kind::Refusal {
            return Err(refused(&format!("it said: {}", sentence(&answer.payload))));
        }
        let control = control_page(answer, rank)?;
        link.send(Kind::Control, &[], Some(self.control), patience)?;
        Ok(Peer { link, control })
    }

    /// Takes one connection of a higher rank.
    fn accept(&self, listener: &OwnedFd, peers: &mut [Option<Peer>]) -> Result<(), Failure> {
        let socket = loop {
            match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => break socket,
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
                Err(source) => return Err(Failure::Meeting(Error::system("accept", source))),
            }
            lost(peers)?;
            let slice = match self.patience().slice() {
                Ok(slice) => slice,
                Err(Broken::Error(error)) => return Err(Failure::Meeting(error)),
                Err(_) => return Err(Failure::Meeting(self.late(String::new(), None))),
            };
            poll_for(&mut [PollFd::new(listener, PollFlags::IN)], slice)?;
        };
        let link = Link::new(socket).map_err(|error| match error {
            Error::Refused { why, .. } => Failure::Connection(why),
            error => Failure::Meeting(error),
        })?;
        let limit = (self.started + self.deadline).min(Instant::now() + HANDSHAKE);
        let patience = Patience {
            until: Some(limit),
            aborter: self.aborter,
        };
        let refuse = |why: String| {
            // The sentence is a courtesy to a peer; it may be gone already.
            let _ = link.send(Kind::Refusal, why.as_bytes(), None, patience);
            Failure::Connection(why)
        };

        let hello = link.receive(patience)?;
        let Some((rank, size, generation, nonce)) = read_hello(&hello) else {
            return Err(refuse("its greeting was not one of ours".into()));
        };
        if size != self.size {
            return Err(refuse(format!(
                "rank {rank} expects {size} ranks, rank {} {}",
                self.rank, self.size
            )));
        }
        if generation != self.id.generation {
            return Err(refuse(format!(
                "rank {rank} is of generation {generation}, not {}",
                self.id.generation
            )));
        }
        if rank <= self.rank || rank >= size || peers[rank as usize].is_some() {
            return Err(refuse(format!("rank {} does not wait for a rank {rank}", self.rank)));
        }
        let own: [u8; 32] = random()?;
        let parties = Parties {
            listening: self.rank,
            connecting: rank,
            connecting_nonce: &nonce,
            listening_nonce: &own,
        };
        let challenge = [own.as_slice(), self.proof("listening", &parties).as_bytes()].concat();
        link.send(Kind::Challenge, &challenge, None, patience)?;
        let answer = link.receive(patience)?;
        if answer.kind == Kind::Refusal {
            return Err(Failure::Connection(format!(
                "rank {rank} said: {}",
                sentence(&answer.payload)
            )));
        }
        if answer.kind != Kind::Proof || !self.proves(&answer.payload, "connecting", &parties) {
            return Err(refuse(format!(
                "rank {rank} could not prove that it knows the secret of this generation"
            )));
        }
        link.send(Kind::Control, &[], Some(self.control), patience)?;
        let control = control_page(link.receive(patience)?, rank)?;
        peers[rank as usize] = Some(Peer { link, control });
        Ok(())
    }

    fn proof(&self, direction: &str, parties: &Parties<'_>) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.id.secret);
        hasher
            .update(b"lockstep nccl-host 1 proof ")
            .update(direction.as_bytes());
        hasher
            .update(&self.id.nonce)
            .update(&self.id.generation.to_le_bytes())
            .update(&self.size.to_le_bytes());
        hasher
            .update(&parties.listening.to_le_bytes())
            .update(&parties.connecting.to_le_bytes());
        hasher.update(parties.connecting_nonce).update(parties.listening_nonce);
        hasher.finalize()
    }

    /// Compared in constant time.
    fn proves(&self, proof: &[u8], direction: &str, parties: &Parties<'_>) -> bool {
        <[u8; 32]>::try_from(proof).is_ok_and(|proof| self.proof(direction, parties) == proof)
    }
}

/// What a proof is about.
struct Parties<'a> {
    listening: u32,
    connecting: u32,
    connecting_nonce: &'a [u8; 32],
    listening_nonce: &'a [u8; 32],
}

/// Rank, size, generation and nonce of a greeting.
fn read_hello(frame: &Frame) -> Option<(u32, u32, u64, [u8; 32])> {
    let (rank, rest) = frame.payload.split_first_chunk::<4>()?;
    let (size, rest) = rest.split_first_chunk::<4>()?;
    let (generation, nonce) = rest.split_first_chunk::<8>()?;
    let nonce = <[u8; 32]>::try_from(nonce).ok()?;
    let whole = frame.kind == Kind::Hello;
    whole.then(|| {
        (
            u32::from_le_bytes(*rank),
            u32::from_le_bytes(*size),
            u64::from_le_bytes(*generation),
            nonce,
        )
    })
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

/// A peer's sentence, made safe to print.
fn sentence(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .filter(|character| !character.is_control())
        .collect()
}

/// A peer that had come and is gone ends the meeting: an ordinary failed generation.
fn lost(peers: &mut [Option<Peer>]) -> Result<(), Error> {
    for (rank, peer) in (0u32..).zip(peers) {
        let Some(peer) = peer else { continue };
        if peer.link.end()?.is_some() {
            return Err(Error::PeerLost {
                rank,
                pid: peer.link.pid,
            });
        }
    }
    Ok(())
}

//! How two processes prove to each other that they are ranks of one communicator.
//!
//! Hello (rank, size, generation, purpose, nonce) → Challenge (nonce, proof) → Proof. A proof is the keyed BLAKE3 of all of
//! it under the id's secret, with a label for its direction, so it can be neither replayed nor reflected, and a connection of
//! one purpose cannot be taken for one of another. Over TCP the same secret and nonces give a key for each direction.

use crate::error::Error;
use crate::goodbye::Blame;
use crate::id::{CommunicatorId, random};
use crate::link::{Broken, Frame, Kind, Link, Patience};
use crate::socket::TcpSocket;
use crate::tcp::Keys;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Two ranks of one host: descriptors pass over it.
    Local = 1,
    /// A rank tells rank 0 where it is.
    Card = 2,
    /// Two ranks that share no memory: payload passes over it.
    Remote = 3,
}

/// A connection that carries short frames.
pub(crate) trait Channel {
    fn send(&self, kind: Kind, payload: &[u8], patience: Patience<'_>) -> Result<(), Broken>;
    fn receive(&mut self, patience: Patience<'_>) -> Result<Frame, Broken>;
}

impl Channel for Link {
    fn send(&self, kind: Kind, payload: &[u8], patience: Patience<'_>) -> Result<(), Broken> {
        Link::send(self, kind, payload, None, patience)
    }
    fn receive(&mut self, patience: Patience<'_>) -> Result<Frame, Broken> {
        Link::receive(self, patience)
    }
}

impl Channel for TcpSocket {
    fn send(&self, kind: Kind, payload: &[u8], patience: Patience<'_>) -> Result<(), Broken> {
        TcpSocket::send(self, kind, payload, patience)
    }
    fn receive(&mut self, patience: Patience<'_>) -> Result<Frame, Broken> {
        TcpSocket::receive(self, patience)
    }
}

/// Why a handshake came to nothing.
pub(crate) enum Failure {
    /// A peer that has proved itself says goodbye: rank, process, whom it blames.
    Left(u32, u32, Option<Blame>),
    /// It would have to wait.
    NotYet,
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
            Broken::Late => Failure::NotYet,
            Broken::Left(_) => Failure::Connection("it left during the handshake".into()),
            Broken::Error(Error::Refused { why, .. }) => Failure::Connection(why),
            Broken::Error(error) => Failure::Meeting(error),
        }
    }
}

/// One rank, as it introduces itself.
#[derive(Clone, Copy)]
pub(crate) struct Introduction<'a> {
    pub(crate) id: &'a CommunicatorId,
    pub(crate) rank: u32,
    pub(crate) size: u32,
}

/// What a proof is about.
pub(crate) struct Parties {
    pub(crate) purpose: Purpose,
    listening: u32,
    pub(crate) connecting: u32,
    connecting_nonce: [u8; 32],
    listening_nonce: [u8; 32],
}

/// A greeting, read.
struct Hello {
    rank: u32,
    size: u32,
    generation: u64,
    purpose: u8,
    nonce: [u8; 32],
}

impl Introduction<'_> {
    /// The connecting side, from the greeting to the proof.
    pub(crate) fn greet(
        &self,
        channel: &mut impl Channel,
        rank: u32,
        purpose: Purpose,
        patience: Patience<'_>,
    ) -> Result<Parties, Failure> {
        let nonce = self.say_hello(channel, purpose, patience)?;
        let answer = channel.receive(patience)?;
        self.prove(channel, &answer, (rank, purpose, nonce), patience)
    }

    /// The connecting side's greeting. Returns its nonce.
    pub(crate) fn say_hello(
        &self,
        channel: &impl Channel,
        purpose: Purpose,
        patience: Patience<'_>,
    ) -> Result<[u8; 32], Failure> {
        let nonce: [u8; 32] = random()?;
        let mut hello = Vec::new();
        hello.extend_from_slice(&self.rank.to_le_bytes());
        hello.extend_from_slice(&self.size.to_le_bytes());
        hello.extend_from_slice(&self.id.generation.to_le_bytes());
        hello.push(purpose as u8);
        hello.extend_from_slice(&nonce);
        channel.send(Kind::Hello, &hello, patience)?;
        Ok(nonce)
    }

    /// The connecting side's judgement of the answer of `rank` to its greeting, and its own proof.
    pub(crate) fn prove(
        &self,
        channel: &impl Channel,
        answer: &Frame,
        (rank, purpose, nonce): (u32, Purpose, [u8; 32]),
        patience: Patience<'_>,
    ) -> Result<Parties, Failure> {
        let (theirs, proof) = match (answer.kind, answer.payload.split_first_chunk::<32>()) {
            (Kind::Challenge, Some((theirs, proof))) => (theirs, proof),
            (Kind::Refusal, _) => return Err(refused_by(rank, answer)),
            _ => {
                return Err(refused(
                    rank,
                    "it answered the greeting with something else than a challenge",
                ));
            }
        };
        let parties = Parties {
            purpose,
            listening: rank,
            connecting: self.rank,
            connecting_nonce: nonce,
            listening_nonce: *theirs,
        };
        if !self.proves(proof, "listening", &parties) {
            // A courtesy to a peer that was configured wrongly; it may be gone already.
            let _ = channel.send(Kind::Refusal, b"the proof of the secret was wrong", patience);
            return Err(refused(
                rank,
                "it could not prove that it knows the secret of this generation",
            ));
        }
        let proof = self.hash("proof connecting", &parties);
        channel.send(Kind::Proof, proof.as_bytes(), patience)?;
        Ok(parties)
    }

    /// The listening side's answer to a greeting. `expects`: whether a rank may come for a purpose now. It never waits.
    pub(crate) fn challenge(
        &self,
        channel: &impl Channel,
        greeting: &Frame,
        expects: impl Fn(u32, u8) -> Option<Purpose>,
        patience: Patience<'_>,
    ) -> Result<Parties, Failure> {
        let Some(hello) = Hello::read(greeting) else {
            return Err(refuse(channel, "its greeting was not one of ours".into(), patience));
        };
        let rank = hello.rank;
        if hello.size != self.size {
            let why = format!(
                "rank {rank} expects {} ranks, rank {} {}",
                hello.size, self.rank, self.size
            );
            return Err(refuse(channel, why, patience));
        }
        if hello.generation != self.id.generation {
            let why = format!(
                "rank {rank} is of generation {}, not {}",
                hello.generation, self.id.generation
            );
            return Err(refuse(channel, why, patience));
        }
        let Some(purpose) = expects(rank, hello.purpose) else {
            let why = format!("rank {} does not wait for a rank {rank}", self.rank);
            return Err(refuse(channel, why, patience));
        };
        let own: [u8; 32] = random()?;
        let parties = Parties {
            purpose,
            listening: self.rank,
            connecting: rank,
            connecting_nonce: hello.nonce,
            listening_nonce: own,
        };
        let challenge = [
            own.as_slice(),
            self.hash("proof listening", &parties).as_bytes().as_slice(),
        ]
        .concat();
        channel.send(Kind::Challenge, &challenge, patience)?;
        Ok(parties)
    }

    /// The listening side's judgement of the answer to its challenge.
    pub(crate) fn conclude(
        &self,
        channel: &impl Channel,
        answer: &Frame,
        parties: &Parties,
        patience: Patience<'_>,
    ) -> Result<(), Failure> {
        let rank = parties.connecting;
        if answer.kind == Kind::Refusal {
            return Err(Failure::Connection(format!(
                "rank {rank} said: {}",
                sentence(&answer.payload)
            )));
        }
        if answer.kind != Kind::Proof || !self.proves(&answer.payload, "connecting", parties) {
            let why = format!("rank {rank} could not prove that it knows the secret of this generation");
            return Err(refuse(channel, why, patience));
        }
        Ok(())
    }

    /// The keys of a connection whose ends have proved themselves.
    pub(crate) fn keys(&self, parties: &Parties) -> Keys {
        let connecting = *self.hash("key connecting", parties).as_bytes();
        let listening = *self.hash("key listening", parties).as_bytes();
        let (sending, receiving) = if parties.connecting == self.rank {
            (connecting, listening)
        } else {
            (listening, connecting)
        };
        Keys { sending, receiving }
    }

    fn hash(&self, label: &str, parties: &Parties) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.id.secret);
        hasher.update(b"lockstep nccl-host 2 ").update(label.as_bytes());
        hasher
            .update(&[parties.purpose as u8])
            .update(&self.id.nonce)
            .update(&self.id.generation.to_le_bytes())
            .update(&self.size.to_le_bytes());
        hasher
            .update(&parties.listening.to_le_bytes())
            .update(&parties.connecting.to_le_bytes());
        hasher
            .update(&parties.connecting_nonce)
            .update(&parties.listening_nonce);
        hasher.finalize()
    }

    /// Compared in constant time.
    fn proves(&self, proof: &[u8], direction: &str, parties: &Parties) -> bool {
        let expected = self.hash(&format!("proof {direction}"), parties);
        <[u8; 32]>::try_from(proof).is_ok_and(|proof| expected == proof)
    }
}

impl Hello {
    fn read(frame: &Frame) -> Option<Hello> {
        let (rank, rest) = frame.payload.split_first_chunk::<4>()?;
        let (size, rest) = rest.split_first_chunk::<4>()?;
        let (generation, rest) = rest.split_first_chunk::<8>()?;
        let (purpose, nonce) = rest.split_first()?;
        let hello = Hello {
            rank: u32::from_le_bytes(*rank),
            size: u32::from_le_bytes(*size),
            generation: u64::from_le_bytes(*generation),
            purpose: *purpose,
            nonce: nonce.try_into().ok()?,
        };
        (frame.kind == Kind::Hello).then_some(hello)
    }
}

/// Turns a connection away, with a sentence.
fn refuse(channel: &impl Channel, why: String, patience: Patience<'_>) -> Failure {
    // The sentence is a courtesy to a peer; it may be gone already.
    let _ = channel.send(Kind::Refusal, why.as_bytes(), patience);
    Failure::Connection(why)
}

/// The error for a peer that this rank turns away.
pub(crate) fn refused(rank: u32, why: &str) -> Failure {
    Failure::Meeting(Error::Refused {
        rank: Some(rank),
        why: why.into(),
    })
}

/// The error for a peer that has turned this rank away.
pub(crate) fn refused_by(rank: u32, refusal: &Frame) -> Failure {
    refused(rank, &format!("it said: {}", sentence(&refusal.payload)))
}

/// A peer's sentence, made safe to print.
fn sentence(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .filter(|character| !character.is_control())
        .collect()
}

//! An authenticated stream of frames between two ranks that share no memory.
//!
//! A frame is a head (kind, length, which call it belongs to), a payload of at most [`CHUNK`] bytes, and a tag. Head and
//! payload carry keyed BLAKE3 tags under a key of their own for each direction, with the frame's number in the stream
//! among what is hashed: a byte that was changed, left out, repeated or put in by anybody else ends the connection before
//! the call that waits for it returns. Sockets never block; the engine in `exchange` pushes and pulls as far as they go.
//!
//! Payload is sent from where it lies and received to where it belongs. Float32 values whose lower halves are all zero
//! (zeros, values rounded to bfloat16) travel as their upper halves: half the bytes, the same bits.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use crate::error::Error;
use crate::goodbye::Blame;
use crate::link::{Broken, LONGEST, Patience, poll_for};
use crate::socket::{TcpSocket, closed_or, wait};

/// The longest payload of a frame, in bytes: bounds what a wrong length can cost, and is small enough to stay in the second
/// cache between hashing and sending.
pub(crate) const CHUNK: usize = 128 << 10;

const HEAD: usize = 24;
const HEAD_TAG: usize = 8;
const TAG: usize = 16;

/// What a frame of the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// The sender has entered a call.
    Enter = 1,
    /// Payload of a call.
    Data = 2,
    /// The sender closes on its own account; the call's word says whom it blames, or is 0.
    Goodbye = 3,
    /// What a rank says of itself while ranks meet.
    Card = 4,
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Stream,
    /// Whether the payload is the upper halves of float32 values.
    pub(crate) halved: bool,
    /// Bytes of the payload on the wire.
    pub(crate) length: usize,
    /// Which operation of the communicator, from 1.
    pub(crate) number: u64,
    /// What the operation is.
    pub(crate) call: u64,
}

impl Head {
    fn to_bytes(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[0] = self.kind as u8;
        bytes[1] = u8::from(self.halved);
        // A payload is at most CHUNK bytes long.
        bytes[4..8].copy_from_slice(&(self.length as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..].copy_from_slice(&self.call.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; HEAD]) -> Option<Head> {
        use Stream::*;
        let word = |at: usize| bytes[at..].first_chunk::<8>().map(|word| u64::from_le_bytes(*word));
        let length = bytes[4..]
            .first_chunk::<4>()
            .map(|word| u32::from_le_bytes(*word) as usize)?;
        Some(Head {
            kind: [Enter, Data, Goodbye, Card]
                .into_iter()
                .find(|kind| *kind as u8 == bytes[0])?,
            halved: bytes[1] == 1,
            length: Some(length).filter(|length| *length <= CHUNK)?,
            number: word(8)?,
            call: word(16)?,
        })
    }
}

/// One direction of a stream: its key, and how many frames have passed.
struct Direction {
    key: [u8; 32],
    frames: u64,
}

impl Direction {
    fn tag(&self, what: &[u8], bytes: &[u8]) -> blake3::Hash {
        blake3::Hasher::new_keyed(&self.key)
            .update(&self.frames.to_le_bytes())
            .update(what)
            .update(bytes)
            .finalize()
    }

    /// A payload is hashed on its own first: from its beginning, so that many of its chunks are hashed at once.
    fn payload_tag(&self, payload: &[u8]) -> blake3::Hash {
        self.tag(b"payload", blake3::keyed_hash(&self.key, payload).as_bytes())
    }
}

/// The frame that is on its way out.
struct Outgoing {
    direction: Direction,
    head: [u8; HEAD + HEAD_TAG],
    tag: [u8; TAG],
    /// The payload, where it is not sent from where it lies.
    staged: Vec<u8>,
    /// Bytes of the payload on the wire; none when no frame is on its way.
    length: Option<usize>,
    sent: usize,
}

/// The frame that is coming in.
struct Incoming {
    direction: Direction,
    head: [u8; HEAD + HEAD_TAG],
    parsed: Option<Head>,
    tag: [u8; TAG],
    staged: Vec<u8>,
    got: usize,
}

/// What was proved in a handshake: the key of each direction.
pub(crate) struct Keys {
    pub(crate) sending: [u8; 32],
    pub(crate) receiving: [u8; 32],
}

/// One end of an authenticated connection between two ranks.
pub(crate) struct TcpLink {
    socket: OwnedFd,
    /// The process at the other end, as it has named itself.
    pub(crate) pid: u32,
    /// Its host, as it has named itself.
    pub(crate) host: String,
    outgoing: Outgoing,
    incoming: Incoming,
    /// What has come of a frame of the meeting.
    short: Vec<u8>,
}

impl TcpLink {
    /// Goes on with tags, on a connection whose ends have proved themselves.
    pub(crate) fn new(socket: TcpSocket, keys: Keys, pid: u32, host: String) -> TcpLink {
        TcpLink {
            socket: socket.into_inner(),
            pid,
            host,
            outgoing: Outgoing {
                direction: Direction {
                    key: keys.sending,
                    frames: 0,
                },
                head: [0; HEAD + HEAD_TAG],
                tag: [0; TAG],
                staged: Vec::new(),
                length: None,
                sent: 0,
            },
            incoming: Incoming {
                direction: Direction {
                    key: keys.receiving,
                    frames: 0,
                },
                head: [0; HEAD + HEAD_TAG],
                parsed: None,
                tag: [0; TAG],
                staged: Vec::new(),
                got: 0,
            },
            short: Vec::new(),
        }
    }

    /// Whether a frame is on its way out.
    pub(crate) fn is_sending(&self) -> bool {
        self.outgoing.length.is_some()
    }

    /// Begins a frame, when none is on its way. `floats`: the payload is float32 values, which may be halved.
    pub(crate) fn begin(&mut self, kind: Stream, number: u64, call: u64, payload: &[u8], floats: bool) {
        let out = &mut self.outgoing;
        let halved = floats && halve(payload, &mut out.staged);
        let wire: &[u8] = if halved { &out.staged } else { payload };
        let head = Head {
            kind,
            halved,
            length: wire.len(),
            number,
            call,
        }
        .to_bytes();
        out.head[..HEAD].copy_from_slice(&head);
        out.head[HEAD..].copy_from_slice(&out.direction.tag(b"head", &head).as_bytes()[..HEAD_TAG]);
        if !wire.is_empty() {
            out.tag
                .copy_from_slice(&out.direction.payload_tag(wire).as_bytes()[..TAG]);
        }
        out.length = Some(wire.len());
        if !halved {
            out.staged.clear();
        }
        out.sent = 0;
        out.direction.frames += 1;
    }

    /// Sends as much of the frame as the socket takes; `payload` as it was given to [`TcpLink::begin`]. Whether anything
    /// was sent.
    pub(crate) fn push(&mut self, payload: &[u8]) -> Result<bool, Broken> {
        let out = &mut self.outgoing;
        let Some(length) = out.length else { return Ok(false) };
        let wire: &[u8] = if out.staged.is_empty() { payload } else { &out.staged };
        let tag = if length == 0 { &[][..] } else { &out.tag[..] };
        let whole = out.head.len() + length + tag.len();
        let mut any = false;
        while out.sent < whole {
            let mut skip = out.sent;
            let mut rest = [IoSlice::new(&[]); 3];
            for (place, part) in rest.iter_mut().zip([&out.head[..], wire, tag]) {
                let from = skip.min(part.len());
                skip -= from;
                *place = IoSlice::new(&part[from..]);
            }
            match sendmsg(
                &self.socket,
                &rest,
                &mut SendAncillaryBuffer::default(),
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(more) => {
                    out.sent += more;
                    any = true;
                }
                Err(Errno::AGAIN) => return Ok(any),
                Err(Errno::INTR) => {}
                Err(error) => return Err(closed_or("sendmsg", error)),
            }
        }
        out.length = None;
        Ok(any)
    }

    /// The head of the frame that is coming in, once it is there and its tag is right.
    pub(crate) fn head(&mut self) -> Result<Option<Head>, Broken> {
        let incoming = &mut self.incoming;
        while incoming.parsed.is_none() {
            match rustix::io::read(&self.socket, &mut incoming.head[incoming.got..]) {
                Ok(0) => return Err(Broken::Closed),
                Ok(more) => incoming.got += more,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(closed_or("read", error)),
            }
            if incoming.got == incoming.head.len() {
                let Some((head, tag)) = incoming.head.split_first_chunk::<HEAD>() else {
                    return Err(Broken::malformed("it sent no head"));
                };
                if incoming.direction.tag(b"head", head).as_bytes()[..HEAD_TAG] != *tag {
                    return Err(Broken::malformed(
                        "a frame's head was changed on its way, or is not from this generation",
                    ));
                }
                incoming.parsed = Some(
                    Head::from_bytes(head).ok_or_else(|| Broken::malformed("it sent a frame that is none of ours"))?,
                );
                incoming.got = 0;
            }
        }
        Ok(incoming.parsed)
    }

    /// Receives as much of the payload of [`TcpLink::head`]'s frame as is there, into `destination`, which is as long as
    /// the payload is when it is not halved. Whether the frame is whole, and proved to be what was sent.
    pub(crate) fn pull(&mut self, destination: &mut [u8]) -> Result<bool, Broken> {
        let incoming = &mut self.incoming;
        let Some(head) = incoming.parsed else { return Ok(false) };
        if head.length > 0 {
            if head.halved {
                incoming.staged.resize(head.length, 0);
            }
            let place = if head.halved {
                &mut incoming.staged[..]
            } else {
                &mut *destination
            };
            if place.len() != head.length {
                return Err(Broken::malformed(
                    "it sent another number of bytes than this call moves",
                ));
            }
            while incoming.got < head.length + TAG {
                let read = if incoming.got < head.length {
                    let mut parts = [
                        IoSliceMut::new(&mut place[incoming.got..]),
                        IoSliceMut::new(&mut incoming.tag),
                    ];
                    rustix::io::readv(&self.socket, &mut parts)
                } else {
                    rustix::io::read(&self.socket, &mut incoming.tag[incoming.got - head.length..])
                };
                match read {
                    Ok(0) => return Err(Broken::Closed),
                    Ok(more) => incoming.got += more,
                    Err(Errno::AGAIN) => return Ok(false),
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(closed_or("read", error)),
                }
            }
            if incoming.direction.payload_tag(place).as_bytes()[..TAG] != incoming.tag {
                return Err(Broken::malformed("a frame's payload was changed on its way"));
            }
            if head.halved {
                double(&incoming.staged, destination)?;
            }
        }
        incoming.direction.frames += 1;
        incoming.parsed = None;
        incoming.got = 0;
        Ok(true)
    }

    /// Sends one frame and waits until it is gone: for the meeting.
    pub(crate) fn send(&mut self, kind: Stream, payload: &[u8], patience: Patience<'_>) -> Result<(), Broken> {
        self.begin(kind, 0, 0, payload, false);
        while self.is_sending() {
            if !self.push(payload)? && self.is_sending() {
                wait(&self.socket, PollFlags::OUT, patience)?;
            }
        }
        Ok(())
    }

    /// One frame, once it is whole: for the meeting.
    pub(crate) fn try_receive(&mut self, kind: Stream) -> Result<Option<Vec<u8>>, Broken> {
        let Some(head) = self.head()? else { return Ok(None) };
        if head.kind == Stream::Goodbye {
            return Err(Broken::Left(Blame::from_word(head.call)));
        }
        if head.kind != kind || head.halved || head.length > LONGEST {
            return Err(Broken::malformed("it sent a frame that has no place in a meeting"));
        }
        let mut payload = std::mem::take(&mut self.short);
        payload.resize(head.length, 0);
        if self.pull(&mut payload)? {
            return Ok(Some(payload));
        }
        self.short = payload;
        Ok(None)
    }

    /// Waits for one frame: for the meeting.
    pub(crate) fn receive(&mut self, kind: Stream, patience: Patience<'_>) -> Result<Vec<u8>, Broken> {
        loop {
            match self.try_receive(kind)? {
                Some(payload) => return Ok(payload),
                None => wait(&self.socket, PollFlags::IN, patience)?,
            }
        }
    }

    /// Whether the other end is closed, without reading what is still there.
    pub(crate) fn is_closed(&self) -> Result<bool, Error> {
        let mut polled = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        poll_for(&mut polled, Duration::ZERO)?;
        Ok(polled[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR))
    }

    /// Keeps the payload of the frame that is on its way out: it can then be pushed without it.
    pub(crate) fn keep(&mut self, payload: &[u8]) {
        if self.is_sending() && self.outgoing.staged.is_empty() {
            self.outgoing.staged.extend_from_slice(payload);
        }
    }

    /// Begins to tell the other end that this one sends no more, on its own account, and whom it blames.
    pub(crate) fn begin_goodbye(&mut self, blame: Option<Blame>) {
        self.begin(Stream::Goodbye, 0, blame.map_or(0, Blame::to_word), &[], false);
    }

    /// What the other end, which is closed, has said last: [`Broken::Left`], where it said goodbye. What came before that is
    /// dropped.
    pub(crate) fn last_word(&mut self) -> Broken {
        loop {
            match self.head() {
                Ok(Some(head)) if head.kind == Stream::Goodbye => return Broken::Left(Blame::from_word(head.call)),
                Ok(Some(head)) if self.skip(head.length) => {}
                _ => return Broken::Closed,
            }
        }
    }

    /// Drops the payload of the frame whose head has come. Its tag is not looked at: nothing of it is used. Whether all of it
    /// was there.
    fn skip(&mut self, length: usize) -> bool {
        let whole = if length > 0 { length + TAG } else { 0 };
        let mut dropped = [0; 4096];
        while self.incoming.got < whole {
            let most = dropped.len().min(whole - self.incoming.got);
            match rustix::io::read(&self.socket, &mut dropped[..most]) {
                Ok(more) if more > 0 => self.incoming.got += more,
                Err(Errno::INTR) => {}
                _ => return false,
            }
        }
        self.incoming.direction.frames += 1;
        self.incoming.parsed = None;
        self.incoming.got = 0;
        true
    }
}

impl AsFd for TcpLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Puts the upper halves of float32 values into `halves`, when all lower halves are zero; else says no, early.
fn halve(floats: &[u8], halves: &mut Vec<u8>) -> bool {
    let (words, []) = floats.as_chunks::<4>() else {
        return false;
    };
    if words.is_empty() || !words.iter().all(|word| word[0] == 0 && word[1] == 0) {
        return false;
    }
    halves.clear();
    halves.extend(words.iter().flat_map(|word| [word[2], word[3]]));
    true
}

/// The float32 values whose upper halves these are.
fn double(halves: &[u8], floats: &mut [u8]) -> Result<(), Broken> {
    let (words, []) = floats.as_chunks_mut::<4>() else {
        return Err(Broken::malformed("it sent halves of something that is no float32"));
    };
    let (halves, []) = halves.as_chunks::<2>() else {
        return Err(Broken::malformed("it sent halves of something that is no float32"));
    };
    if words.len() != halves.len() {
        return Err(Broken::malformed(
            "it sent another number of values than this call moves",
        ));
    }
    for (word, half) in words.iter_mut().zip(halves) {
        *word = [0, 0, half[0], half[1]];
    }
    Ok(())
}

//! The engine that moves payload over TCP: all transfers of one operation at once, in both directions, whichever socket is
//! ready.
//!
//! An operation has a number and a word that says what it is, equal on all ranks; every frame carries both. Between two
//! ranks, frames are in the order of their program, so a frame that belongs to another operation is a difference between the
//! ranks, found before its payload is believed. Ranks that have nothing to move do not wait for each other, unless the
//! operation is a full collective: then every rank tells every other one that it has entered.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::error::Error;
use crate::goodbye::{Blame, Fault};
use crate::link::{Broken, Patience, poll_for};
use crate::memory::HostMemory;
use crate::tcp::{CHUNK, Head, Stream, TcpLink};

/// Bytes of a buffer that pass between this rank and another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The other rank.
    pub peer: u32,
    /// The buffer, by its number.
    pub buffer: usize,
    /// Its bytes.
    pub bytes: Range<usize>,
    /// Whether they are float32 values, which may travel as fewer bytes where that loses nothing.
    pub floats: bool,
    /// Where received bytes go: this rank's own memory, or what it keeps of the peer's.
    pub into: Into,
}

/// Where received bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    /// This rank's own memory.
    Own,
    /// The mirror of the peer's memory.
    Mirror,
}

/// Which operation this is.
#[derive(Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) number: u64,
    pub(crate) call: u64,
    /// Whether every rank waits for every other one.
    pub(crate) full: bool,
    /// This rank.
    pub(crate) rank: u32,
}

/// The buffers, as the engine sees them.
pub(crate) trait Buffers {
    /// This rank's own memory of a buffer.
    fn own(&self, buffer: usize) -> &HostMemory;
    /// Where bytes from `peer` go.
    fn destination(&mut self, buffer: usize, peer: u32, into: Into) -> &mut HostMemory;
}

/// Why an exchange ended early: the peer, and what became of its connection.
pub(crate) enum Stopped {
    /// Of this peer.
    Peer(u32, Ended),
    /// Of no peer in particular.
    Error(Error),
}

impl Stopped {
    /// By what became of the connection to `rank`.
    fn by(rank: u32, broken: Broken) -> Stopped {
        Stopped::Peer(
            rank,
            match broken {
                Broken::Closed => Ended::Closed,
                Broken::Late => Ended::Silent,
                Broken::Left(blame) => Ended::Left(blame),
                Broken::Error(Error::Refused { why, .. }) => Ended::Refused(why),
                Broken::Error(error) => return Stopped::Error(error),
            },
        )
    }
}

/// What became of a connection.
pub(crate) enum Ended {
    /// It is closed.
    Closed,
    /// The peer left, and may have blamed somebody.
    Left(Option<Blame>),
    /// The peer is in another operation, which this word describes.
    Elsewhere(u64),
    /// The peer did not go on in time.
    Silent,
    /// What came was not what a peer of ours sends.
    Refused(String),
}

/// What is left to do with one peer.
#[derive(Default)]
struct Task {
    sends: VecDeque<Piece>,
    receives: VecDeque<Piece>,
    /// The piece on its way out; none is a frame without payload.
    sending: Option<Piece>,
    enters: bool,
    awaits_enter: bool,
}

/// A piece of a transfer that fits in a frame.
#[derive(Clone)]
struct Piece {
    buffer: usize,
    bytes: Range<usize>,
    floats: bool,
    into: Into,
}

impl Task {
    /// Whether something of the peer has still to come.
    fn is_waiting(&self) -> bool {
        self.awaits_enter || !self.receives.is_empty()
    }

    fn is_done(&self, link: &TcpLink) -> bool {
        self.sends.is_empty()
            && self.receives.is_empty()
            && !self.enters
            && !self.awaits_enter
            && self.sending.is_none()
            && !link.is_sending()
    }
}

/// How long a wait may be.
#[derive(Clone, Copy)]
pub(crate) struct Waiting<'a> {
    /// How long to look again before sleeping.
    pub(crate) spin: Duration,
    pub(crate) patience: Patience<'a>,
    /// How much longer to wait where several peers do not come: one of them may be waiting for another one, and says so
    /// when its own patience ends.
    pub(crate) grace: Duration,
}

/// Does all transfers of an operation. `links` are by rank.
pub(crate) fn run(
    operation: Operation,
    links: &mut [Option<TcpLink>],
    (sends, receives): (&[Transfer], &[Transfer]),
    buffers: &mut impl Buffers,
    waiting: Waiting<'_>,
) -> Result<(), Stopped> {
    let mut tasks: Vec<Task> = links
        .iter()
        .map(|link| Task {
            enters: operation.full && link.is_some(),
            awaits_enter: operation.full && link.is_some(),
            ..Task::default()
        })
        .collect();
    for transfer in sends {
        cut(transfer, |piece| tasks[transfer.peer as usize].sends.push_back(piece));
    }
    for transfer in receives {
        cut(transfer, |piece| {
            tasks[transfer.peer as usize].receives.push_back(piece)
        });
    }
    let done = move_all(operation, links, &mut tasks, buffers, waiting);
    if done.is_err() {
        // A frame that was begun can then be finished without its buffer, so that a goodbye can follow it.
        for (link, task) in links.iter_mut().zip(&tasks) {
            if let (Some(link), Some(piece)) = (link, &task.sending) {
                link.keep(buffers.own(piece.buffer).bytes(piece.bytes.clone()));
            }
        }
    }
    match done {
        // This rank was silent because it waits for somebody itself.
        Err(Stopped::Peer(peer, Ended::Left(Some(blame))))
            if (blame.accused, blame.fault) == (operation.rank, Fault::Silent) =>
        {
            let mut awaited = (0u32..).zip(&tasks).zip(links).filter(|((rank, task), link)| {
                let is_here = |link: &TcpLink| link.is_closed().is_ok_and(|closed| !closed);
                *rank != peer && task.is_waiting() && link.as_ref().is_some_and(is_here)
            });
            Err(match awaited.next() {
                Some(((rank, _), _)) => Stopped::Peer(rank, Ended::Silent),
                None => Stopped::Peer(peer, Ended::Left(Some(blame))),
            })
        }
        done => done,
    }
}

fn move_all(
    operation: Operation,
    links: &mut [Option<TcpLink>],
    tasks: &mut [Task],
    buffers: &mut impl Buffers,
    waiting: Waiting<'_>,
) -> Result<(), Stopped> {
    let mut moved = Instant::now();
    loop {
        let (mut open, mut any) = (false, false);
        for ((rank, link), task) in (0u32..).zip(links.iter_mut()).zip(tasks.iter_mut()) {
            let Some(link) = link else { continue };
            if task.is_done(link) {
                continue;
            }
            any |= step(operation, rank, link, task, buffers)?;
            open |= !task.is_done(link);
        }
        if !open {
            return Ok(());
        }
        if any {
            moved = Instant::now();
        } else if moved.elapsed() < waiting.spin {
            std::hint::spin_loop();
        } else {
            sleep(links, tasks, waiting)?;
        }
    }
}

fn cut(transfer: &Transfer, mut take: impl FnMut(Piece)) {
    let mut start = transfer.bytes.start;
    while start < transfer.bytes.end {
        let end = transfer.bytes.end.min(start + CHUNK);
        take(Piece {
            buffer: transfer.buffer,
            bytes: start..end,
            floats: transfer.floats,
            into: transfer.into,
        });
        start = end;
    }
}

/// Moves what can be moved to and from one peer without waiting. Whether anything was.
fn step(
    operation: Operation,
    rank: u32,
    link: &mut TcpLink,
    task: &mut Task,
    buffers: &mut impl Buffers,
) -> Result<bool, Stopped> {
    let of_peer = |broken| Stopped::by(rank, broken);
    let mut any = false;
    // Receiving first: what has arrived counts, also where the peer has closed its end meanwhile.
    while task.is_waiting() {
        let Some(head) = link.head().map_err(of_peer)? else {
            break;
        };
        if !take(operation, rank, head, link, task, buffers)? {
            break;
        }
        any = true;
    }
    loop {
        if !link.is_sending() {
            task.sending = None;
            if task.enters {
                link.begin(Stream::Enter, operation.number, operation.call, &[], false);
                task.enters = false;
            } else if let Some(piece) = task.sends.pop_front() {
                let payload = buffers.own(piece.buffer).bytes(piece.bytes.clone());
                link.begin(Stream::Data, operation.number, operation.call, payload, piece.floats);
                task.sending = Some(piece);
            } else {
                return Ok(any);
            }
        }
        let payload = match &task.sending {
            Some(piece) => buffers.own(piece.buffer).bytes(piece.bytes.clone()),
            None => &[],
        };
        any |= match link.push(payload) {
            // The peer may have said why before it closed, and nothing here may be waiting for what it says.
            Err(Broken::Closed) => Err(of_peer(link.last_word())),
            pushed => pushed.map_err(of_peer),
        }?;
        if link.is_sending() {
            return Ok(any);
        }
    }
}

/// Takes one frame, as far as it has come. Whether it is whole.
fn take(
    operation: Operation,
    rank: u32,
    head: Head,
    link: &mut TcpLink,
    task: &mut Task,
    buffers: &mut impl Buffers,
) -> Result<bool, Stopped> {
    let stopped = |ended| Stopped::Peer(rank, ended);
    let of_peer = |broken| Stopped::by(rank, broken);
    if head.kind == Stream::Goodbye {
        return Err(stopped(Ended::Left(Blame::from_word(head.call))));
    }
    if (head.number, head.call) != (operation.number, operation.call) {
        return Err(stopped(Ended::Elsewhere(head.call)));
    }
    match (head.kind, task.awaits_enter, task.receives.front()) {
        (Stream::Enter, true, _) => {
            let whole = link.pull(&mut []).map_err(of_peer)?;
            task.awaits_enter = !whole;
            Ok(whole)
        }
        (Stream::Data, false, Some(piece)) => {
            let place = buffers
                .destination(piece.buffer, rank, piece.into)
                .bytes_mut(piece.bytes.clone());
            let whole = link.pull(place).map_err(of_peer)?;
            if whole {
                task.receives.pop_front();
            }
            Ok(whole)
        }
        _ => Err(stopped(Ended::Refused(
            "it sent something else than this operation moves".into(),
        ))),
    }
}

/// Sleeps until a socket is ready, or a slice is over.
fn sleep(links: &[Option<TcpLink>], tasks: &[Task], mut waits: Waiting<'_>) -> Result<(), Stopped> {
    let mut polled: Vec<PollFd<'_>> = Vec::new();
    let (mut waiting, mut awaited) = (None, 0);
    for ((rank, link), task) in (0u32..).zip(links).zip(tasks) {
        let Some(link) = link.as_ref().filter(|link| !task.is_done(link)) else {
            continue;
        };
        let receives = task.is_waiting();
        let sends = link.is_sending();
        awaited += u32::from(receives);
        // Of several, the one that this rank waits to hear from.
        if waiting.is_none() || receives {
            waiting = Some(rank);
        }
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, receives);
        events.set(PollFlags::OUT, sends);
        polled.push(PollFd::new(link, events));
    }
    if awaited > 1 {
        waits.patience.until = waits.patience.until.map(|until| until + waits.grace);
    }
    let slice = waits.patience.slice().map_err(|broken| match (broken, waiting) {
        (Broken::Late, Some(rank)) => Stopped::Peer(rank, Ended::Silent),
        (Broken::Error(error), _) => Stopped::Error(error),
        // A wait without a peer has nothing to be late for.
        (Broken::Late | Broken::Closed | Broken::Left(_), _) => Stopped::Error(Error::Aborted {
            reason: "nobody is left to wait for".into(),
        }),
    })?;
    poll_for(&mut polled, slice).map_err(Stopped::Error)
}

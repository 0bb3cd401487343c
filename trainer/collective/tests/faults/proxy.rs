//! A proxy before every rank of a world: connections pass through it, and the plan's one is treated badly.
//!
//! It reads who connects and what for in the greeting, which is not secret, and follows the borders of frames: short ones
//! (their length in a byte) in the handshake, then heads of 24 bytes with a tag of 8, payload, a tag of 16.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::libc::linger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::plan::{Part, Target, Trouble};
use crate::rank::LOOPBACK;

const HEAD: usize = 24 + 8;
const TAG: usize = 16;
/// A frame that waits for the next one to overtake it waits so long.
const HOLD: Duration = Duration::from_millis(100);
/// What is read ahead of the receiver.
const AHEAD: usize = 1 << 20;

/// What the proxies of a world share.
pub(crate) struct Mischief {
    target: Target,
    trouble: Trouble,
    taken: AtomicBool,
    fired: OnceLock<Instant>,
    over: AtomicBool,
}

/// The proxy before one rank.
pub(crate) struct Proxy {
    pub(crate) front: SocketAddr,
    mischief: Arc<Mischief>,
    thread: Option<JoinHandle<()>>,
}

impl Mischief {
    pub(crate) fn new(target: Target, trouble: Trouble) -> Arc<Mischief> {
        Arc::new(Mischief {
            target,
            trouble,
            taken: AtomicBool::new(false),
            fired: OnceLock::new(),
            over: AtomicBool::new(false),
        })
    }

    /// When it struck.
    pub(crate) fn fired(&self) -> Option<Instant> {
        self.fired.get().copied()
    }

    fn fire(&self) {
        self.fired.get_or_init(Instant::now);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The trouble for the connection that begins with this greeting to `listening`: towards the listener, and back.
    fn for_connection(&self, greeting: &[u8], listening: u32) -> [Option<Trouble>; 2] {
        let rank = greeting.get(2..6).and_then(|bytes| bytes.first_chunk().copied());
        let (rank, purpose) = (rank.map(u32::from_le_bytes), greeting.get(18).copied());
        let is_target = rank == Some(self.target.connecting)
            && listening == self.target.listening
            && purpose == Some(if self.target.card { 2 } else { 3 });
        if !is_target || self.taken.swap(true, Ordering::Relaxed) {
            return [None; 2];
        }
        match self.target.towards_listener {
            true => [Some(self.trouble), None],
            false => [None, Some(self.trouble)],
        }
    }
}

impl Proxy {
    /// A proxy before `rank`, which listens at `port`.
    pub(crate) fn before(rank: u32, port: u16, mischief: &Arc<Mischief>) -> Proxy {
        let listener = TcpListener::bind((LOOPBACK, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let front = listener.local_addr().unwrap();
        let shared = Arc::clone(mischief);
        let thread = thread::spawn(move || {
            let mut connections = Vec::new();
            while !shared.is_over() {
                wait(&listener);
                let Ok((outer, _)) = listener.accept() else { continue };
                // The rank may be gone.
                let Ok(inner) = TcpStream::connect((LOOPBACK, port)) else {
                    continue;
                };
                let shared = Arc::clone(&shared);
                connections.push(thread::spawn(move || {
                    if let Some(connection) = Connection::open(outer, inner) {
                        connection.carry(&shared, rank);
                    }
                }));
            }
            connections
                .into_iter()
                .for_each(|connection| connection.join().unwrap());
        });
        Proxy {
            front,
            mischief: Arc::clone(mischief),
            thread: Some(thread),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.mischief.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(
            thread::panicking() || matches!(ended, Some(Ok(()))),
            "a proxy has failed"
        );
    }
}

fn wait(socket: &impl AsFd) {
    let _ = poll(
        &mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)],
        PollTimeout::from(10u16),
    );
}

/// What shall become of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Go,
    Close,
    Reset,
    Stall,
}

/// One direction of a connection.
struct Direction {
    trouble: Option<Trouble>,
    /// Bytes that were let through.
    passed: u64,
    /// Came, and is no whole frame yet.
    begun: Vec<u8>,
    /// Frames of the handshake that are still to come.
    short_frames: u64,
    /// Frames that came since: of the handshake, then of the stream.
    number: u64,
    held: Option<(Vec<u8>, Instant)>,
    out: Vec<u8>,
    ended: bool,
    shut: bool,
}

struct Connection {
    /// The connecting rank's, then the listening rank's.
    ends: [TcpStream; 2],
    /// Towards the listener, then back.
    directions: [Direction; 2],
}

impl Connection {
    fn open(outer: TcpStream, inner: TcpStream) -> Option<Connection> {
        for end in [&outer, &inner] {
            end.set_nodelay(true).ok()?;
            end.set_nonblocking(true).ok()?;
        }
        let direction = |short_frames| Direction {
            trouble: None,
            passed: 0,
            begun: Vec::new(),
            short_frames,
            number: 0,
            held: None,
            out: Vec::new(),
            ended: false,
            shut: false,
        };
        Some(Connection {
            ends: [outer, inner],
            directions: [direction(2), direction(1)],
        })
    }

    fn carry(mut self, mischief: &Mischief, listening: u32) {
        let mut greeted = false;
        while !mischief.is_over() && !self.directions.iter().all(|direction| direction.shut) {
            self.wait();
            for from in 0..2 {
                let mut bytes = [0; 1 << 16];
                let direction = &mut self.directions[from];
                if direction.ended || direction.out.len() > AHEAD {
                    continue;
                }
                match (&self.ends[from]).read(&mut bytes) {
                    Ok(0) => direction.ended = true,
                    Ok(more) => direction.begun.extend_from_slice(&bytes[..more]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    // What one end does, the other shall see.
                    Err(_) => return self.reset(),
                }
            }
            if !greeted {
                let greeting = &self.directions[0].begun;
                greeted = greeting
                    .first()
                    .is_some_and(|length| greeting.len() > usize::from(*length));
                if greeted {
                    let [there, back] = mischief.for_connection(greeting, listening);
                    self.directions[0].trouble = there;
                    self.directions[1].trouble = back;
                } else if !self.directions[0].ended {
                    continue;
                }
            }
            for from in 0..2 {
                let verdict = self.directions[from].advance(mischief);
                self.flush(from);
                match verdict {
                    Verdict::Go => {}
                    Verdict::Close => return,
                    Verdict::Reset => return self.reset(),
                    Verdict::Stall => {
                        while !mischief.is_over() {
                            thread::sleep(Duration::from_millis(5));
                        }
                        return;
                    }
                }
            }
        }
    }

    fn wait(&self) {
        let mut polled: Vec<PollFd<'_>> = Vec::new();
        for (from, end) in self.ends.iter().enumerate() {
            let mut events = PollFlags::empty();
            let direction = &self.directions[from];
            events.set(PollFlags::POLLIN, !direction.ended && direction.out.len() <= AHEAD);
            events.set(PollFlags::POLLOUT, !self.directions[1 - from].out.is_empty());
            if !events.is_empty() {
                polled.push(PollFd::new(end.as_fd(), events));
            }
        }
        let _ = poll(&mut polled, PollTimeout::from(10u16));
    }

    /// Passes on what a direction lets through, and its end.
    fn flush(&mut self, from: usize) {
        let (direction, mut end) = (&mut self.directions[from], &self.ends[1 - from]);
        while !direction.out.is_empty() {
            match end.write(&direction.out) {
                Ok(sent) => drop(direction.out.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => direction.out.clear(),
            }
        }
        if direction.ended && !direction.shut && direction.held.is_none() {
            direction.shut = true;
            let _ = end.shutdown(std::net::Shutdown::Write);
        }
    }

    fn reset(self) {
        for end in &self.ends {
            let at_once = linger {
                l_onoff: 1,
                l_linger: 0,
            };
            let _ = setsockopt(end, sockopt::Linger, &at_once);
        }
    }
}

impl Direction {
    /// Lets through what may pass.
    fn advance(&mut self, mischief: &Mischief) -> Verdict {
        if let Some((frame, since)) = self.held.take() {
            if since.elapsed() > HOLD {
                // Nothing follows it before an answer: another frame shall do.
                self.out.extend(frame);
                self.trouble = Some(Trouble::Swap(self.number));
            } else {
                self.held = Some((frame, since));
            }
        }
        match self.trouble {
            None => {
                self.passed += self.begun.len() as u64;
                self.out.append(&mut self.begun);
                Verdict::Go
            }
            Some(Trouble::Close(after)) => self.until(after, Verdict::Close, mischief),
            Some(Trouble::Reset(after)) => self.until(after, Verdict::Reset, mischief),
            Some(Trouble::Stall(after)) => self.until(after, Verdict::Stall, mischief),
            Some(trouble) => self.by_frames(trouble, mischief),
        }
    }

    fn until(&mut self, after: u64, verdict: Verdict, mischief: &Mischief) -> Verdict {
        let pass = (after - self.passed).min(self.begun.len() as u64);
        self.passed += pass;
        self.out.extend(self.begun.drain(..pass as usize));
        if self.passed < after {
            return Verdict::Go;
        }
        mischief.fire();
        verdict
    }

    fn by_frames(&mut self, mut trouble: Trouble, mischief: &Mischief) -> Verdict {
        while let Some((mut frame, is_short)) = self.next_frame() {
            let number = self.number;
            self.number += 1;
            if self.short_frames == 0 && is_short {
                self.number = 0;
            }
            match (trouble, is_short) {
                (Trouble::FlipHandshake(which, place), true) if which == number => {
                    let bit = place as usize % (8 * frame.len());
                    frame[bit / 8] ^= 1 << (bit % 8);
                    mischief.fire();
                }
                (Trouble::Truncate(which), false) if which == number => {
                    self.out.extend_from_slice(&frame[..frame.len() / 2]);
                    mischief.fire();
                    return Verdict::Close;
                }
                (Trouble::Flip(which, part), false) if which <= number && mischief.fired().is_none() => {
                    let payload = HEAD..frame.len().saturating_sub(TAG).max(HEAD);
                    let range = match part {
                        Part::Head => 0..HEAD,
                        Part::Tag => payload.end..frame.len(),
                        Part::Payload => payload,
                    };
                    if !range.is_empty() {
                        let place = range.start + number as usize * 7919 % range.len();
                        frame[place] ^= 1 << (number % 8);
                        mischief.fire();
                    }
                }
                (Trouble::Repeat(which), false) if which == number => {
                    self.out.extend_from_slice(&frame);
                    mischief.fire();
                }
                (Trouble::Swap(which), false) if which == number => {
                    self.held = Some((frame, Instant::now()));
                    continue;
                }
                _ => {}
            }
            self.out.extend(frame);
            if let Some((held, _)) = self.held.take() {
                self.out.extend(held);
                mischief.fire();
                trouble = Trouble::Swap(u64::MAX);
                self.trouble = Some(trouble);
            }
        }
        Verdict::Go
    }

    /// The next whole frame, and whether it is one of the handshake.
    fn next_frame(&mut self) -> Option<(Vec<u8>, bool)> {
        let is_short = self.short_frames > 0;
        let length = if is_short {
            1 + usize::from(*self.begun.first()?)
        } else {
            let payload = u32::from_le_bytes(*self.begun.get(4..8)?.first_chunk()?) as usize;
            HEAD + if payload > 0 { payload + TAG } else { 0 }
        };
        if self.begun.len() < length {
            return None;
        }
        self.short_frames -= u64::from(is_short);
        Some((self.begun.drain(..length).collect(), is_short))
    }
}

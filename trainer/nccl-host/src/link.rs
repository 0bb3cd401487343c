//! The socket between two ranks: small bounded frames, some with a descriptor, and the news of the peer's end.
//!
//! Sockets are of the kind that keeps message borders, so a frame comes whole or not at all. They stay open for the life
//! of the communicator: the kernel closes a dead process's end, and that is how its peers learn of it.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::PeerCredentials;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::abort::Aborter;
use crate::error::Error;
use crate::goodbye::Blame;

/// No frame is longer.
pub(crate) const LONGEST: usize = 128;

/// Room for more than the one descriptor that is expected, so that surplus ones come here and are closed.
const ROOM: usize = 4;

/// How long a wait sleeps before it looks at abort and at its peers again.
pub(crate) const SLICE: Duration = Duration::from_millis(10);

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Connecting side: who it is, and its nonce.
    Hello = 1,
    /// Listening side: its nonce and its proof.
    Challenge = 2,
    /// Connecting side: its proof.
    Proof = 3,
    /// Either side: the connection is not wanted, with a sentence.
    Refusal = 4,
    /// A control page's descriptor.
    Control = 5,
    /// A buffer's descriptor.
    Buffer = 6,
    /// This end closes on its own account; says whom it blames, if anybody.
    Goodbye = 7,
}

impl Kind {
    pub(crate) fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::*;
        [Hello, Challenge, Proof, Refusal, Control, Buffer, Goodbye]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A received frame.
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) payload: Vec<u8>,
    pub(crate) descriptor: Option<OwnedFd>,
}

impl Frame {
    /// Whom a goodbye blames.
    pub(crate) fn blame(&self) -> Option<Blame> {
        let word = self.payload.first_chunk::<8>()?;
        Blame::from_word(u64::from_le_bytes(*word))
    }
}

/// Why there is no frame.
pub(crate) enum Broken {
    /// The other end is closed.
    Closed,
    /// The time is over.
    Late,
    /// The other end said goodbye, and may have blamed somebody.
    Left(Option<Blame>),
    /// Abort, a system call's failure, or a frame that no peer of ours sends.
    Error(Error),
}

impl Broken {
    fn system(call: &'static str) -> impl Fn(Errno) -> Broken {
        move |source| Broken::Error(Error::system(call, source))
    }

    pub(crate) fn malformed(why: &str) -> Broken {
        Broken::Error(Error::Refused {
            rank: None,
            why: why.into(),
        })
    }
}

/// How long a wait may last, and what ends it early.
#[derive(Clone, Copy)]
pub(crate) struct Patience<'a> {
    pub(crate) until: Option<Instant>,
    pub(crate) aborter: &'a Aborter,
}

impl Patience<'_> {
    /// The next slice to sleep.
    pub(crate) fn slice(&self) -> Result<Duration, Broken> {
        self.aborter.check().map_err(Broken::Error)?;
        let Some(until) = self.until else { return Ok(SLICE) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(Broken::Late)
        } else {
            Ok(left.min(SLICE))
        }
    }
}

/// How a peer's end was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Without a word: its process is gone.
    Silent,
    /// With a goodbye, which may blame somebody.
    Goodbye { blame: Option<Blame> },
}

/// One end of a socket between two ranks.
pub(crate) struct Link {
    socket: OwnedFd,
    /// The process at the other end; 0 where it has no number in this process's own view, as between containers.
    pub(crate) pid: u32,
    end: Option<End>,
}

impl Link {
    /// Takes a connected socket, after checking that its other end belongs to the same user.
    pub(crate) fn new(socket: OwnedFd) -> Result<Link, Error> {
        // Not rustix' call: it takes the pid for one that is never 0, which is what it is for a process that has none here, as
        // in another container on the same network.
        let peer = nix::sys::socket::getsockopt(&socket, PeerCredentials)
            .map_err(|errno| Error::system("getsockopt(SO_PEERCRED)", Errno::from_raw_os_error(errno as i32)))?;
        let own = rustix::process::geteuid().as_raw();
        if peer.uid() != own {
            let why = format!("it belongs to user {} and this process to user {own}", peer.uid());
            return Err(Error::Refused { rank: None, why });
        }
        Ok(Link {
            socket,
            pid: peer.pid().unsigned_abs(),
            end: None,
        })
    }

    /// Sends a frame.
    pub(crate) fn send(
        &self,
        kind: Kind,
        payload: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
        patience: Patience<'_>,
    ) -> Result<(), Broken> {
        assert!(payload.len() < LONGEST, "frames are at most {LONGEST} bytes long");
        let kind = [kind as u8];
        let parts = [IoSlice::new(&kind), IoSlice::new(payload)];
        let descriptors = descriptor.as_slice();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        loop {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            match sendmsg(
                &self.socket,
                &parts,
                &mut control,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => self.sleep(PollFlags::OUT, patience.slice()?)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(Broken::Closed),
                Err(source) => return Err(Broken::system("sendmsg")(source)),
            }
        }
    }

    /// Waits for the next frame.
    pub(crate) fn receive(&self, patience: Patience<'_>) -> Result<Frame, Broken> {
        loop {
            match self.try_receive()? {
                Some(frame) => return Ok(frame),
                None => self.sleep(PollFlags::IN, patience.slice()?)?,
            }
        }
    }

    /// The next frame, if it is there.
    pub(crate) fn try_receive(&self) -> Result<Option<Frame>, Broken> {
        let mut bytes = [0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ROOM))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let mut reset = false;
        let received = loop {
            match recvmsg(
                &self.socket,
                &mut parts,
                &mut control,
                RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
            ) {
                Ok(received) => break received,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                // Reported once, before the frames that the peer had sent until then.
                Err(Errno::CONNRESET) if !reset => reset = true,
                Err(Errno::CONNRESET) => return Err(Broken::Closed),
                Err(source) => return Err(Broken::system("recvmsg")(source)),
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                descriptors.extend(more);
            }
        }
        if received.bytes == 0 {
            return Err(Broken::Closed);
        }
        // The kernel leaves out descriptors that this process may not have, and says no more than that.
        if received.flags.contains(ReturnFlags::CTRUNC) && descriptors.len() < ROOM {
            return Err(Broken::system("recvmsg(SCM_RIGHTS)")(Errno::MFILE));
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || descriptors.len() > 1 {
            return Err(Broken::malformed("it sent a frame that is longer than any of ours"));
        }
        let Some(kind) = Kind::from_byte(bytes[0]) else {
            return Err(Broken::malformed("it sent a frame of an unknown kind"));
        };
        Ok(Some(Frame {
            kind,
            payload: bytes[1..received.bytes].to_vec(),
            descriptor: descriptors.pop(),
        }))
    }

    /// Sleeps until the socket is ready for `events`, closed, or `slice` is over.
    fn sleep(&self, events: PollFlags, slice: Duration) -> Result<(), Broken> {
        let mut polled = [PollFd::new(&self.socket, events)];
        poll_for(&mut polled, slice).map_err(Broken::Error)
    }

    /// Whether [`Link::end`] has found it closed.
    pub(crate) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// How the other end was closed, once it is. What it had sent before is read and dropped.
    pub(crate) fn end(&mut self) -> Result<Option<End>, Error> {
        if self.end.is_some() {
            return Ok(self.end);
        }
        let mut polled = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        poll_for(&mut polled, Duration::ZERO)?;
        if !polled[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR)
        {
            return Ok(None);
        }
        let mut end = End::Silent;
        // A closed socket holds finitely many frames, and then says that it is closed.
        while let Ok(Some(frame)) = self.try_receive() {
            if frame.kind == Kind::Goodbye {
                end = End::Goodbye { blame: frame.blame() };
            }
        }
        self.end = Some(end);
        Ok(self.end)
    }

    /// Tells the other end that this one sends no more, on its own account, and whom it blames. What has come from there
    /// can still be read.
    pub(crate) fn say_goodbye(&self, blame: Option<Blame>) {
        let payload = blame.map(|blame| blame.to_word().to_le_bytes());
        let aborter = Aborter::new();
        // Best effort, without waiting: a peer that does not get it sees the closed socket.
        let patience = Patience {
            until: Some(Instant::now()),
            aborter: &aborter,
        };
        let _ = self.send(
            Kind::Goodbye,
            payload.as_ref().map(<[u8; 8]>::as_slice).unwrap_or_default(),
            None,
            patience,
        );
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// poll(2), where an interruption counts as nothing having happened.
pub(crate) fn poll_for(polled: &mut [PollFd<'_>], slice: Duration) -> Result<(), Error> {
    let slice = Timespec {
        tv_sec: slice.as_secs() as i64,
        tv_nsec: i64::from(slice.subsec_nanos()),
    };
    match poll(polled, Some(&slice)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(source) => Err(Error::system("poll", source)),
    }
}

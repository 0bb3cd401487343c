//! A TCP socket before its other end has proved itself: short bounded frames, each its length in a byte, its kind, its
//! payload. Nothing of it is believed but what a handshake proves.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};

use crate::error::Error;
use crate::link::{Broken, Frame, Kind, LONGEST, Patience, poll_for};

/// How long sent bytes may stay unacknowledged before the kernel gives a connection up.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// A connected socket before its other end has proved itself: short frames, without tags.
pub(crate) struct TcpSocket {
    socket: OwnedFd,
    /// What has come of the next frame: its length, and the rest.
    begun: Vec<u8>,
}

impl TcpSocket {
    /// Begins to connect; the handshake waits for the rest.
    pub(crate) fn connect(address: SocketAddr) -> Result<TcpSocket, Errno> {
        let family = if address.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => TcpSocket::accepted(socket),
            Err(error) => Err(error),
        }
    }

    /// Takes a socket that was accepted.
    pub(crate) fn accepted(socket: OwnedFd) -> Result<TcpSocket, Errno> {
        sockopt::set_tcp_nodelay(&socket, true)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, Duration::from_secs(5))?;
        sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(5))?;
        sockopt::set_tcp_keepcnt(&socket, 3)?;
        sockopt::set_tcp_user_timeout(&socket, UNACKNOWLEDGED.as_millis() as u32)?;
        Ok(TcpSocket {
            socket,
            begun: Vec::new(),
        })
    }

    /// Sends a short frame: its length, its kind, its payload.
    pub(crate) fn send(&self, kind: Kind, payload: &[u8], patience: Patience<'_>) -> Result<(), Broken> {
        assert!(payload.len() < LONGEST, "frames are at most {LONGEST} bytes long");
        let mut bytes = vec![payload.len() as u8 + 1, kind as u8];
        bytes.extend_from_slice(payload);
        let mut sent = 0;
        while sent < bytes.len() {
            match rustix::net::send(&self.socket, &bytes[sent..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(more) => sent += more,
                Err(Errno::AGAIN) => wait(&self.socket, PollFlags::OUT, patience)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(closed_or("send", error)),
            }
        }
        Ok(())
    }

    /// The next short frame, once all of it is there. Not a byte of what follows it is read.
    pub(crate) fn try_receive(&mut self) -> Result<Option<Frame>, Broken> {
        loop {
            let whole = 1 + self.begun.first().map_or(0, |length| usize::from(*length));
            if whole == 1 && !self.begun.is_empty() || whole > 1 + LONGEST {
                return Err(Broken::malformed("it sent a frame of a length that none of ours has"));
            }
            if whole > 1 && self.begun.len() == whole {
                let bytes = std::mem::take(&mut self.begun);
                let kind =
                    Kind::from_byte(bytes[1]).ok_or_else(|| Broken::malformed("it sent a frame of an unknown kind"))?;
                return Ok(Some(Frame {
                    kind,
                    payload: bytes[2..].to_vec(),
                    descriptor: None,
                }));
            }
            let mut more = [0; 1 + LONGEST];
            match rustix::io::read(&self.socket, &mut more[..whole - self.begun.len()]) {
                Ok(0) => return Err(Broken::Closed),
                Ok(count) => self.begun.extend_from_slice(&more[..count]),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(closed_or("read", error)),
            }
        }
    }

    /// Waits for the next short frame.
    pub(crate) fn receive(&mut self, patience: Patience<'_>) -> Result<Frame, Broken> {
        loop {
            match self.try_receive()? {
                Some(frame) => return Ok(frame),
                None => wait(&self.socket, PollFlags::IN, patience)?,
            }
        }
    }

    /// The connection itself, once both ends have proved themselves.
    pub(crate) fn into_inner(self) -> OwnedFd {
        self.socket
    }
}

pub(crate) fn wait(socket: &OwnedFd, events: PollFlags, patience: Patience<'_>) -> Result<(), Broken> {
    let mut polled = [PollFd::new(socket, events)];
    poll_for(&mut polled, patience.slice()?).map_err(Broken::Error)
}

/// A connection that the network or the other end has ended is closed; anything else is a failure here.
pub(crate) fn closed_or(call: &'static str, error: Errno) -> Broken {
    match error {
        Errno::PIPE
        | Errno::CONNRESET
        | Errno::CONNREFUSED
        | Errno::CONNABORTED
        | Errno::NOTCONN
        | Errno::TIMEDOUT
        | Errno::HOSTUNREACH
        | Errno::NETUNREACH
        | Errno::NETDOWN => Broken::Closed,
        error => Broken::Error(Error::system(call, error)),
    }
}

impl AsFd for TcpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::abort::Aborter;

    fn pair() -> (TcpSocket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        (TcpSocket::accepted(ours.into()).unwrap(), theirs)
    }

    /// Waits for the next frame, as it is made for a test.
    fn receive(socket: &mut TcpSocket) -> Result<Frame, Broken> {
        let aborter = Aborter::new();
        let until = Some(std::time::Instant::now() + Duration::from_secs(20));
        socket.receive(Patience {
            until,
            aborter: &aborter,
        })
    }

    #[test]
    fn a_frame_comes_whole_and_what_follows_it_is_left_for_others() {
        let (mut ours, mut theirs) = pair();
        theirs.write_all(&[4]).unwrap();
        assert!(ours.try_receive().is_ok_and(|frame| frame.is_none()));
        theirs.write_all(&[Kind::Hello as u8, 7, 8]).unwrap();
        assert!(ours.try_receive().is_ok_and(|frame| frame.is_none()));
        theirs.write_all(&[9, 77, 78]).unwrap();
        let frame = receive(&mut ours).ok().unwrap();
        assert_eq!((frame.kind, frame.payload), (Kind::Hello, vec![7, 8, 9]));
        let mut rest = [0; 2];
        let mut ours = TcpStream::from(ours.into_inner());
        ours.set_nonblocking(false).unwrap();
        ours.read_exact(&mut rest).unwrap();
        assert_eq!(rest, [77, 78]);
    }

    #[test]
    fn lengths_and_kinds_that_no_frame_has_are_refused_as_soon_as_they_come() {
        for bytes in [&[0][..], &[LONGEST as u8 + 1], &[255], &[1, 99]] {
            let (mut ours, mut theirs) = pair();
            theirs.write_all(bytes).unwrap();
            assert!(
                matches!(receive(&mut ours), Err(Broken::Error(Error::Refused { .. }))),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn an_end_in_the_middle_of_a_frame_is_an_end() {
        let (mut ours, mut theirs) = pair();
        theirs.write_all(&[50, Kind::Hello as u8, 1]).unwrap();
        drop(theirs);
        assert!(matches!(receive(&mut ours), Err(Broken::Closed)));
    }
}

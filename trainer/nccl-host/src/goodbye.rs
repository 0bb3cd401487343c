//! What a rank says when it closes on its own account: whom it holds responsible, if anybody. So everyone learns the root
//! of the matter, and not only which of their peers was the first to give up.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::error::Error;
use crate::link::poll_for;
use crate::tcp::TcpLink;

/// What a rank has done to another one that left because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its connection ended without a word.
    Lost = 1,
    /// It did not come in the time that a call may wait.
    Silent = 2,
    /// It sent something that is not to be believed.
    Refused = 3,
    /// It left on its own account.
    Left = 4,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Fault::Lost => "lost",
            Fault::Silent => "waited in vain for",
            Fault::Refused => "refused",
            Fault::Left => "was left by",
        })
    }
}

/// Who holds whom responsible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blame {
    pub(crate) accused: u32,
    /// Who saw it first; others pass it on.
    pub(crate) accuser: u32,
    pub(crate) fault: Fault,
}

impl Blame {
    /// What `rank` says of an error that it has met itself.
    pub(crate) fn of(error: &Error, rank: u32) -> Option<Blame> {
        let (accused, fault) = match error {
            Error::PeerLost { rank, .. } | Error::ConnectionLost { rank, .. } => (*rank, Fault::Lost),
            Error::Stalled { rank, .. } => (*rank, Fault::Silent),
            Error::Deadline { missing, .. } => (*missing.first()?, Fault::Silent),
            Error::Refused { rank: Some(rank), .. } => (*rank, Fault::Refused),
            Error::PeerLeft { rank, .. } => (*rank, Fault::Left),
            _ => return None,
        };
        Some(Blame {
            accused,
            accuser: rank,
            fault,
        })
    }

    /// As one word; never 0, which says that nobody is blamed. Ranks are below 2^16.
    pub(crate) fn to_word(self) -> u64 {
        (self.fault as u64) << 32 | u64::from(self.accuser & 0xffff) << 16 | u64::from(self.accused & 0xffff)
    }

    /// What [`Blame::to_word`] made.
    pub(crate) fn from_word(word: u64) -> Option<Blame> {
        use Fault::*;
        let fault = [Lost, Silent, Refused, Left]
            .into_iter()
            .find(|fault| *fault as u64 == word >> 32)?;
        Some(Blame {
            accused: word as u32 & 0xffff,
            accuser: (word >> 16) as u32 & 0xffff,
            fault,
        })
    }

    /// The error for `rank`, who hears this from a peer.
    pub(crate) fn heard_by(self, rank: u32, pid: u32) -> Error {
        let Blame {
            accused,
            accuser,
            fault,
        } = self;
        if accused == rank {
            return Error::Accused { by: accuser, fault };
        }
        Error::Told {
            rank: accused,
            pid,
            by: accuser,
            fault,
        }
    }
}

/// How long a rank that leaves waits for its peers to take what it has begun to send, and its goodbye.
const FAREWELL: Duration = Duration::from_millis(100);

/// Says goodbye on every link, and whom this rank blames. A frame that is on its way is finished first; then what still comes
/// is read until the peer closes too, because closing a socket over unread bytes takes back what is on its way out. Peers
/// that do not listen see a connection that broke.
pub(crate) fn farewell<'a>(links: impl Iterator<Item = &'a mut TcpLink>, blame: Option<Blame>) {
    /// How far it has come with one peer.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Stage {
        Frame,
        Goodbye,
        Reading,
        Done,
    }
    let mut links: Vec<(&mut TcpLink, Stage)> = links.map(|link| (link, Stage::Frame)).collect();
    let until = Instant::now() + FAREWELL;
    loop {
        for (link, stage) in &mut links {
            while matches!(stage, Stage::Frame | Stage::Goodbye) {
                match link.push(&[]) {
                    Err(_) => *stage = Stage::Done,
                    Ok(_) if link.is_sending() => break,
                    Ok(_) if *stage == Stage::Frame => {
                        link.begin_goodbye(blame);
                        *stage = Stage::Goodbye;
                    }
                    Ok(_) => {
                        let _ = rustix::net::shutdown(&**link, rustix::net::Shutdown::Write);
                        *stage = Stage::Reading;
                    }
                }
            }
            let mut dropped = [0; 4096];
            while *stage != Stage::Done {
                match rustix::io::read(&**link, &mut dropped) {
                    Ok(more) if more > 0 => {}
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    _ => *stage = Stage::Done,
                }
            }
        }
        links.retain(|(_, stage)| *stage != Stage::Done);
        let left = until.saturating_duration_since(Instant::now());
        if links.is_empty() || left.is_zero() {
            return;
        }
        let mut polled: Vec<PollFd<'_>> = Vec::new();
        for (link, stage) in &links {
            let mut events = PollFlags::IN;
            events.set(PollFlags::OUT, *stage != Stage::Reading);
            polled.push(PollFd::new(&**link, events));
        }
        if poll_for(&mut polled, left).is_err() {
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::link::Broken;
    use crate::socket::TcpSocket;
    use crate::tcp::{CHUNK, Keys, Stream};

    /// Two ends of an authenticated connection.
    fn pair() -> [TcpLink; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let first = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (second, _) = listener.accept().unwrap();
        let keys = [[1; 32], [2; 32]];
        [(first, keys), (second, [keys[1], keys[0]])].map(|(socket, [sending, receiving])| {
            socket.set_nonblocking(true).unwrap();
            let socket = TcpSocket::accepted(socket.into()).unwrap();
            TcpLink::new(socket, Keys { sending, receiving }, 0, String::new())
        })
    }

    const BLAME: Blame = Blame {
        accused: 3,
        accuser: 1,
        fault: Fault::Refused,
    };

    #[test]
    fn a_frame_that_was_begun_is_finished_so_that_the_goodbye_is_heard() {
        let [mut leaving, mut staying] = pair();
        // Fill the sockets with whole frames until one gets stuck in its middle.
        let payload = vec![5; CHUNK];
        let mut whole = 0;
        loop {
            leaving.begin(Stream::Data, 1, 2, &payload, false);
            leaving.push(&payload).ok().unwrap();
            if leaving.is_sending() {
                break;
            }
            whole += 1;
        }
        // It has bytes of the other end unread: closing over them would take back what is on its way.
        staying.begin(Stream::Data, 1, 2, &payload, false);
        staying.push(&payload).ok().unwrap();
        leaving.keep(&payload);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                farewell(std::iter::once(&mut leaving), Some(BLAME));
                drop(leaving);
            });
            let mut received = 0;
            let mut place = vec![0; CHUNK];
            let said = loop {
                match staying.head() {
                    Ok(Some(head)) if head.kind == Stream::Data => {
                        if staying.pull(&mut place).ok().unwrap() {
                            assert!(place == payload);
                            received += 1;
                        }
                    }
                    Ok(Some(head)) => break Blame::from_word(head.call),
                    Ok(None) => std::thread::yield_now(),
                    Err(_) => panic!("the connection ended without a word after {received} frames of {whole}"),
                }
            };
            assert_eq!((said, received), (Some(BLAME), whole + 1));
        });
    }

    #[test]
    fn the_last_word_of_a_closed_end_is_found_behind_frames_that_nobody_wants() {
        let [mut leaving, mut staying] = pair();
        let payload = vec![5; 1000];
        for _ in 0..3 {
            leaving.begin(Stream::Data, 1, 2, &payload, false);
            leaving.push(&payload).ok().unwrap();
        }
        leaving.begin_goodbye(Some(BLAME));
        leaving.push(&[]).ok().unwrap();
        drop(leaving);
        // One frame is half taken already.
        assert!(staying.head().is_ok());
        assert!(matches!(staying.last_word(), Broken::Left(Some(BLAME))));

        let [mut leaving, mut staying] = pair();
        leaving.begin(Stream::Data, 1, 2, &payload, false);
        leaving.push(&payload).ok().unwrap();
        drop(leaving);
        assert!(matches!(staying.last_word(), Broken::Closed));
    }

    #[test]
    fn blame_comes_back_and_other_words_are_none() {
        for fault in [Fault::Lost, Fault::Silent, Fault::Refused, Fault::Left] {
            let blame = Blame {
                accused: 511,
                accuser: 0,
                fault,
            };
            assert_eq!(Blame::from_word(blame.to_word()), Some(blame));
        }
        for word in [0, 7, 5 << 32, u64::MAX] {
            assert_eq!(Blame::from_word(word), None);
        }
    }
}

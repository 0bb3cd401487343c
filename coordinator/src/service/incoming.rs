//! Connections: taken, counted, encrypted, and cut where the other end says nothing.
//!
//! Way of a connection: listener → a [`Place`] among those of its address and of all → the TLS handshake, which few may make
//! at a time and none for long, with the certificate and the authority of this moment → the other end's [`Peer`] →
//! the server. What fails on the way is a line in the journal.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use lockstep_config::SecuritySection;
use lockstep_security::Keeper;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::service::caller::Caller;
use crate::service::guard::{Journal, Peer};

/// A handshake, and the first words after it, may take so long each.
const PATIENCE: Duration = Duration::from_secs(10);
/// Handshakes at a time.
const HANDSHAKES: usize = 64;
/// Connections that may wait for the server.
const WAITING: usize = 16;
/// The first words of HTTP/2. Whoever has said so much talks.
const FIRST_WORDS: usize = 24;
/// Between two tries to take a connection where the system has no more of something.
const PAUSE: Duration = Duration::from_millis(50);

/// What every connection passes through.
struct Door {
    keeper: Arc<Keeper>,
    journal: Arc<Journal>,
    places: Arc<Places>,
    handshakes: Semaphore,
}

/// Takes connections until the stream is dropped.
pub(super) fn connections(
    listener: TcpListener,
    section: &SecuritySection,
    keeper: Arc<Keeper>,
    journal: Arc<Journal>,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let door = Arc::new(Door {
        keeper,
        journal,
        places: Arc::new(Places {
            taken: Mutex::default(),
            of_one: count(section.connections_per_address),
            of_all: count(section.connections),
        }),
        handshakes: Semaphore::new(HANDSHAKES),
    });
    tokio::spawn(async move {
        loop {
            let taken = tokio::select! {
                taken = listener.accept() => taken,
                () = sender.closed() => return,
            };
            let Ok((stream, address)) = taken else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let (door, sender) = (door.clone(), sender.clone());
            tokio::spawn(async move {
                if let Some(connection) = door.open(stream, address).await {
                    // Refused only where the server is closing.
                    let _taken = sender.send(Ok(connection)).await;
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

impl Door {
    async fn open(&self, stream: TcpStream, address: SocketAddr) -> Option<Connection> {
        let refuse = |what: &str, reason: String| {
            let from = address.to_string();
            self.journal.refused(Caller::new("nobody known", &from, what), reason);
            None
        };
        let Some(place) = self.places.take(address.ip()) else {
            return refuse(
                "a connection",
                "there are too many connections (security.connections)".to_owned(),
            );
        };
        // Small messages must not wait for more; where it cannot be set they do.
        let _set = stream.set_nodelay(true);
        let Some(config) = self.keeper.keys().tls.clone() else {
            let peer = Peer {
                address,
                is_tls: false,
                certificate: None,
            };
            return Some(Connection::new(Io::Plain(stream), peer, place));
        };
        let handshake = async {
            // Never closed.
            let _turn = self.handshakes.acquire().await;
            TlsAcceptor::from(config).accept(stream).await
        };
        match tokio::time::timeout(PATIENCE, handshake).await {
            Ok(Ok(stream)) => {
                let certificates = stream.get_ref().1.peer_certificates();
                let certificate = certificates.and_then(|chain| chain.first());
                let peer = Peer {
                    address,
                    is_tls: true,
                    certificate: certificate.map(Keeper::of_certificate),
                };
                Some(Connection::new(Io::Tls(Box::new(stream)), peer, place))
            }
            // Probes connect and say nothing.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Ok(Err(error)) => refuse("a TLS handshake", error.to_string()),
            Err(_) => refuse("a TLS handshake", "it took too long".to_owned()),
        }
    }
}

#[derive(Default)]
struct Taken {
    by_address: HashMap<IpAddr, usize>,
    all: usize,
}

/// How many connections there are, by address.
struct Places {
    taken: Mutex<Taken>,
    of_one: usize,
    of_all: usize,
}

impl Places {
    fn take(self: &Arc<Places>, address: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by_address.get(&address).copied().unwrap_or(0);
        if taken.all >= self.of_all || own >= self.of_one {
            return None;
        }
        taken.by_address.insert(address, own + 1);
        taken.all += 1;
        let places = self.clone();
        Some(Place { places, address })
    }
}

/// The place of one connection, free again when it is dropped.
struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(own) = taken.by_address.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// One connection.
pub(super) struct Connection {
    io: Io,
    peer: Arc<Peer>,
    /// When it is cut if its first words have not come.
    silence: Option<Pin<Box<Sleep>>>,
    heard: usize,
    _place: Place,
}

impl Connection {
    fn new(io: Io, peer: Peer, place: Place) -> Connection {
        Connection {
            io,
            peer: Arc::new(peer),
            silence: Some(Box::pin(tokio::time::sleep(PATIENCE))),
            heard: 0,
            _place: place,
        }
    }

    fn writer(&mut self) -> Pin<&mut (dyn AsyncWrite + Send + Unpin)> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io),
            Io::Tls(io) => Pin::new(io.as_mut()),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(silence) = &mut this.silence
            && silence.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        let polled = match &mut this.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io.as_mut()).poll_read(cx, buf),
        };
        if this.silence.is_some() {
            this.heard += buf.filled().len() - before;
            if this.heard >= FIRST_WORDS {
                this.silence = None;
            }
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writer().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writer().poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }
}

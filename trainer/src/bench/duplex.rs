//! A bare connection between two ranks, for what the link gives.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use lockstep_collective::Collective;

use crate::error::TrainerError;

/// A bare connection between two ranks, for what the link gives.
pub(super) struct Duplex {
    sending: TcpStream,
    receiving: TcpStream,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
}

impl Duplex {
    pub(super) fn between(collective: &mut dyn Collective) -> Result<Duplex, TrainerError> {
        let broken = |error: std::io::Error| TrainerError::Broken(format!("cannot connect: {error}"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(broken)?;
        let mut ports = [0, 0];
        ports[collective.rank() as usize] = u64::from(listener.local_addr().map_err(broken)?.port());
        collective.exchange_slots(&mut ports, &[0, 1])?;
        let other = ports[1 - collective.rank() as usize] as u16;
        let sending = TcpStream::connect((Ipv4Addr::LOCALHOST, other)).map_err(broken)?;
        let (receiving, _) = listener.accept().map_err(broken)?;
        for stream in [&sending, &receiving] {
            stream.set_nodelay(true).map_err(broken)?;
        }
        Ok(Duplex {
            sending,
            receiving,
            outgoing: Vec::new(),
            incoming: Vec::new(),
        })
    }

    /// Sends and receives so many bytes at once.
    pub(super) fn exchange(&mut self, bytes: usize) -> std::io::Result<()> {
        self.outgoing.resize(bytes, 1);
        self.incoming.resize(bytes, 0);
        let (sending, outgoing) = (&mut self.sending, &self.outgoing);
        let (receiving, incoming) = (&mut self.receiving, &mut self.incoming);
        std::thread::scope(|scope| {
            let sender = scope.spawn(move || sending.write_all(outgoing));
            receiving.read_exact(incoming)?;
            sender
                .join()
                .unwrap_or_else(|_| Err(std::io::Error::other("the sender panicked")))
        })
    }
}

//! Parts of snapshots in the memory of trainers: kept, served to other members, fetched from them.
//!
//! A snapshot has one part a rank: all that the rank owns after a step, as bytes that only the trainer understands. Way of
//! data: the device thread freezes a part and hands it to the [`Keeper`] → the rank's buddy [`Keeper::fetch`]es it, so that
//! the part outlives its owner → after a failure every rank of the next generation fetches what it needs from whoever
//! still holds it → parts older than the newest snapshot that stands are freed.
//!
//! The keeper serves on a thread of its own (`server`), and only who knows the token of a generation gets its parts.
//! Whatever comes over the network is checked against its hash before it is kept or given out.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod fetch;
mod kept;
mod server;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::domain::Part;
use tokio::runtime::Handle;

pub use crate::error::PartsError;
use crate::kept::Kept;
pub use crate::kept::{Bytes, Name};
use crate::server::Server;

/// What shows that a member was told of a generation: derived from the generation's secret.
pub type Token = [u8; 32];

/// The token of a generation, from its secret.
pub fn token(secret: &[u8; 32]) -> Token {
    blake3::derive_key("lockstep 2026-11 parts of snapshots", secret)
}

/// Keeps parts and serves them. Dropping it closes the server and frees them.
pub struct Keeper {
    kept: Arc<Kept>,
    server: Server,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper")
            .field("address", &self.server.address)
            .finish_non_exhaustive()
    }
}

impl Keeper {
    /// A keeper that serves at a free port of `address`.
    ///
    /// # Errors
    /// The address is not this host's, or the system gives no thread.
    pub fn open(address: IpAddr) -> Result<Keeper, PartsError> {
        let kept = Arc::new(Kept::default());
        let server = Server::open(SocketAddr::new(address, 0), Arc::clone(&kept))?;
        Ok(Keeper { kept, server })
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// From now on parts of `generation` are given to who knows `token`.
    pub fn admit(&self, generation: u64, token: Token) {
        self.kept.admit(generation, token);
    }

    /// Keeps a part, made here or fetched. Hashing it takes a millisecond for some MiB: not on a thread that is waited for.
    pub fn keep(&self, name: Name, bytes: Bytes) -> Part {
        self.kept.keep(name, blake3::hash(&bytes).into(), bytes)
    }

    /// A part that is kept here.
    pub fn get(&self, name: Name) -> Option<Bytes> {
        self.kept.get(name).map(|(_, bytes)| bytes)
    }

    /// All parts that are kept here.
    pub fn parts(&self) -> Vec<Part> {
        self.kept.parts()
    }

    /// Bytes of all parts that are kept here.
    pub fn bytes(&self) -> usize {
        self.kept.bytes()
    }

    /// Frees the parts of steps before `step`.
    pub fn free_before(&self, step: u64) {
        self.kept.free_before(step);
    }

    /// Gets a part: the one that is kept here, or from the first of `addresses` that gives it whole. With `hash` it must have
    /// that. Waits up to `patience` for a part that is still being made; `is_over` ends the wait.
    ///
    /// # Errors
    /// No member gave it; the error says what each one said.
    pub fn fetch(
        &self,
        name: Name,
        addresses: &[String],
        (token, hash): (&Token, Option<[u8; 32]>),
        patience: Duration,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Bytes, PartsError> {
        if let Some((own, bytes)) = self.kept.get(name)
            && hash.is_none_or(|hash| hash == own)
        {
            return Ok(bytes);
        }
        let handle: &Handle = &self.server.handle;
        let mut said = Vec::new();
        for address in addresses {
            let fetching = fetch::fetch(address, name, token, patience);
            match handle.block_on(fetch::unless(fetching, is_over)) {
                Ok((found, bytes)) if hash.is_none_or(|hash| hash == found) => return Ok(bytes),
                Ok(_) => said.push(format!("{address}: it has another part under that name")),
                Err(PartsError::Over) => return Err(PartsError::Over),
                Err(error) => said.push(format!("{address}: {error}")),
            }
        }
        Err(PartsError::Nobody {
            name,
            said: match said.is_empty() {
                true => "no member is known to hold it".to_owned(),
                false => said.join("; "),
            },
        })
    }
}

//! Where a rank is: what it says of itself while ranks meet, so that each pair knows how to reach each other.

use std::net::SocketAddr;

use crate::error::Error;
use crate::id::{ADDRESS, address_from_bytes, address_to_bytes};

/// Longest host name that is passed on, in bytes.
const NAME: usize = 40;
const FIXED: usize = 4 + 16 + 4 + ADDRESS;

/// Ranks in equal places can pass each other descriptors: same boot of the same kernel, same network namespace (abstract
/// sockets are its own), same user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place([u8; 16]);

impl Place {
    /// Where this process is.
    pub(crate) fn here() -> Result<Place, Error> {
        let failed = |call| move |source| Error::System { call, source };
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(failed("reading /proc/sys/kernel/random/boot_id"))?;
        let network = rustix::fs::stat("/proc/self/ns/net").map_err(|source| Error::system("stat", source))?;
        let mut hasher = blake3::Hasher::new_derive_key("lockstep nccl-host 2 place");
        hasher
            .update(boot.trim().as_bytes())
            .update(&network.st_dev.to_le_bytes())
            .update(&network.st_ino.to_le_bytes())
            .update(&rustix::process::geteuid().as_raw().to_le_bytes());
        let mut place = [0; 16];
        place.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Ok(Place(place))
    }
}

/// What a rank says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) rank: u32,
    pub(crate) place: Place,
    pub(crate) pid: u32,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its host's name, for people.
    pub(crate) host: String,
}

impl Card {
    /// The card of this process.
    pub(crate) fn of(rank: u32, address: SocketAddr) -> Result<Card, Error> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Card {
            rank,
            place: Place::here()?,
            pid: std::process::id(),
            address,
            host: host.chars().take(NAME / 4).collect(),
        })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED + NAME);
        bytes.extend_from_slice(&self.rank.to_le_bytes());
        bytes.extend_from_slice(&self.place.0);
        bytes.extend_from_slice(&self.pid.to_le_bytes());
        bytes.extend_from_slice(&address_to_bytes(Some(self.address)));
        bytes.extend_from_slice(self.host.as_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Card> {
        let (rank, rest) = bytes.split_first_chunk::<4>()?;
        let (place, rest) = rest.split_first_chunk::<16>()?;
        let (pid, rest) = rest.split_first_chunk::<4>()?;
        let (address, host) = rest.split_first_chunk::<ADDRESS>()?;
        Some(Card {
            rank: u32::from_le_bytes(*rank),
            place: Place(*place),
            pid: u32::from_le_bytes(*pid),
            address: address_from_bytes(address)??,
            host: String::from_utf8(host.to_vec())
                .ok()
                .filter(|host| host.len() <= NAME && !host.chars().any(char::is_control))?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cards_come_back_and_others_are_none() {
        let card = Card::of(3, "10.0.0.7:812".parse().unwrap()).unwrap();
        let bytes = card.to_bytes();
        assert!(bytes.len() < crate::link::LONGEST);
        assert_eq!(Card::from_bytes(&bytes), Some(card));
        for length in 0..FIXED {
            assert_eq!(Card::from_bytes(&bytes[..length]), None);
        }
        assert_eq!(Card::from_bytes(&[&bytes[..], &[b'x'; NAME + 1]].concat()), None);
        assert_eq!(Card::from_bytes(&[&bytes[..FIXED], b"\n"].concat()), None);
    }
}

//! The communicator's id: what the lowest rank makes and the coordinator carries to the others.
//!
//! Layout, little-endian: version (4), nonce (16), generation (8), where the lowest rank listens (19, see [`ADDRESS`]), secret
//! (32). The nonce names the sockets, so a stale name cannot be met; the secret is what peers prove to each other, so the
//! bytes travel over authenticated channels only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use crate::error::Error;

const VERSION: u32 = 3;
/// Bytes of an address: 0 for none, 4 or 6 for the family; 16 of the address, of which IPv4 uses 4; 2 of the port.
pub(crate) const ADDRESS: usize = 1 + 16 + 2;
const LENGTH: usize = 4 + 16 + 8 + ADDRESS + 32;

/// Names one communicator of one generation.
#[derive(Clone, PartialEq, Eq)]
pub struct CommunicatorId {
    pub(crate) nonce: [u8; 16],
    pub(crate) generation: u64,
    /// Where the rank that made the id listens for those that share no host with it.
    pub(crate) root: Option<SocketAddr>,
    pub(crate) secret: [u8; 32],
}

/// An id together with the socket at which its maker listens: the maker is rank 0 and brings this to its meeting.
pub struct Root {
    id: CommunicatorId,
    pub(crate) listener: OwnedFd,
}

impl Root {
    /// A new id, and a socket at a free port of `advertise`, the address at which other hosts reach this one.
    ///
    /// # Errors
    /// The system has no random numbers; the address is not one of this host.
    pub fn open(secret: &[u8; 32], generation: u64, advertise: IpAddr) -> Result<Root, Error> {
        let (listener, address) = listen(advertise)?;
        let mut id = CommunicatorId::new(secret, generation)?;
        id.root = Some(address);
        Ok(Root { id, listener })
    }

    /// The id that the other ranks need.
    pub fn id(&self) -> &CommunicatorId {
        &self.id
    }
}

/// Where a rank above 0 listens for ranks of other hosts, and the address that leads there.
pub struct Listener {
    pub(crate) socket: OwnedFd,
    pub(crate) address: SocketAddr,
}

impl Listener {
    /// Takes a listening socket that others reach at `reached_at`, which may be another port of another address: where
    /// something between the hosts maps ports.
    ///
    /// # Errors
    /// The socket cannot be made to return at once.
    pub fn new(socket: TcpListener, reached_at: SocketAddr) -> Result<Listener, Error> {
        let address = reached_at.ip();
        socket
            .set_nonblocking(true)
            .map_err(|source| Error::Listen { address, source })?;
        Ok(Listener {
            socket: socket.into(),
            address: reached_at,
        })
    }
}

/// A socket that listens at a free port of `address`.
pub(crate) fn listen(address: IpAddr) -> Result<(OwnedFd, SocketAddr), Error> {
    let failed = |source| Error::Listen { address, source };
    let listener = TcpListener::bind((address, 0)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener.into(), address))
}

/// As [`ADDRESS`] says.
pub(crate) fn address_to_bytes(address: Option<SocketAddr>) -> [u8; ADDRESS] {
    let mut bytes = [0; ADDRESS];
    match address.map(|address| address.ip()) {
        Some(IpAddr::V4(ip)) => {
            bytes[0] = 4;
            bytes[1..5].copy_from_slice(&ip.octets());
        }
        Some(IpAddr::V6(ip)) => {
            bytes[0] = 6;
            bytes[1..17].copy_from_slice(&ip.octets());
        }
        None => {}
    }
    bytes[17..].copy_from_slice(&address.map_or(0, |address| address.port()).to_le_bytes());
    bytes
}

/// What [`address_to_bytes`] wrote; none in the outer option for bytes that it never writes.
pub(crate) fn address_from_bytes(bytes: &[u8; ADDRESS]) -> Option<Option<SocketAddr>> {
    let port = u16::from_le_bytes(*bytes[17..].first_chunk()?);
    let ip: IpAddr = match bytes[0] {
        0 => return Some(None),
        4 => Ipv4Addr::from(*bytes[1..].first_chunk::<4>()?).into(),
        6 => Ipv6Addr::from(*bytes[1..].first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some(Some(SocketAddr::new(ip, port)))
}

impl std::fmt::Debug for CommunicatorId {
    /// Leaves the secret out.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("CommunicatorId")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl CommunicatorId {
    /// A new id with a fresh nonce, for the generation whose secret this is, for ranks that all share one host;
    /// [`Root::open`] makes one for several hosts.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new(secret: &[u8; 32], generation: u64) -> Result<CommunicatorId, Error> {
        Ok(CommunicatorId {
            nonce: random()?,
            generation,
            root: None,
            secret: *secret,
        })
    }

    /// The bytes that travel to the other ranks.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.nonce);
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&address_to_bytes(self.root));
        bytes.extend_from_slice(&self.secret);
        bytes
    }

    /// Reads what [`CommunicatorId::to_bytes`] made.
    ///
    /// # Errors
    /// Another version, or another length.
    pub fn from_bytes(bytes: &[u8]) -> Result<CommunicatorId, Error> {
        let bad = |why: String| Error::BadId { why };
        let (version, rest) = bytes
            .split_first_chunk::<4>()
            .ok_or_else(|| bad(format!("it has only {} bytes", bytes.len())))?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(bad(format!(
                "it has version {version}, this build understands version {VERSION}"
            )));
        }
        let wrong_length = || bad(format!("it has {} bytes where {LENGTH} were expected", bytes.len()));
        let (nonce, rest) = rest.split_first_chunk::<16>().ok_or_else(wrong_length)?;
        let (generation, rest) = rest.split_first_chunk::<8>().ok_or_else(wrong_length)?;
        let (root, rest) = rest.split_first_chunk::<ADDRESS>().ok_or_else(wrong_length)?;
        let root = address_from_bytes(root).ok_or_else(|| bad("its address is none".into()))?;
        let secret = <[u8; 32]>::try_from(rest).map_err(|_| wrong_length())?;
        Ok(CommunicatorId {
            nonce: *nonce,
            generation: u64::from_le_bytes(*generation),
            root,
            secret,
        })
    }
}

/// Random bytes from the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|source| Error::System {
        call: "getrandom",
        source: std::io::Error::other(source.to_string()),
    })?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_other_versions_and_lengths_are_refused_by_name() {
        let id = CommunicatorId::new(&[7; 32], 9).unwrap();
        let bytes = id.to_bytes();
        assert_eq!(CommunicatorId::from_bytes(&bytes).unwrap(), id);
        assert!(!format!("{id:?}").contains('7'), "the secret must not be printed");

        let mut other = bytes.clone();
        other[0] = 1;
        let refusal = CommunicatorId::from_bytes(&other).unwrap_err().to_string();
        assert!(refusal.contains("version 1"), "{refusal}");
        for length in 0..bytes.len() {
            assert!(CommunicatorId::from_bytes(&bytes[..length]).is_err());
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(CommunicatorId::from_bytes(&longer).is_err());
    }

    #[test]
    fn addresses_of_both_families_come_back() {
        for address in ["127.0.0.1:4001", "[fe80::1]:1", "10.7.0.2:65535"] {
            let address = Some(address.parse().unwrap());
            assert_eq!(address_from_bytes(&address_to_bytes(address)), Some(address));
        }
        assert_eq!(address_from_bytes(&address_to_bytes(None)), Some(None));
        assert_eq!(address_from_bytes(&[9; ADDRESS]), None);
    }

    #[test]
    fn two_ids_of_one_generation_have_different_nonces() {
        let first = CommunicatorId::new(&[1; 32], 1).unwrap();
        assert_ne!(first.nonce, CommunicatorId::new(&[1; 32], 1).unwrap().nonce);
    }
}

//! The communicator's id: what the lowest rank makes and the coordinator carries to the others.
//!
//! Layout, little-endian: version (4), nonce (16), generation (8), secret (32). The nonce names the sockets, so a stale
//! name cannot be met; the secret is what peers prove to each other, so the bytes travel over authenticated channels only.

use crate::error::Error;

const VERSION: u32 = 1;
const LENGTH: usize = 4 + 16 + 8 + 32;

/// Names one communicator of one generation.
#[derive(Clone, PartialEq, Eq)]
pub struct CommunicatorId {
    pub(crate) nonce: [u8; 16],
    pub(crate) generation: u64,
    pub(crate) secret: [u8; 32],
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
    /// A new id with a fresh nonce, for the generation whose secret this is.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new(secret: &[u8; 32], generation: u64) -> Result<CommunicatorId, Error> {
        Ok(CommunicatorId {
            nonce: random()?,
            generation,
            secret: *secret,
        })
    }

    /// The bytes that travel to the other ranks.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.nonce);
        bytes.extend_from_slice(&self.generation.to_le_bytes());
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
        let secret = <[u8; 32]>::try_from(rest).map_err(|_| wrong_length())?;
        Ok(CommunicatorId {
            nonce: *nonce,
            generation: u64::from_le_bytes(*generation),
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
        other[0] = 2;
        let refusal = CommunicatorId::from_bytes(&other).unwrap_err().to_string();
        assert!(refusal.contains("version 2"), "{refusal}");
        for length in 0..bytes.len() {
            assert!(CommunicatorId::from_bytes(&bytes[..length]).is_err());
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(CommunicatorId::from_bytes(&longer).is_err());
    }

    #[test]
    fn two_ids_of_one_generation_have_different_nonces() {
        let first = CommunicatorId::new(&[1; 32], 1).unwrap();
        assert_ne!(first.nonce, CommunicatorId::new(&[1; 32], 1).unwrap().nonce);
    }
}

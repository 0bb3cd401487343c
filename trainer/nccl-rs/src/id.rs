//! The communicator's id: what one rank makes and carries to the others, by its own means.

use crate::error::Error;
use crate::raw;

/// 128 bytes that name one communicator to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId([u8; raw::UNIQUE_ID_BYTES]);

impl UniqueId {
    /// The bytes that travel.
    ///
    /// ```
    /// let id = nccl_rs::UniqueId::from_bytes(&[7; 128])?;
    /// assert_eq!(id.to_bytes(), [7; 128]);
    /// # Ok::<(), nccl_rs::Error>(())
    /// ```
    pub fn to_bytes(&self) -> [u8; raw::UNIQUE_ID_BYTES] {
        self.0
    }

    /// Reads what [`UniqueId::to_bytes`] gave.
    ///
    /// ```
    /// assert!(nccl_rs::UniqueId::from_bytes(&[7; 64]).is_err());
    /// ```
    ///
    /// # Errors
    /// [`Error::IdLength`].
    pub fn from_bytes(bytes: &[u8]) -> Result<UniqueId, Error> {
        <[u8; raw::UNIQUE_ID_BYTES]>::try_from(bytes)
            .map(UniqueId)
            .map_err(|_| Error::IdLength { found: bytes.len() })
    }

    pub(crate) fn from_raw(id: raw::UniqueId) -> UniqueId {
        UniqueId(id.internal.map(|byte| byte.cast_unsigned()))
    }

    pub(crate) fn to_raw(self) -> raw::UniqueId {
        raw::UniqueId {
            internal: self.0.map(u8::cast_signed),
        }
    }
}

impl std::fmt::Debug for UniqueId {
    /// Shows the first bytes only: the whole is an address and a secret.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "UniqueId({:02x?} …)", &self.0[..4])
    }
}

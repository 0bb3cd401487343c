//! Generated messages ⇄ domain types: what both services share, and the errors. A message that lacks a part, has a
//! hash of the wrong length or speaks another protocol version becomes a sentence that names message and field.

mod control;
mod training;

use crate::PROTOCOL_VERSION;
use crate::domain::{Header, MemberPlace, Orthogonality, Outcome, Stamp};
use crate::v1;

/// Why a message cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// The sender speaks another protocol.
    #[error(
        "this message speaks protocol version {theirs}, and this build knows version {ours} only: use trainers, \
         coordinator and command of one version"
    )]
    ProtocolVersion {
        /// Of this build.
        ours: u32,
        /// Of the message.
        theirs: u32,
    },
    /// A part that must be there is not.
    #[error("the message {message} came without its {field}")]
    Missing {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
    },
    /// Bytes of the wrong length.
    #[error("{field} in the message {message} has {found} bytes instead of {expected}")]
    Length {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
        /// Bytes that it should have.
        expected: usize,
        /// Bytes that it has.
        found: usize,
    },
    /// A value that this build does not know.
    #[error("{field} in the message {message} is {value}, which this build does not know")]
    Unknown {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
        /// The value.
        value: i64,
    },
    /// A range that ends before it begins.
    #[error("{field} in the message {message} is [{begin}, {end}), which ends before it begins")]
    Range {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
        /// First.
        begin: u32,
        /// One past the last.
        end: u32,
    },
}

impl From<&Header> for v1::Header {
    fn from(header: &Header) -> Self {
        v1::Header {
            run_id: header.run_id.clone(),
            protocol_version: PROTOCOL_VERSION,
            term: header.stamp.term,
            generation: header.stamp.generation,
        }
    }
}

impl TryFrom<v1::Header> for Header {
    type Error = ConvertError;

    fn try_from(header: v1::Header) -> Result<Self, ConvertError> {
        if header.protocol_version != PROTOCOL_VERSION {
            return Err(ConvertError::ProtocolVersion {
                ours: PROTOCOL_VERSION,
                theirs: header.protocol_version,
            });
        }
        let stamp = Stamp {
            term: header.term,
            generation: header.generation,
        };
        Ok(Header {
            run_id: header.run_id,
            stamp,
        })
    }
}

/// The header that must stand in `message`.
fn header(message: &'static str, header: Option<v1::Header>) -> Result<Header, ConvertError> {
    required(message, "header", header)?.try_into()
}

fn required<T>(message: &'static str, field: &'static str, value: Option<T>) -> Result<T, ConvertError> {
    value.ok_or(ConvertError::Missing { message, field })
}

fn bytes_32(message: &'static str, field: &'static str, bytes: &[u8]) -> Result<[u8; 32], ConvertError> {
    bytes.try_into().map_err(|_| ConvertError::Length {
        message,
        field,
        expected: 32,
        found: bytes.len(),
    })
}

fn phases_out(phases: &[(String, f64)]) -> Vec<v1::Phase> {
    phases
        .iter()
        .map(|(name, milliseconds)| v1::Phase {
            name: name.clone(),
            milliseconds: *milliseconds,
        })
        .collect()
}

fn phases_in(phases: Vec<v1::Phase>) -> Vec<(String, f64)> {
    phases
        .into_iter()
        .map(|phase| (phase.name, phase.milliseconds))
        .collect()
}

impl From<&Orthogonality> for v1::Orthogonality {
    fn from(orthogonality: &Orthogonality) -> Self {
        v1::Orthogonality {
            tensor: orthogonality.tensor.clone(),
            error: orthogonality.error,
        }
    }
}

impl From<v1::Orthogonality> for Orthogonality {
    fn from(orthogonality: v1::Orthogonality) -> Self {
        Orthogonality {
            tensor: orthogonality.tensor,
            error: orthogonality.error,
        }
    }
}

impl From<&MemberPlace> for v1::MemberPlace {
    fn from(place: &MemberPlace) -> Self {
        v1::MemberPlace {
            member: place.member.clone(),
            rank: place.rank,
            lanes_begin: place.lanes.start,
            lanes_end: place.lanes.end,
            pid: place.pid,
            host: place.host.clone(),
            parts_address: place.parts_address.clone(),
        }
    }
}

impl TryFrom<v1::MemberPlace> for MemberPlace {
    type Error = ConvertError;

    fn try_from(place: v1::MemberPlace) -> Result<Self, ConvertError> {
        let (begin, end) = (place.lanes_begin, place.lanes_end);
        if begin > end {
            return Err(ConvertError::Range {
                message: "MemberPlace",
                field: "lanes",
                begin,
                end,
            });
        }
        Ok(MemberPlace {
            member: place.member,
            rank: place.rank,
            lanes: begin..end,
            pid: place.pid,
            host: place.host,
            parts_address: place.parts_address,
        })
    }
}

impl From<&Outcome> for v1::Outcome {
    fn from(outcome: &Outcome) -> Self {
        use v1::outcome::{Completed, Failed, Kind, Stopped};
        let kind = match outcome {
            Outcome::Completed => Kind::Completed(Completed {}),
            Outcome::Stopped => Kind::Stopped(Stopped {}),
            Outcome::Failed { reason } => Kind::Failed(Failed { reason: reason.clone() }),
        };
        v1::Outcome { kind: Some(kind) }
    }
}

impl TryFrom<v1::Outcome> for Outcome {
    type Error = ConvertError;

    fn try_from(outcome: v1::Outcome) -> Result<Self, ConvertError> {
        use v1::outcome::{Failed, Kind};
        Ok(match required("Outcome", "kind", outcome.kind)? {
            Kind::Completed(_) => Outcome::Completed,
            Kind::Stopped(_) => Outcome::Stopped,
            Kind::Failed(Failed { reason }) => Outcome::Failed { reason },
        })
    }
}

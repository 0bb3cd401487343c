//! The coordinator's half of the training service, for messages that go to many members: each is encoded once, and every
//! stream sends the same bytes. On the wire nothing differs from the generated service of [`crate::v1`], whose client
//! trainers use.

#![allow(missing_docs, unreachable_pub, clippy::all)] // The generated part.

use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstDecoder;

use crate::domain::FromCoordinator;
use crate::v1;

include!(concat!(env!("OUT_DIR"), "/lockstep.v1.Training.rs"));

/// What a stream asks for at a time to write into: most messages are an acknowledgement or a plan window.
const ROOM: usize = 1 << 10;
/// Bytes that are gathered before they are handed on.
const GATHERED: usize = 16 << 10;

/// A message of the coordinator as it goes over the wire. A copy shares its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded(Bytes);

impl From<&FromCoordinator> for Encoded {
    fn from(message: &FromCoordinator) -> Encoded {
        Encoded(v1::CoordinatorMessage::from(message).encode_to_vec().into())
    }
}

/// Sends [`Encoded`] messages, and takes those of members.
#[derive(Clone, Copy, Debug, Default)]
pub struct SharedCodec;

impl Codec for SharedCodec {
    type Encode = Encoded;
    type Decode = v1::MemberMessage;
    type Encoder = Copier;
    type Decoder = ProstDecoder<v1::MemberMessage>;

    fn encoder(&mut self) -> Copier {
        Copier
    }

    fn decoder(&mut self) -> ProstDecoder<v1::MemberMessage> {
        ProstDecoder::new(BufferSettings::new(ROOM, GATHERED))
    }
}

/// Puts the bytes of a message into a stream.
#[derive(Clone, Copy, Debug)]
pub struct Copier;

impl Encoder for Copier {
    type Item = Encoded;
    type Error = Status;

    fn encode(&mut self, Encoded(bytes): Encoded, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(bytes);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(ROOM, GATHERED)
    }
}

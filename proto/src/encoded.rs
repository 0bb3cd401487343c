//! Messages of the coordinator that go to many members, encoded once: every stream sends the same bytes.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::domain::FromCoordinator;
use crate::v1;

/// In front of a message stand a byte that says it is not compressed and its length, as gRPC has it.
const PREFIX: usize = 5;

/// A message as it goes over the wire, in the frame of gRPC. A copy shares its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded(Bytes);

impl Encoded {
    /// The bytes of the frame.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl From<&FromCoordinator> for Encoded {
    fn from(message: &FromCoordinator) -> Encoded {
        let message = v1::CoordinatorMessage::from(message);
        let length = message.encoded_len();
        let mut frame = BytesMut::with_capacity(PREFIX + length);
        frame.put_u8(0);
        // Nothing that a coordinator says is near 4 GiB; what is larger than a member takes it refuses by its length.
        frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        // The buffer grows where it must, so this cannot fail.
        let _written = message.encode(&mut frame);
        Encoded(frame.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{CoordinatorBody, Header};

    #[test]
    fn a_frame_is_the_message_behind_its_length_and_a_copy_shares_it() {
        let message = FromCoordinator {
            header: Header::default(),
            body: CoordinatorBody::CommId(vec![7; 300]),
        };
        let encoded = Encoded::from(&message);
        let (copy, frame) = (encoded.clone().into_bytes(), encoded.into_bytes());
        assert_eq!(frame.as_ptr(), copy.as_ptr());
        assert_eq!(frame[0], 0);
        let length = u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]);
        assert_eq!(length as usize, frame.len() - PREFIX);
        let decoded = v1::CoordinatorMessage::decode(&frame[PREFIX..]);
        assert_eq!(
            FromCoordinator::try_from(decoded.unwrap_or_default()).as_ref(),
            Ok(&message)
        );
    }
}

//! The protocol between trainers, the coordinator and operators.
//!
//! `proto/lockstep/v1/*.proto` → generated messages and services ([`v1`]) ⇄ `convert` ⇄ plain types ([`domain`]).
//! Services receive generated messages, convert them at once (typed errors, [`ConvertError`]) and hand domain types
//! on; nobody else sees the wire. [`address`] is the file that says where a coordinator is. What the coordinator says to many members is [`encoded`] once. There is no logic here.

pub mod address;
pub mod domain;
pub mod encoded;

mod convert;

pub use convert::ConvertError;

/// Version of the messages. Another one is refused by name.
pub const PROTOCOL_VERSION: u32 = 2;

/// The compiled `.proto` files, for the reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lockstep_descriptors.bin"));

/// Generated messages, clients and servers of `lockstep.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("lockstep.v1");
}

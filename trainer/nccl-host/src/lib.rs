//! Communicators over host memory: shared memory inside a host, TCP between hosts.
//!
//! A rank writes only its own memory: it makes sealed memfds and passes their descriptors to the peers of its host, who map
//! them read-only. Way of the data: [`CommunicatorId`] (made by one rank, carried by the coordinator) → ranks meet
//! (`rendezvous`), prove the id's secret to each other (`handshake`), and learn how to reach each other (`place`).
//! Inside a host descriptors pass (`link`), signals are counters in shared pages (`control`), and payload is read straight
//! from the peer's mapping (`memory`; long ranges past the caches, `stream`). Between hosts payload passes over authenticated connections (`tcp`), all of an
//! operation at once (`exchange`), into mirrors of the peers' memory. What is computed from it is the business of
//! `lockstep-collective`.

mod abort;
mod call;
mod cards;
mod communicator;
mod control;
mod error;
mod exchange;
mod goodbye;
mod handshake;
mod id;
mod link;
mod memory;
mod peer;
mod place;
mod reception;
mod rendezvous;
mod socket;
mod stream;
mod tcp;
mod visits;

pub use abort::Aborter;
pub use call::{Call, CallKind};
pub use communicator::{Communicator, Options, Signal};
pub use error::Error;
pub use exchange::{Into, Transfer};
pub use goodbye::Fault;
pub use id::{CommunicatorId, Listener, Root};
pub use memory::{HostMemory, MemoryHold, PeerMemory};
pub use peer::PeerView;

//! Communicators over the memory of one machine.
//!
//! A rank writes only its own memory: it makes sealed memfds and passes their descriptors to its peers, who map them
//! read-only. Way of the data: [`CommunicatorId`] (made by one rank, carried by the coordinator) → peers meet at abstract
//! unix sockets and prove the id's secret to each other → descriptors pass → signals are counters in shared pages, and
//! payload is read straight from the peer's mapping. What is computed from it is the business of `lockstep-collective`.

mod abort;
mod communicator;
mod control;
mod error;
mod id;
mod link;
mod memory;
mod rendezvous;

pub use abort::Aborter;
pub use communicator::{Call, CallKind, Communicator, Signal};
pub use error::Error;
pub use id::CommunicatorId;
pub use memory::{HostMemory, MemoryHold, PeerMemory};

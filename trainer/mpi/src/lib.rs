//! The [`Collective`](lockstep_collective::Collective) trait over MPI, for CPU clusters and their fabrics.
//!
//! Way of the data: [`Library`] starts MPI and says what it is; [`Communicator::connect`] gives the processes the ranks of
//! a generation. `calls` and `inbox` are how a full collective begins: every rank tells every other one which call it
//! makes, before payload is believed. `chunks` cuts a reduction into messages (pure), `wire` halves those that may be
//! (pure), `reduce` and `gather` move them, and the lane tree is added by `lockstep-collective`.
//!
//! No wait is inside MPI: every operation is started and then tested ([`wait`]), so that an abort from another thread ends
//! it. Every return code is checked ([`fault`]); the communicator returns errors instead of ending the process.
//!
//! One thread calls MPI at a time (MPI_THREAD_SERIALIZED): the one that makes the collective's calls.

mod calls;
mod chunks;
mod communicator;
mod fault;
mod gather;
mod inbox;
mod library;
mod reduce;
mod requests;
mod wait;
mod wire;

pub use communicator::{Communicator, Options};
pub use library::Library;

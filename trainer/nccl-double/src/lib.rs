//! NCCL's C names over host memory, for tests: the ranks are threads of one process, and the unique id names their world.
//!
//! The crate is two things. As a cdylib it stands in for libnccl: [`names`] are NCCL's functions and `steering` those that
//! a test uses to look and to disturb. As an rlib it is the test's side: [`Double`] opens that cdylib and steers it.
//!
//! Way of an operation: a call puts it into the thread's open group (`group`) → the group's end starts a thread for each
//! communicator and says "in progress" → after so many polls the thread puts the operations on their streams (`launch`)
//! → a kernel runs when it is the first of its streams → data moves by copying when the kernels of both sides, or of all
//! ranks, run (`streams`, `moving`, `reduce`); what a test puts beside them waits in the same lines (`beside`). Everything is
//! in one [`state`] behind one lock.
//!
//! What it holds its callers to (NCCL 2.29.7's own rules):
//! 1. A communicator in progress answers everything but the poll and the abort with 4.
//! 2. Nothing is on a stream before the state is success: until the caller has seen that, `pending` counts its operations.
//! 3. Counts, types, roots and order must match between ranks; else both sides fail with 4.
//! 4. A handle after abort or destroy is counted as misuse, and nothing else happens.
//! 5. An abort fills with 0xA5 what was being received: memory in flight holds anything.
//! 6. `ncclCommDestroy` in a wrong state leaves the thread inside of a group, as the real one does.
//!
//! Unlike NCCL: a group waits for its polls, additions go in the order of ranks, and nothing is ever in a hurry.

mod beside;
mod control;
mod group;
mod launch;
mod life;
mod moving;
pub mod names;
mod operation;
mod reduce;
mod split;
mod state;
pub mod steering;
mod streams;

pub use control::Double;
pub use operation::{Call, Stage, StreamOperation};

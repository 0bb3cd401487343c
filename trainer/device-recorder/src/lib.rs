//! For tests: streams and events of a device that does not exist, and a proof of what they order.
//!
//! What lives here:
//! - [`Recorder`] registers a device guard for CUDA that records ([`recorder`]): a program that uses libtorch's streams
//!   and events runs unchanged over it, without a GPU.
//! - `operators`: libtorch's operators tell which watched memory they read and write, on which stream; what no operator
//!   does, a test adds with a [`Pen`] ([`pen`]).
//! - [`Log`] is what was recorded, entry by entry ([`log`]).
//! - [`check`] proves, over a log, that every two accesses to overlapping memory of which one writes are ordered by
//!   streams, events, waits and messages, or names the first two that are not ([`order`]).
//!
//! Data flows: program → shim → guard → log ← reads and writes of operators and of the test; log → checker → proof or the
//! missing edge.

pub mod log;
mod operators;
pub mod order;
pub mod pen;
pub mod recorder;

pub use log::{Access, Action, Entry, Log, Place, Range};
pub use order::{Proof, Unordered, check};
pub use pen::{Message, Pen};
pub use recorder::{Completion, Recorder, RecorderError};

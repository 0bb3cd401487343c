//! For tests: streams and events of a device that does not exist, and a proof of what they order.
//!
//! What lives here:
//! - [`Recorder`] registers a device guard for CUDA that records ([`recorder`]): a program that uses libtorch's streams
//!   and events runs unchanged over it, without a GPU. Tests add which memory is read and written where.
//! - [`Log`] is what was recorded, entry by entry ([`log`]).
//! - [`check`] proves, over a log, that every two accesses to overlapping memory of which one writes are ordered by
//!   streams, events, waits and messages, or names the first two that are not ([`order`]).
//!
//! Data flows: program → shim → guard → log ← reads and writes of the test; log → checker → proof or the missing edge.

pub mod log;
pub mod order;
pub mod recorder;

pub use log::{Access, Action, Entry, Log, Place, Range};
pub use order::{Proof, Unordered, check};
pub use recorder::{Completion, Message, Pen, Recorder, RecorderError};

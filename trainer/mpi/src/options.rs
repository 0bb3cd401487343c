//! What a communicator is told beside its place in the world.

use std::time::Duration;

/// How payload is cut (found by measurement, see the benchmark), and how long a rank waits.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of one message of a reduction; a multiple of 4.
    pub chunk_bytes: usize,
    /// Chunks that an owner receives ahead, and messages that a rank sends ahead to each owner.
    pub chunks_ahead: usize,
    /// Bytes of one message of a gather.
    pub gather_bytes: usize,
    /// Whether partials of bfloat16 values travel by halves within a host too. Between hosts they always do; within one,
    /// where the receiver copies from the sender's memory, packing costs more than it saves.
    pub halves_when_near: bool,
    /// How long a call waits for a rank that does nothing; for ever if not given.
    pub stall: Option<Duration>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            chunk_bytes: 256 << 10,
            chunks_ahead: 3,
            gather_bytes: 4 << 20,
            halves_when_near: false,
            stall: None,
        }
    }
}

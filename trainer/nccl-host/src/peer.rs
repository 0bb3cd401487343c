//! A peer's memory as this rank sees it: mapped, or mirrored.

use std::ops::Range;

use crate::memory::{HostMemory, PeerMemory};

/// A peer's memory of one buffer.
pub enum PeerView {
    /// The very memory, read-only here.
    Mapped(PeerMemory),
    /// What transfers have brought of it; zeros elsewhere.
    Mirror(HostMemory),
}

impl PeerView {
    /// The bytes `range`. Panics, like indexing, when they are not inside.
    #[track_caller]
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        match self {
            PeerView::Mapped(memory) => memory.bytes(range),
            PeerView::Mirror(memory) => memory.bytes(range),
        }
    }

    /// The float32 elements `range`. Panics, like indexing, when they are not inside.
    #[track_caller]
    pub fn floats(&self, range: Range<usize>) -> &[f32] {
        match self {
            PeerView::Mapped(memory) => memory.floats(range),
            PeerView::Mirror(memory) => memory.floats(range),
        }
    }

    /// The 64-bit words `range`. Panics, like indexing, when they are not inside.
    #[track_caller]
    pub fn words(&self, range: Range<usize>) -> &[u64] {
        match self {
            PeerView::Mapped(memory) => memory.words(range),
            PeerView::Mirror(memory) => memory.words(range),
        }
    }
}

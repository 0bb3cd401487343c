//! The parts that this process keeps, and who may have them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lockstep_proto::domain::Part;
use tokio::sync::Notify;

use crate::Token;

/// The values of a part; clones share them.
pub type Bytes = Arc<Vec<u8>>;

/// Which part: what one rank of a generation owned after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The step.
    pub step: u64,
    /// The number of the generation.
    pub generation: u64,
    /// The rank.
    pub part: u32,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "part {} of the snapshot of step {} (generation {})",
            self.part, self.step, self.generation
        )
    }
}

/// Everything that is kept.
#[derive(Default)]
pub(crate) struct Kept {
    state: Mutex<State>,
    /// Wakes those who wait for a part that is still being made.
    pub(crate) arrived: Notify,
}

#[derive(Default)]
struct State {
    parts: BTreeMap<Name, ([u8; 32], Bytes)>,
    tokens: BTreeMap<u64, Token>,
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn admit(&self, generation: u64, token: Token) {
        self.lock().tokens.insert(generation, token);
    }

    /// Whether this is the token of the generation. Hashed first, so that the time of the comparison says nothing.
    pub(crate) fn is_admitted(&self, generation: u64, token: &[u8]) -> bool {
        let known = self.lock().tokens.get(&generation).copied();
        known.is_some_and(|known| blake3::hash(&known) == blake3::hash(token))
    }

    pub(crate) fn keep(&self, name: Name, hash: [u8; 32], bytes: Bytes) -> Part {
        self.lock().parts.insert(name, (hash, bytes));
        self.arrived.notify_waiters();
        named(name, hash)
    }

    pub(crate) fn get(&self, name: Name) -> Option<([u8; 32], Bytes)> {
        self.lock().parts.get(&name).cloned()
    }

    pub(crate) fn parts(&self) -> Vec<Part> {
        let state = self.lock();
        state
            .parts
            .iter()
            .map(|(name, (hash, _))| named(*name, *hash))
            .collect()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lock().parts.values().map(|(_, bytes)| bytes.len()).sum()
    }

    pub(crate) fn free_before(&self, step: u64) {
        let mut state = self.lock();
        state.parts.retain(|name, _| name.step >= step);
        // Tokens of generations of which nothing is kept are of no use any more, but for the newest.
        let newest = state.tokens.keys().next_back().copied();
        let used: Vec<u64> = state.parts.keys().map(|name| name.generation).collect();
        state
            .tokens
            .retain(|generation, _| Some(*generation) == newest || used.contains(generation));
    }
}

fn named(name: Name, hash: [u8; 32]) -> Part {
    Part {
        step: name.step,
        generation: name.generation,
        part: name.part,
        hash,
    }
}

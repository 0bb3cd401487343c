//! The thread beside a rank that keeps its part and fetches that of its ward, while steps go on.
//!
//! The buddy of rank r is rank r + 1 (the last one's is rank 0). Each rank knows when its ward freezes, since it freezes
//! after the same steps, so nobody has to be told: it asks, and the ward's keeper answers when it has the part.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep_parts::{Keeper, Name, PartsError, Token, token};
use lockstep_proto::domain::{Generation, Part, Resume};
use lockstep_session::{AbortSignal, Voice};

use crate::error::TrainerError;
use crate::snapshot::part::Whole;

/// How long a ward's part is waited for. Its owner may be in the middle of hashing, or gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// A part that was frozen.
struct Frozen {
    name: Name,
    bytes: Vec<u8>,
}

/// Where a rank stands in its generation, as far as its snapshots go.
struct Ring {
    generation: u64,
    token: Token,
    ward: Option<(u32, String)>,
}

/// The thread of one generation. Dropping it waits for its end: the abort of the generation ends its waits.
pub struct Keeping {
    generation: u64,
    rank: u32,
    keeper: Arc<Keeper>,
    frozen: Option<SyncSender<Frozen>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeping {
    /// Starts the thread of `rank` in a generation.
    pub fn start(
        keeper: &Arc<Keeper>,
        generation: &Generation,
        rank: u32,
        voice: Voice,
        signal: AbortSignal,
    ) -> Result<Keeping, TrainerError> {
        let ranks = generation.ranks();
        let number = generation.stamp.generation;
        let ward = (ranks > 1).then(|| {
            let ward = (rank + ranks - 1) % ranks;
            (ward, generation.members[ward as usize].parts_address.clone())
        });
        let ring = Ring {
            generation: number,
            token: token(&generation.secret),
            ward,
        };
        keeper.admit(number, ring.token);
        // One part that waits while another is carried: with more the steps are faster than the memory.
        let (frozen, jobs) = sync_channel(1);
        let own = Arc::clone(keeper);
        let thread = std::thread::Builder::new()
            .name("snapshots".to_owned())
            .spawn(move || carry(&own, &ring, &jobs, &voice, &signal))
            .map_err(|error| TrainerError::Broken(format!("the thread of snapshots cannot be started: {error}")))?;
        Ok(Keeping {
            generation: number,
            rank,
            keeper: Arc::clone(keeper),
            frozen: Some(frozen),
            thread: Some(thread),
        })
    }

    fn name(&self, step: u64) -> Name {
        Name {
            step,
            generation: self.generation,
            part: self.rank,
        }
    }

    /// Hands a frozen part over. Whether it was taken: while two are still being carried, this one is given up.
    pub fn hand_over(&self, step: u64, bytes: Vec<u8>) -> bool {
        let name = self.name(step);
        let Some(frozen) = &self.frozen else { return false };
        match frozen.try_send(Frozen { name, bytes }) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// Keeps a part now, on this thread: what the rank holds when its generation ends in order.
    pub fn keep_now(&self, step: u64, bytes: Vec<u8>) -> Part {
        self.keeper.keep(self.name(step), Arc::new(bytes))
    }

    /// Frees the parts of steps before `step`.
    pub fn free_before(&self, step: u64) {
        self.keeper.free_before(step);
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        drop(self.frozen.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and costs a snapshot only.
            let _ended = thread.join();
        }
    }
}

fn carry(keeper: &Keeper, ring: &Ring, jobs: &Receiver<Frozen>, voice: &Voice, signal: &AbortSignal) {
    while let Ok(Frozen { name, bytes }) = jobs.recv() {
        voice.holds(keeper.keep(name, Arc::new(bytes)));
        let Some((ward, address)) = &ring.ward else { continue };
        let of_ward = Name { part: *ward, ..name };
        let is_over = || signal.is_set();
        let addresses = [address.clone()];
        match keeper.fetch(of_ward, &addresses, (&ring.token, None), PATIENCE, &is_over) {
            Ok(bytes) => voice.holds(keeper.keep(of_ward, bytes)),
            Err(PartsError::Over) => return,
            Err(error) => tracing::warn!(
                "the snapshot of step {} of generation {} will not stand: {error}",
                name.step,
                ring.generation
            ),
        }
    }
}

/// Fetches every part of the snapshot that a generation resumes from.
///
/// # Errors
/// A part cannot be had from anybody, or is damaged; the generation was aborted.
pub fn fetch(keeper: &Keeper, resume: &Resume, signal: &AbortSignal) -> Result<Whole, TrainerError> {
    let token = token(&resume.secret);
    let is_over = || signal.is_set();
    let mut parts = Vec::with_capacity(resume.parts.len());
    for (part, place) in (0..).zip(&resume.parts) {
        let name = Name {
            step: resume.step,
            generation: resume.generation,
            part,
        };
        let asked = (&token, Some(place.hash));
        parts.push(keeper.fetch(name, &place.addresses, asked, PATIENCE, &is_over)?);
    }
    Whole::read(resume.step, parts)
}

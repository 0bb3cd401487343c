//! Results of passes come to the host: once an exchange, through pinned memory, behind one event.
//!
//! The copy is on the compute stream, behind what made the words; the thread then asks the event, and listens for an abort
//! while it does. Without a device that has streams there is nothing to wait for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lockstep_autograd::memory_of;
use lockstep_collective::{Aborter, Accelerator, CollectiveError, Pinned, Stream};
use tch::Tensor;

use crate::device::compute::Compute;
use crate::device::pending::Pending;
use crate::error::TrainerError;

/// How long the event is asked without a pause; results of a pass are mostly there by then.
const EAGER: Duration = Duration::from_micros(200);
/// Between two questions after that.
const PAUSE: Duration = Duration::from_micros(20);

/// Pinned words, for one device.
struct Landing {
    accelerator: Arc<dyn Accelerator>,
    /// The words and how many there are; grows to the largest table of the first step and stays.
    pinned: Option<(Arc<dyn Pinned>, usize)>,
}

/// Reads what passes leave.
pub struct Reader {
    landing: Option<Landing>,
    aborter: Aborter,
}

impl Reader {
    /// A reader of results of `compute`; an abort ends its waits.
    pub fn new(compute: &Compute, aborter: Aborter) -> Reader {
        let landing = compute.accelerator().map(|accelerator| Landing {
            accelerator,
            pinned: None,
        });
        Reader { landing, aborter }
    }

    /// What a pass says, once its words are on the host.
    ///
    /// # Errors
    /// The device failed; somebody aborted.
    pub fn read<T: 'static>(&mut self, pending: Pending<T>) -> Result<T, TrainerError> {
        match (pending, &mut self.landing) {
            (Pending::OnDevice { words, say }, Some(landing)) => Ok(say(&landing.bring(&words, &self.aborter)?)),
            (pending, _) => pending.read(),
        }
    }
}

impl Landing {
    fn bring(&mut self, words: &Tensor, aborter: &Aborter) -> Result<Vec<u64>, TrainerError> {
        let count = words.numel();
        if count == 0 {
            return Ok(Vec::new());
        }
        let pinned = match &self.pinned {
            Some((pinned, room)) if count <= *room => Arc::clone(pinned),
            // The copies before this one have ended: each was waited for.
            _ => {
                let room = count.next_power_of_two().max(512);
                let pinned = self.accelerator.allocate_pinned(room)?;
                self.pinned = Some((Arc::clone(&pinned), room));
                pinned
            }
        };
        let memory = memory_of(words)?;
        self.accelerator
            .copy_to_host(memory.pointer(), &pinned, 0, Stream::Compute)?;
        let mark = self.accelerator.record(Stream::Compute)?.named("results");
        let asked = Instant::now();
        while !self.accelerator.is_done(&mark)? {
            aborter.check().map_err(CollectiveError::from)?;
            match asked.elapsed() < EAGER {
                true => std::hint::spin_loop(),
                false => std::thread::sleep(PAUSE),
            }
        }
        let read = pinned.words()[..count].iter();
        Ok(read.map(|word| word.load(Ordering::Relaxed)).collect())
    }
}

//! Results of passes come to the host: once an exchange, through pinned memory, behind one event.
//!
//! The copy is on the compute stream, behind what made the words; the thread then asks the event, and listens for an abort
//! while it does. Where tensors lie on the host there is nothing to wait for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_autograd::device::{CollectiveDevice, StreamName};
use lockstep_autograd::elements;
use lockstep_collective::Aborter;
use tch::{Kind, Tensor};

use crate::device::compute::Compute;
use crate::device::pending::Pending;
use crate::error::TrainerError;

/// How long the event is asked without a pause; results of a pass are mostly there by then.
const EAGER: Duration = Duration::from_micros(200);
/// Between two questions after that.
const PAUSE: Duration = Duration::from_micros(20);

/// Pinned words, for one device.
struct Landing {
    gpu: Arc<CollectiveDevice>,
    /// int64; grows to the largest table of the first step and stays.
    pinned: Option<Tensor>,
}

/// Reads what passes leave.
pub struct Reader {
    landing: Option<Landing>,
    aborter: Aborter,
}

impl Reader {
    /// A reader of results of `compute`; an abort ends its waits.
    pub fn new(compute: &Compute, aborter: Aborter) -> Reader {
        let landing = match compute {
            Compute::Host | Compute::HostTensors => None,
            Compute::Gpu(gpu) => Some(Landing {
                gpu: Arc::clone(gpu),
                pinned: None,
            }),
        };
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
        let room = self.pinned.as_ref().map_or(0, Tensor::numel);
        if room < count {
            // The copies before this one have ended: each was waited for.
            let grown = count.next_power_of_two().max(512);
            self.pinned = Some(self.gpu.cuda().pinned(&[grown as i64], Kind::Int64)?);
        }
        let Some(pinned) = &self.pinned else {
            return Ok(Vec::new());
        };
        let mut part = pinned.f_narrow(0, 0, count as i64)?;
        self.gpu.cuda().copy(StreamName::Compute, &mut part, words)?;
        let mark = self.gpu.mark(StreamName::Compute)?;
        let asked = Instant::now();
        while !self.gpu.is_done(&mark)? {
            aborter.check().map_err(lockstep_collective::CollectiveError::from)?;
            match asked.elapsed() < EAGER {
                true => std::hint::spin_loop(),
                false => std::thread::sleep(PAUSE),
            }
        }
        Ok(elements::<i64>(&part).iter().map(|word| word.cast_unsigned()).collect())
    }
}

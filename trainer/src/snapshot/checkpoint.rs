//! Checkpoints: what a rank owns goes into the run's store while the next steps are made, and comes back on any world.
//!
//! Way of data: engine → [`Frozen`] → the thread of [`Writing`] (hash, write) → the coordinator hears of it; and back:
//! manifest → [`Loading`] → engine.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep_checkpoint::{CheckpointError, CheckpointName, Limits, Part, PartEntry, Reader, Store};
use lockstep_proto::domain::{BlockRun, Checkpoint, Written};
use lockstep_session::Voice;

use crate::error::TrainerError;
use crate::snapshot::part::{bits_of, model_of};
use crate::snapshot::{RunState, Saved};
use crate::step::skipping::LossRecord;

/// What every step needs besides the tensors, as words of a checkpoint.
const OPTIMIZER_STEPS: &str = "optimizer.steps";
const MODEL_STEPS: &str = "loss_model.steps";
const LOSSES: [&str; 4] = ["losses.accepted", "losses.mean", "losses.variance", "losses.skips"];
const MODEL_VALUES: [&str; 3] = ["loss_model.loss", "loss_model.gradient_dot", "loss_model.lower_bound"];

/// The words of a checkpoint.
pub fn words(state: &RunState) -> Vec<(String, u64)> {
    let (model_steps, values) = bits_of(&state.loss_model);
    let mut words = vec![
        (OPTIMIZER_STEPS.to_owned(), state.optimizer_steps),
        (MODEL_STEPS.to_owned(), u64::from(model_steps)),
    ];
    words.extend(MODEL_VALUES.iter().map(|name| (*name).to_owned()).zip(values));
    words.extend(
        LOSSES
            .iter()
            .map(|name| (*name).to_owned())
            .zip(state.losses.to_words()),
    );
    words
}

/// A place for checkpoints that is opened when it is first needed. Clones are the same one.
#[derive(Clone)]
pub struct Place {
    location: String,
    store: Arc<OnceLock<Store>>,
}

impl Place {
    /// The place of that name: a folder, or `s3://BUCKET/PREFIX`.
    pub fn new(location: String) -> Place {
        Place {
            location,
            store: Arc::default(),
        }
    }

    fn open(&self) -> Result<&Store, CheckpointError> {
        match self.store.get() {
            Some(store) => Ok(store),
            None => {
                let opened = Store::open(&self.location, Limits::default())?;
                Ok(self.store.get_or_init(|| opened))
            }
        }
    }

    /// Opens a checkpoint for reading.
    ///
    /// # Errors
    /// It is not there or damaged, or the store does not answer.
    pub fn load(&self, checkpoint: Checkpoint) -> Result<Loading, TrainerError> {
        let name = CheckpointName {
            term: checkpoint.term,
            generation: checkpoint.generation,
            step: checkpoint.step,
        };
        Ok(Loading(self.open()?.open_checkpoint(name)?))
    }
}

/// A checkpoint that is being loaded.
pub struct Loading(Reader);

impl Saved for Loading {
    fn state(&self) -> Result<RunState, TrainerError> {
        let run = self.0.manifest().run();
        let word = |name: &str| {
            run.words.get(name).copied().ok_or_else(|| {
                TrainerError::Refused(format!(
                    "the checkpoint of step {} has no word {name}: another build wrote it",
                    run.step
                ))
            })
        };
        let [loss, dot, bound] = MODEL_VALUES;
        let values = [word(loss)?, word(dot)?, word(bound)?];
        let steps = u32::try_from(word(MODEL_STEPS)?).unwrap_or(u32::MAX);
        let [accepted, mean, variance, skips] = LOSSES;
        Ok(RunState {
            optimizer_steps: word(OPTIMIZER_STEPS)?,
            loss_model: model_of((steps, values)),
            losses: LossRecord::of_words([word(accepted)?, word(mean)?, word(variance)?, word(skips)?]),
        })
    }

    /// No value is given out whose block has another hash than the manifest says.
    fn fill(&self, tensor: &str, array: &str, start: usize, values: &mut [f32]) -> Result<(), TrainerError> {
        Ok(self.0.read(tensor, array, start..start + values.len(), values)?)
    }
}

/// What a rank owned after a step, on its way into a store.
pub struct Frozen {
    /// The step.
    pub step: u64,
    /// The values.
    pub part: Part<'static>,
    /// Values of the whole run.
    pub words: Vec<(String, u64)>,
}

/// How long the end of a generation waits for parts that are still being written. A store that does not answer must not hold
/// a rank back that the others wait for; then its part is written for nothing.
const LAST_PARTS: Duration = Duration::from_secs(1);

/// The thread that writes a rank's parts in one generation. Dropping it waits a moment until what it has is written.
pub struct Writing {
    frozen: Option<SyncSender<Frozen>>,
    thread: Option<JoinHandle<()>>,
    /// Hears of nothing, until the thread ends.
    ended: Receiver<()>,
}

impl Writing {
    /// Starts the thread.
    pub fn start(place: &Place, voice: Voice) -> Result<Writing, TrainerError> {
        // One that waits while another is written: a store that is slower than that gets fewer checkpoints.
        let (frozen, jobs) = sync_channel(1);
        let place = place.clone();
        let (ends, ended) = sync_channel(0);
        let thread = std::thread::Builder::new()
            .name("checkpoints".to_owned())
            .spawn(move || {
                let _ends: SyncSender<()> = ends;
                carry(&place, &jobs, &voice);
            })
            .map_err(|error| TrainerError::Broken(format!("the thread of checkpoints cannot be started: {error}")))?;
        Ok(Writing {
            frozen: Some(frozen),
            thread: Some(thread),
            ended,
        })
    }

    /// Hands a frozen part over. Whether it was taken: while two are still being written, this one is given up.
    pub fn hand_over(&self, frozen: Frozen) -> bool {
        let Some(queue) = &self.frozen else { return false };
        match queue.try_send(frozen) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// Hands the last part over, and waits until it is written.
    pub fn finish(mut self, frozen: Frozen) {
        if let Some(queue) = &self.frozen {
            // Refused only where the thread has panicked, which was printed.
            let _taken = queue.send(frozen);
        }
        self.end();
    }

    fn end(&mut self) {
        drop(self.frozen.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and costs a checkpoint only.
            let _ended = thread.join();
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        drop(self.frozen.take());
        match self.ended.recv_timeout(LAST_PARTS) {
            Err(RecvTimeoutError::Timeout) => {
                tracing::warn!(
                    "a part of a checkpoint is still being written, and its generation does not wait for it"
                );
            }
            _ => self.end(),
        }
    }
}

fn carry(place: &Place, jobs: &Receiver<Frozen>, voice: &Voice) {
    lockstep_checkpoint::stand_back();
    while let Ok(Frozen { step, part, words }) = jobs.recv() {
        // A rank that owns nothing has nothing to write.
        let written = part.seal().and_then(|part| match part.entry().blocks.is_empty() {
            true => Ok(part.entry().clone()),
            false => place.open()?.write(&part),
        });
        let written = written.map(|entry| Box::new(described(&entry, words)));
        if let Err(error) = &written {
            tracing::warn!("no checkpoint of step {step}: {error}");
        }
        voice.wrote(step, written.map_err(|error| error.to_string()));
    }
}

/// A part as the coordinator hears of it: neighbouring blocks of an array as one run.
fn described(entry: &PartEntry, words: Vec<(String, u64)>) -> Written {
    let mut runs: Vec<BlockRun> = Vec::new();
    for block in &entry.blocks {
        let [start, end] = block.elements.map(|element| element as u64);
        let hash = block.hash.to_bytes();
        match runs.last_mut() {
            Some(run) if run.tensor == block.tensor && run.array == block.array && run.elements.end == start => {
                run.elements.end = end;
                run.hashes.push(hash);
            }
            _ => runs.push(BlockRun {
                tensor: block.tensor.clone(),
                array: block.array.clone(),
                elements: start..end,
                offset: block.offset,
                hashes: vec![hash],
            }),
        }
    }
    Written {
        words,
        hash: entry.hash.to_bytes(),
        bytes: entry.bytes,
        runs,
    }
}

//! The thread that commits manifests of checkpoints, and deletes the checkpoints that need not stay.
//!
//! Way of data: machine → [`Commission`] → manifest → store → `Event::Commissioned` back to the machine. Nobody waits for a
//! slow store: the run goes on meanwhile.

use std::collections::{BTreeMap, HashSet};
use std::sync::mpsc::{Receiver, Sender, channel};

use lockstep_checkpoint::{
    BlockEntry, CheckpointError, CheckpointName, ContentHash, GRACE, Limits, Manifest, PartEntry, Retention, RunValues,
    Store, TensorEntry, of_model,
};
use lockstep_config::RunConfig;
use lockstep_inventory::{TreatmentError, inventory_of, treatments_of};
use lockstep_proto::domain::{BlockRun, Written};

use crate::ledger::RunRow;
use crate::run::{Commission, Event, name_of_checkpoint as name};
use crate::service::mailbox::{Letter, Mailbox};

/// What every checkpoint of a run holds, and where.
pub(crate) struct CheckpointOptions {
    /// A folder, or `s3://BUCKET/PREFIX`.
    pub(crate) store: String,
    /// The run.
    pub(crate) run: RunRow,
    /// Every tensor of the model with its arrays.
    pub(crate) tensors: Vec<TensorEntry>,
    /// Which checkpoints stay.
    pub(crate) retention: Retention,
}

impl CheckpointOptions {
    /// How many checkpoints a config wants to stay.
    pub(crate) fn retention(config: &RunConfig) -> Retention {
        Retention {
            keep_last: usize::try_from(config.checkpoint.keep_last).unwrap_or(usize::MAX),
            keep_every: config.checkpoint.keep_every,
            grace: GRACE,
        }
    }
}

/// Every tensor of a config's model with what a checkpoint holds of it, in the order of the inventory.
pub(crate) fn tensors(config: &RunConfig, vocabulary: u32) -> Result<Vec<TensorEntry>, TreatmentError> {
    let treatments = treatments_of(config, vocabulary)?;
    let inventory = inventory_of(config, vocabulary);
    Ok(of_model(&inventory, &treatments, config.optimizer.method))
}

/// The thread's face.
pub(crate) struct Committer {
    commissions: Sender<Commission>,
}

impl Committer {
    /// Starts the thread. The store is opened when the first checkpoint comes.
    pub(crate) fn start(options: CheckpointOptions, mailbox: Mailbox) -> std::io::Result<Committer> {
        let (commissions, waiting) = channel();
        let thread = std::thread::Builder::new().name("coordinator-checkpoints".to_owned());
        // Not waited for at the end: a store that does not answer must not hold the process.
        thread.spawn(move || carry(&options, &waiting, &mailbox))?;
        Ok(Committer { commissions })
    }

    /// Has a manifest committed.
    pub(crate) fn commit(&self, commission: Commission) {
        // Refused only where the thread has panicked, which was printed; the checkpoint is then never said to be there.
        let _taken = self.commissions.send(commission);
    }
}

fn carry(options: &CheckpointOptions, waiting: &Receiver<Commission>, mailbox: &Mailbox) {
    let mut open: Option<Store> = None;
    while let Ok(commission) = waiting.recv() {
        let checkpoint = commission.checkpoint;
        let known: HashSet<CheckpointName> = commission.known.iter().chain([&checkpoint]).map(name).collect();
        let result = commit(options, &mut open, commission);
        match &result {
            Ok(()) => tracing::info!("the checkpoint of step {} is committed", checkpoint.step),
            Err(error) => tracing::warn!("no checkpoint of step {}: {error}", checkpoint.step),
        }
        let result = result.map_err(|error| error.to_string());
        let is_good = result.is_ok();
        let told = Letter::Event(Event::Commissioned { checkpoint, result });
        if mailbox.operators.send(told).is_err() {
            return;
        }
        if let (true, Some(store)) = (is_good, &open) {
            match store.retain(&options.retention, |name| known.contains(name)) {
                Ok(swept) if swept.checkpoints.is_empty() => {}
                Ok(swept) => {
                    let names: Vec<String> = swept.checkpoints.iter().map(|name| name.step.to_string()).collect();
                    tracing::info!("deleted the checkpoints of step {}", names.join(", "));
                }
                Err(error) => tracing::warn!("older checkpoints could not be deleted: {error}"),
            }
        }
    }
}

fn commit(
    options: &CheckpointOptions,
    open: &mut Option<Store>,
    commission: Commission,
) -> Result<(), CheckpointError> {
    let Commission {
        checkpoint,
        cursor,
        schedule_version,
        parameter_hash,
        parts,
        known: _,
    } = commission;
    let words: BTreeMap<String, u64> = parts
        .first()
        .map(|part| part.words.iter().cloned().collect())
        .unwrap_or_default();
    let run = RunValues {
        run_id: options.run.run_id.clone(),
        config_hash: options.run.config_hash.clone(),
        config_toml: options.run.config_toml.clone(),
        step: checkpoint.step,
        term: checkpoint.term,
        generation: checkpoint.generation,
        cursor,
        schedule_version,
        words,
        parameter_hash: blake3::Hash::from_bytes(parameter_hash).to_hex().to_string(),
    };
    // A rank that owns nothing has written nothing.
    let parts = parts.into_iter().filter(|part| !part.runs.is_empty());
    let parts: Vec<PartEntry> = parts.map(|part| entry(part, &options.tensors)).collect();
    let manifest = Manifest::new(run, options.tensors.clone(), parts)?;
    let store = match open {
        Some(store) => store,
        None => open.insert(Store::open(&options.store, Limits::default())?),
    };
    store.commit(&manifest).map(|_name| ())
}

/// A part as the manifest names it. A run that is not what the tensors say becomes blocks that the manifest refuses.
fn entry(part: Written, tensors: &[TensorEntry]) -> PartEntry {
    let mut blocks = Vec::new();
    for run in &part.runs {
        let known = tensors.iter().find(|tensor| tensor.name == run.tensor);
        let array = known.and_then(|tensor| Some((tensor, tensor.array(&run.array)?)));
        let borders: Vec<std::ops::Range<usize>> = match array {
            Some((tensor, array)) => tensor.blocks(array).filter(|block| is_inside(run, block)).collect(),
            None => Vec::new(),
        };
        let mut offset = run.offset;
        for (elements, hash) in borders.into_iter().zip(&run.hashes) {
            let bytes = 4 * elements.len() as u64;
            blocks.push(BlockEntry {
                tensor: run.tensor.clone(),
                array: run.array.clone(),
                elements: [elements.start, elements.end],
                offset,
                hash: hash_of(*hash),
            });
            offset += bytes;
        }
    }
    PartEntry {
        hash: hash_of(part.hash),
        bytes: part.bytes,
        blocks,
    }
}

fn is_inside(run: &BlockRun, block: &std::ops::Range<usize>) -> bool {
    run.elements.start <= block.start as u64 && block.end as u64 <= run.elements.end
}

fn hash_of(bytes: [u8; 32]) -> ContentHash {
    blake3::Hash::from_bytes(bytes).into()
}

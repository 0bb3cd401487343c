//! Micro-batches: the tokens that go into one forward pass, for training and for validation.

use std::ops::Range;
use std::sync::Arc;

use crate::dataset::{Dataset, Split};
use crate::error::DataError;
use crate::order::Order;

/// The target of a place that counts for nothing.
pub const IGNORE: i64 = -1;

/// One micro-batch, row-major `[rows, columns]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MicroBatch {
    /// Sequences.
    pub rows: u32,
    /// Tokens in a sequence.
    pub columns: u32,
    /// Input tokens, `[rows, columns]`.
    pub inputs: Vec<i64>,
    /// The token after each input, or [`IGNORE`], `[rows, columns]`.
    pub targets: Vec<i64>,
    /// Targets that are not [`IGNORE`].
    pub counted: u64,
}

impl MicroBatch {
    fn empty(rows: u32, columns: u32) -> MicroBatch {
        let places = rows as usize * columns as usize;
        MicroBatch {
            rows,
            columns,
            inputs: Vec::with_capacity(places),
            targets: Vec::with_capacity(places),
            counted: 0,
        }
    }

    /// Appends a row from its window of at most `columns + 1` tokens; what is missing is padded and ignored.
    fn push(&mut self, window: &[u32]) {
        let columns = self.columns as usize;
        let predictions = window.len().saturating_sub(1);
        let padding = columns - predictions;
        self.inputs
            .extend(window.iter().take(predictions).map(|token| i64::from(*token)));
        self.inputs.extend(std::iter::repeat_n(0, padding));
        self.targets
            .extend(window.iter().skip(1).map(|token| i64::from(*token)));
        self.targets.extend(std::iter::repeat_n(IGNORE, padding));
        self.counted += predictions as u64;
    }
}

/// The training micro-batch that holds the samples with these global indices.
///
/// # Errors
/// A shard cannot be read, or `order` is of more samples than the split has.
pub fn micro_batch(
    split: &Split,
    order: &Order,
    samples: Range<u64>,
    sequence_length: u32,
) -> Result<MicroBatch, DataError> {
    let rows = u32::try_from(samples.end - samples.start).unwrap_or(u32::MAX);
    let mut batch = MicroBatch::empty(rows, sequence_length);
    let mut window = vec![0; sequence_length as usize + 1];
    for index in samples {
        split.read(order.sample(index) * u64::from(sequence_length), &mut window)?;
        batch.push(&window);
    }
    Ok(batch)
}

/// The whole validation split as fixed micro-batches: every token but the first is predicted exactly once.
#[derive(Debug, Clone)]
pub struct ValidationSet {
    dataset: Arc<Dataset>,
    micro_batch: u32,
    sequence_length: u32,
}

impl ValidationSet {
    /// Micro-batches of `micro_batch` sequences of `sequence_length` tokens over the validation split of `dataset`.
    pub fn new(dataset: Arc<Dataset>, micro_batch: u32, sequence_length: u32) -> ValidationSet {
        ValidationSet {
            dataset,
            micro_batch,
            sequence_length,
        }
    }

    /// Tokens that are predicted.
    pub fn tokens(&self) -> u64 {
        self.dataset.validation().tokens().saturating_sub(1)
    }

    /// Micro-batches in the set.
    pub fn count(&self) -> u32 {
        let windows = self.tokens().div_ceil(self.sequence_length.into());
        u32::try_from(windows.div_ceil(self.micro_batch.into())).unwrap_or(u32::MAX)
    }

    /// Micro-batch `index` of the set. All have the same shape; the last one is padded with ignored targets.
    ///
    /// # Errors
    /// `index` is not below [`ValidationSet::count`], or a shard cannot be read.
    pub fn micro_batch(&self, index: u32) -> Result<MicroBatch, DataError> {
        let split = self.dataset.validation();
        let length = u64::from(self.sequence_length);
        let mut batch = MicroBatch::empty(self.micro_batch, self.sequence_length);
        let first_row = u64::from(index) * u64::from(self.micro_batch);
        if index >= self.count() {
            let first = first_row * length;
            return Err(DataError::OutOfRange {
                first,
                end: first + 1,
                tokens: split.tokens(),
            });
        }
        let mut window = Vec::new();
        for row in first_row..first_row + u64::from(self.micro_batch) {
            let first = (row * length).min(self.tokens());
            let end = (first + length + 1).min(split.tokens());
            window.resize((end - first) as usize, 0);
            split.read(first, &mut window)?;
            batch.push(&window);
        }
        Ok(batch)
    }
}

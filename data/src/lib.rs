//! Training data: from text files to the micro-batches of a step.
//!
//! Way of data: [`prepare()`] reads text, splits off the last tenth for validation, encodes both with a [`Tokenizer`] and
//! writes shards ([`shard`]) with a manifest ([`manifest`]) that holds their hashes. [`Dataset::open`] checks all of
//! it. [`Order`] says which window of tokens the i-th sample is, [`lanes`] which samples a lane takes in a step,
//! [`micro_batch`] turns samples into tensors' contents, and [`Loader`] does so ahead of need on a thread of its own.
//! [`ValidationSet`] deals the whole validation split in fixed micro-batches. Samples, lanes and order are pure
//! functions: any rank finds any sample by arithmetic.

mod batch;
mod dataset;
mod error;
pub mod lanes;
mod loader;
pub mod manifest;
mod order;
pub mod prepare;
pub mod shard;
mod text;
mod tokenizer;

pub use batch::{IGNORE, MicroBatch, ValidationSet, micro_batch};
pub use dataset::{Dataset, Split};
pub use error::DataError;
pub use lanes::{lane_micro_batches, micro_batch_samples, rank_lanes};
pub use loader::Loader;
pub use manifest::Manifest;
pub use order::Order;
pub use prepare::{Options, Summary, prepare};
pub use tokenizer::{Tokenizer, TokenizerChoice};

//! What a checkpoint is: written in parts by owners, committed by the coordinator, verified, and read back on any world.
//! Free of libtorch.
//!
//! - [`tensors`]: named tensors with named float32 arrays, cut into blocks by their shapes alone
//! - [`part`]: one owner's blocks as a safetensors file, named by its hash
//! - [`manifest`]: what makes parts a checkpoint; [`hash`]: BLAKE3 as text
//! - [`store`]: a folder, S3 or memory; `write` and `commit` put parts and manifests into it
//! - [`read`]: any range of any array; [`verify`]: the newest good checkpoint; [`retention`]: what is deleted
//! - [`inspect`](mod@inspect): what a checkpoint holds
//!
//! Data flows: owner's slices → [`Part`] → [`Sealed`] → [`Store::write`] → [`PartEntry`] → (to the coordinator) →
//! [`Manifest::new`] → [`Store::commit`]; and back: [`Store::newest_good`] → [`Reader::read`] → another owner's slices.

mod commit;
mod coverage;
pub mod error;
pub mod hash;
pub mod inspect;
pub mod manifest;
pub mod part;
pub mod read;
pub mod retention;
pub mod store;
pub mod tensors;
pub mod verify;
mod write;

pub use error::CheckpointError;
pub use hash::ContentHash;
pub use inspect::{Inspection, inspect};
pub use manifest::{CheckpointName, Manifest, RunValues};
pub use part::{BlockEntry, Part, PartEntry, Sealed};
pub use read::Reader;
pub use retention::{GRACE, Retention, Swept, to_delete};
pub use store::{Limits, Store, stand_back};
pub use tensors::{ArrayEntry, BLOCK, TensorEntry, TensorKind, of_model};
pub use verify::{Depth, Newest, Refused};

//! Rows of the ledger as bytes: JSON with a version in front.

use std::path::Path;

use lockstep_proto::domain::{Checkpoint, Outcome, Part};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::ledger::LedgerError;
use crate::run::{Farewell, Wish};

/// Version of every row. Another one is refused by name.
pub const LEDGER_VERSION: u64 = 1;

/// What run a folder holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRow {
    /// Unique among all runs.
    pub run_id: String,
    /// Its name.
    pub name: String,
    /// Its config as resolved.
    pub config_toml: String,
    /// Hash of the config.
    pub config_hash: String,
    /// Hash of the data manifest.
    pub data_hash: String,
    /// Samples of one epoch; 0 in ledgers of versions that planned nothing by epochs.
    #[serde(default)]
    pub training_samples: u64,
}

/// One life of the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TermRow {
    /// Its process.
    pub pid: u32,
    /// When it began, in seconds of Unix time.
    pub began: f64,
}

/// A decision that people may ask about later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionRow {
    /// The term that decided.
    pub term: u64,
    /// When, in seconds of Unix time.
    pub at: f64,
    /// One sentence.
    pub reason: String,
}

/// A call that somebody must be able to ask about later: an order, or one that was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallRow {
    /// The term that was called.
    pub term: u64,
    /// When, in seconds of Unix time.
    pub at: f64,
    /// Who: role and name as they were proved, `this machine`, or `nobody known`.
    pub who: String,
    /// The address that it came from.
    pub from: String,
    /// What was called.
    pub call: String,
    /// Whether it was refused.
    pub is_refused: bool,
    /// What the coordinator answered.
    pub answer: String,
    /// For how many calls the row stands: of too many refused ones only the number is kept.
    pub calls: u64,
}

/// What operators want from then on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct WishRow {
    pub(super) term: u64,
    pub(super) wish: Wish,
}

/// A checkpoint that was committed, or that turned out to be of no use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct CheckpointRow {
    pub(super) checkpoint: Checkpoint,
    pub(super) refused: Option<String>,
}

/// How the member of a rank ended its part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct FarewellRow {
    pub(super) generation: u64,
    pub(super) rank: u32,
    pub(super) outcome: Outcome,
    pub(super) step: u64,
}

impl FarewellRow {
    /// One row a rank of a generation.
    pub(super) fn key(&self) -> u64 {
        self.generation << 24 | u64::from(self.rank)
    }

    pub(super) fn into_parts(self) -> (u64, u32, Farewell) {
        (self.generation, self.rank, (self.outcome, self.step))
    }
}

#[derive(Serialize, Deserialize)]
struct Row<T> {
    version: u64,
    record: T,
}

pub(super) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Row {
        version: LEDGER_VERSION,
        record,
    })
}

pub(super) fn decode<T: DeserializeOwned>(
    file: &Path,
    table: &'static str,
    key: u64,
    bytes: &[u8],
) -> Result<T, LedgerError> {
    let broken = |error: serde_json::Error| LedgerError::Row {
        file: file.to_owned(),
        table,
        key,
        cause: error.to_string(),
    };
    // The version first: a row of another version may have any shape.
    let found = serde_json::from_slice::<Row<IgnoredAny>>(bytes)
        .map_err(broken)?
        .version;
    if found != LEDGER_VERSION {
        return Err(LedgerError::UnknownVersion {
            file: file.to_owned(),
            table,
            found,
        });
    }
    Ok(serde_json::from_slice::<Row<T>>(bytes).map_err(broken)?.record)
}

/// The record of a row as JSON.
pub(super) fn record_of(bytes: &[u8]) -> Result<serde_json::Value, String> {
    let row: Row<serde_json::Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    match row.version {
        LEDGER_VERSION => Ok(row.record),
        found => Err(format!(
            "it has version {found}, and this build knows version {LEDGER_VERSION} only"
        )),
    }
}

/// The record of a row; one sentence where it cannot be read.
pub(super) fn typed_record_of<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    // The version first: a row of another version may have any shape.
    record_of(bytes)?;
    let row: Row<T> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Ok(row.record)
}

/// The parts of a row of snapshots.
pub(super) fn parts_of(bytes: &[u8]) -> Option<Vec<Part>> {
    typed_record_of(bytes).ok()
}

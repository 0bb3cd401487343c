//! What can be wrong with a checkpoint, its store or a call. Each error is a sentence: what, where, what to do.

use crate::hash::ContentHash;
use crate::manifest::{CheckpointName, VERSION};

/// Why something about checkpoints could not be done.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A store's address is not one.
    #[error("{location:?} is no place for checkpoints: {why}")]
    Location {
        /// As given.
        location: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// The store did not do what it was asked for. This says nothing about what it holds.
    #[error("the checkpoint store {store} could not {doing} {file}: {cause}. {advice}")]
    Store {
        /// The store.
        store: String,
        /// What was asked for, as a verb.
        doing: &'static str,
        /// The file inside the store.
        file: String,
        /// What it answered.
        cause: String,
        /// What to do.
        advice: &'static str,
    },
    /// A file that should be there is not.
    #[error(
        "{file} is missing from the checkpoint store {store}{for_whom}. Use another checkpoint, or restore the file"
    )]
    Missing {
        /// The store.
        store: String,
        /// The file inside the store.
        file: String,
        /// Who needs it: empty, or ", and … needs it".
        for_whom: String,
    },
    /// A file is there and is not what it should be.
    #[error(
        "checkpoint {checkpoint} in {store} is damaged: {file}{block} {what}. It is not loaded; use the one before"
    )]
    Damaged {
        /// The store.
        store: String,
        /// The checkpoint.
        checkpoint: CheckpointName,
        /// The file inside the store.
        file: String,
        /// Empty, or " in block …".
        block: String,
        /// What is wrong with it.
        what: String,
    },
    /// A part whose content is not what its name says.
    #[error("{file} in the checkpoint store {store} has content of hash {found}. It is not used; write it again")]
    Altered {
        /// The store.
        store: String,
        /// The file inside the store.
        file: String,
        /// The hash of what is there.
        found: ContentHash,
    },
    /// A manifest of a version that this build does not know.
    #[error(
        "checkpoint {checkpoint} in {store} has format version {found}; this build reads version {VERSION}. \
         Use the build that wrote it, or another checkpoint"
    )]
    UnknownVersion {
        /// The store.
        store: String,
        /// The checkpoint.
        checkpoint: CheckpointName,
        /// Its version.
        found: u64,
    },
    /// Parts that do not make a whole checkpoint.
    #[error("the parts of step {step} make no checkpoint: {what}. Nothing was committed; the checkpoint before stands")]
    Incomplete {
        /// The step.
        step: u64,
        /// What is missing, doubled or wrong.
        what: String,
    },
    /// Another checkpoint has that name already.
    #[error(
        "checkpoint {checkpoint} is in {store} already, with other content. Nothing was overwritten; \
         a coordinator that lives again must take a higher term"
    )]
    Exists {
        /// The store.
        store: String,
        /// The name.
        checkpoint: CheckpointName,
    },
    /// A call with arguments that fit no tensor, array or block: a mistake in the program.
    #[error("{0}")]
    Request(String),
}

impl CheckpointError {
    /// Whether the checkpoint itself is at fault, so that another one should be tried; a store that cannot be reached
    /// is no reason to go back to an older step.
    pub fn refuses(&self) -> bool {
        matches!(
            self,
            CheckpointError::Missing { .. } | CheckpointError::Damaged { .. } | CheckpointError::UnknownVersion { .. }
        )
    }
}

/// An error with everything that caused it, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        // Many errors quote their source already.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text.replace('\n', " ").trim_end_matches('.').to_owned()
}

//! What can be wrong with data, as sentences for people.

use std::path::{Path, PathBuf};

/// Why data was refused: each sentence names the file and says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// A file or folder cannot be read or written.
    #[error("cannot {action} {}: {reason}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A folder without a manifest.
    #[error(
        "{} is not a data folder (it has no {}); make one with `lockstep data prepare --out DIR PATH…`",
        path.display(), crate::manifest::FILE
    )]
    NotADataset {
        /// The folder.
        path: PathBuf,
    },
    /// A format version that this build does not know.
    #[error(
        "{}: this is {format} version {found}, and this build reads version {known} only; use the build that wrote it, or prepare the data again",
        path.display()
    )]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// Which format.
        format: &'static str,
        /// The version found.
        found: String,
        /// The version known.
        known: u32,
    },
    /// A file that says something else than it should.
    #[error("{}: {reason}; copy the data folder anew, or make it again with `lockstep data prepare`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Input of `prepare` that cannot be used.
    #[error("{0}")]
    Input(String),
    /// Tokens outside of a split were asked for.
    #[error("tokens {first}..{end} were asked for, but the split has {tokens} tokens")]
    OutOfRange {
        /// First token asked for.
        first: u64,
        /// One past the last.
        end: u64,
        /// Tokens there are.
        tokens: u64,
    },
    /// The loader was asked for more than was submitted, or its thread has ended.
    #[error("the loader has no micro-batch to give: {0}")]
    Loader(&'static str),
    /// `prepare` was interrupted.
    #[error("interrupted; nothing was written")]
    Interrupted,
}

impl DataError {
    pub(crate) fn system(action: &'static str, path: &Path, error: &std::io::Error) -> DataError {
        DataError::System {
            action,
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> DataError {
        DataError::Damaged {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

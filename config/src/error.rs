//! What can be wrong with a config, as sentences for people.

use std::path::PathBuf;

/// Why a config was refused: each sentence names the file, the dotted key and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the config {}: {reason}; give the path of a readable TOML file",
        path.display()
    )]
    Unreadable {
        /// The path as given.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The text is not TOML.
    #[error("{origin}, line {line}, column {column}: this is not valid TOML ({reason}); correct that line")]
    Syntax {
        /// The file, or what stands for it.
        origin: String,
        /// 1-based line.
        line: usize,
        /// 1-based column, in characters.
        column: usize,
        /// What the parser said.
        reason: String,
    },
    /// A key that no section knows.
    #[error("{origin}: unknown key `{key}`{}", suggestion(nearest))]
    UnknownKey {
        /// The file, or what stands for it.
        origin: String,
        /// The dotted key as written.
        key: String,
        /// The nearest known dotted key.
        nearest: Option<String>,
    },
    /// A key that has to be there and is not.
    #[error("{origin}: the key `{key}` is missing; add it ({expected})")]
    Missing {
        /// The file, or what stands for it.
        origin: String,
        /// The dotted key.
        key: String,
        /// What it may be.
        expected: String,
    },
    /// A value of another type, or out of its range.
    #[error("{origin}: `{key}` is {value}, but it must be {expected}; {advice}")]
    Value {
        /// The file, or what stands for it.
        origin: String,
        /// The dotted key.
        key: String,
        /// The value as TOML.
        value: String,
        /// The allowed range.
        expected: String,
        /// What to do.
        advice: String,
    },
    /// A `--set` that cannot be taken.
    #[error("--set {text}: {reason}; write --set section.key=value")]
    Set {
        /// The word as given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
}

fn suggestion(nearest: &Option<String>) -> String {
    match nearest {
        Some(key) => format!("; did you mean `{key}`? Correct or remove it"),
        None => "; remove it".to_owned(),
    }
}

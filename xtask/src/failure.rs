//! How a chore fails: one sentence that says what, where and what to do, and the exit code that goes with it.

use std::process::ExitCode;

/// A chore that could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// What the user gave or the machine lacks; exit code 2.
    #[error("{0}")]
    Input(String),
    /// Anything else; exit code 1.
    #[error("{0}")]
    Work(String),
}

impl Failure {
    pub(crate) fn input(sentence: impl Into<String>) -> Failure {
        Failure::Input(sentence.into())
    }

    pub(crate) fn work(sentence: impl Into<String>) -> Failure {
        Failure::Work(sentence.into())
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Input(_) => ExitCode::from(2),
            Failure::Work(_) => ExitCode::from(1),
        }
    }
}

/// Gives an I/O error its sentence: `on_path("write", &path)` reads "cannot write PATH: REASON".
pub(crate) fn on_path<'a>(verb: &'a str, path: &'a std::path::Path) -> impl Fn(std::io::Error) -> Failure + 'a {
    move |error| match error.kind() {
        std::io::ErrorKind::StorageFull => Failure::work(format!(
            "cannot {verb} {}: the disk is full; free some space and run the same command again",
            path.display()
        )),
        _ => Failure::work(format!("cannot {verb} {}: {error}", path.display())),
    }
}

//! How a command ends other than well: an exit code and a sentence.

/// An end of a command that is not exit code 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// What was given cannot be used: exit code 2. Nothing was written.
    BadInput(String),
    /// An operator stopped the run; its final files are written: exit code 3. All was said already.
    Stopped,
    /// Anything else: exit code 1.
    Failed(String),
}

impl Ending {
    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Ending::BadInput(_) => 2,
            Ending::Stopped => 3,
            Ending::Failed(_) => 1,
        }
    }

    /// What is left to say.
    pub fn sentence(&self) -> Option<&str> {
        match self {
            Ending::BadInput(sentence) | Ending::Failed(sentence) => Some(sentence),
            Ending::Stopped => None,
        }
    }

    pub(crate) fn bad_input(error: impl std::fmt::Display) -> Ending {
        Ending::BadInput(error.to_string())
    }

    pub(crate) fn failed(error: impl std::fmt::Display) -> Ending {
        Ending::Failed(error.to_string())
    }
}

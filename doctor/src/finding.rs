//! One thing that is not as it should be, for people and for programs.

use serde::{Deserialize, Serialize};

use crate::catalogue::Id;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The run starts; it may be slow, or end early.
    Warning,
    /// The run cannot start, or cannot end well.
    Error,
}

impl Severity {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which kind; the catalogue has how bad it is, and why it matters.
    pub id: Id,
    /// The file, key, address or rank.
    pub place: String,
    /// What is wrong: a sentence without its full stop.
    pub what: String,
    /// What to do: another one.
    pub remedy: String,
}

impl Finding {
    /// A finding of this kind.
    pub fn new(id: Id, place: impl ToString, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding {
            id,
            place: place.to_string(),
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// In one sentence, as where a run is refused.
    pub fn sentence(&self) -> String {
        format!("{} ({}): {}; {}", self.what, self.id.word(), self.id.why(), self.remedy)
    }
}

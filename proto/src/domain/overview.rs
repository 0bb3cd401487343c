//! What a page of a run shows at one moment, and the alerts on it.

use serde::{Deserialize, Serialize};

use crate::domain::{CommittedStep, MemberStatus, RunStatus};

/// Something that people are told about without having asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Its kind, one word: `spike`, `stall`, `straggler`, `slow-data`, `disk`, `drift`, `checkpoint` or `certificate`.
    pub kind: String,
    /// The rank, where it is about one; else empty.
    pub about: String,
    /// When it was raised, in seconds of Unix time.
    pub since: f64,
    /// When it was cleared; none: it is still raised.
    pub until: Option<f64>,
    /// What is wrong, in one sentence.
    pub sentence: String,
}

/// A decision of the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastDecision {
    /// When, in seconds of Unix time.
    pub at: f64,
    /// Why, in one sentence.
    pub reason: String,
}

/// All that a page of a run shows, at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Overview {
    /// As `status` answers.
    pub status: RunStatus,
    /// As `members` answers.
    pub members: Vec<MemberStatus>,
    /// Losses of the whole run, nats a token, in a few hundred points at most; no number where there is none.
    pub losses: Vec<f64>,
    /// The newest step.
    pub last: Option<CommittedStep>,
    /// The newest decisions, in order.
    pub decisions: Vec<PastDecision>,
    /// Alerts that are raised, then those that were cleared.
    pub alerts: Vec<Alert>,
}

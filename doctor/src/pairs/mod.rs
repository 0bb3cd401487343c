//! Latency, rate and clocks between processes, over plain TCP: what any backend has at most.
//!
//! [`echo`] is both ends of one measurement. [`meeting`] brings all ranks together at rank 0 and measures every pair, those
//! that share no rank at once.

pub mod echo;
pub mod meeting;

use serde::{Deserialize, Serialize};

/// A way between two processes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// Who measured.
    pub from: String,
    /// The other one.
    pub to: String,
    /// The result, or why there is none.
    pub way: Result<Way, String>,
}

/// What a way is like.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Way {
    /// There and back, in the middle of several times.
    pub milliseconds: f64,
    /// Megabits a second to the other one.
    pub megabits_to: f64,
    /// And from it.
    pub megabits_from: f64,
    /// Seconds by which the clock there is ahead.
    pub clock_ahead: f64,
}

//! The coordinator of a run.
//!
//! Way of data: [`plan`] says what every step does; [`run`] decides, purely, what happens to the run.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod plan;
pub mod run;

//! What a machine lacks for a run, before its first step. No libtorch, no MPI and no NCCL: nothing is loaded to be looked at.
//!
//! Way of data: a config becomes what is [`Wanted`] of a machine; [`gather`] has the gatherers of [`facts`] look at what it has,
//! each told where, so that a test can point it elsewhere; [`checks`] are pure and lay one over the other: each thing that is not
//! as it should be is a [`Finding`], whose [`Id`] the [`catalogue`] explains; a [`Report`] shows facts and findings to people
//! or programs and gives the exit code. [`pairs`] measures the way between processes, and its results are facts too.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod catalogue;
pub mod checks;
pub mod facts;
mod finding;
pub mod gather;
mod lines;
pub mod pairs;
mod report;
mod wanted;

pub use catalogue::Id;
pub use finding::{Finding, Severity};
pub use lines::lines;
pub use report::Report;
pub use wanted::{DiskNeed, MemoryNeed, Wanted};

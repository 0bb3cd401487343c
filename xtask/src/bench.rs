//! What `cargo xtask bench` measures.
//!
//! [`train`] is a training step beside a peer, [`optimizer`] the same step with several optimisers, [`collectives`] what
//! communication costs, [`safety`] what it costs to be able to go on after a failure, [`basin`] the final loss against the
//! peak learning rate, [`families`] the loss under four families of schedules, [`plan`] what is predicted
//! beside what is measured, and [`scale`] how the coordinator takes many members. [`step`] runs and measures the step that most share, [`columns`] lays runs side by side,
//! [`variant`] names an optimiser, [`inspected`] reads what `lockstep inspect` says, and [`markdown`] lays tables out.

mod basin;
mod collectives;
mod columns;
mod families;
mod inspected;
mod markdown;
mod optimizer;
mod plan;
mod safety;
mod scale;
mod step;
mod train;
mod variant;

use clap::Subcommand;

use crate::failure::Failure;
use crate::workspace::Workspace;

/// A measurement and its options.
#[derive(Subcommand)]
pub(crate) enum Kind {
    /// A step of a 30 M parameter GPT on two ranks with one thread each, beside a peer if one is given.
    Train(train::Options),
    /// The same step with several optimisers, turn about, and the arithmetic and memory of each rank.
    Optimizer(optimizer::Options),
    /// Collectives beside MPI's and Gloo's, and whole steps with one kind of communication and another.
    Collectives(collectives::Options),
    /// The same step with and without the search for memory that changes, snapshots and checkpoints.
    Safety(safety::Options),
    /// A small byte GPT under the four families of schedules: loss against samples.
    Families(families::Options),
    /// The final validation loss of a small byte GPT against the peak learning rate, for several optimisers.
    Basin(basin::Options),
    /// What `lockstep plan` predicts beside what a dozen configs take: memory and time of a step.
    Plan(plan::Options),
    /// The coordinator with thousands of members: memory, processor time, waits of operators; and the pure machine with 100,000.
    Scale(scale::Options),
}

/// Measures.
pub(crate) fn bench(workspace: &Workspace, kind: &Kind) -> Result<(), Failure> {
    match kind {
        Kind::Train(options) => train::train(workspace, options),
        Kind::Optimizer(options) => optimizer::optimizer(workspace, options),
        Kind::Collectives(options) => collectives::collectives(workspace, options),
        Kind::Safety(options) => safety::safety(workspace, options),
        Kind::Families(options) => families::families(workspace, options),
        Kind::Basin(options) => basin::basin(workspace, options),
        Kind::Plan(options) => plan::plan(workspace, options),
        Kind::Scale(options) => scale::scale(workspace, options),
    }
}

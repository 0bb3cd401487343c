//! What a trace shows of a directive, owned and small, so that the directive itself can go its way.

use lockstep_proto::domain::{CoordinatorBody, DirectiveKind};

use crate::run::{Directive, Record};

/// One thing that is shown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fact {
    /// A generation was formed.
    Formed {
        term: u64,
        number: u64,
        ranks: u32,
        /// The step that everybody loads; 0: initial values.
        from: u64,
    },
    /// Every rank of it was ready, and training began.
    Begun,
    /// A step was committed.
    Step(Step),
    /// Something was decided.
    Decided(String),
    /// The ranks were told to leave this generation at once.
    Aborted { number: u64, reason: String },
    /// The ranks were told to leave their generation at the end of a step, for the reason that was decided last.
    Regroups,
    /// A checkpoint's parts are there, and it is being committed.
    Commissioned { step: u64 },
    /// It was, or not.
    Checkpointed { step: u64, failure: Option<String> },
}

/// A committed step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) term: u64,
    pub(crate) generation: u64,
    pub(crate) ranks: u32,
    pub(crate) number: u64,
    pub(crate) samples: u64,
    pub(crate) tokens: u64,
    pub(crate) loss: f64,
    pub(crate) learning_rate: f64,
    /// As rank 0 measured it.
    pub(crate) nanoseconds: u64,
}

impl Fact {
    /// What a trace shows of it, if anything.
    pub(crate) fn of(directive: &Directive) -> Option<Fact> {
        Some(match directive {
            Directive::Persist(record) => return Fact::of_record(record),
            Directive::Send { stamp, body, .. } => match &**body {
                CoordinatorBody::Abort { reason } => Fact::Aborted {
                    number: stamp.generation,
                    reason: reason.clone(),
                },
                _ => return None,
            },
            Directive::Commit(commission) => Fact::Commissioned {
                step: commission.checkpoint.step,
            },
            Directive::Fence { .. } | Directive::End(_) => return None,
        })
    }

    fn of_record(record: &Record) -> Option<Fact> {
        Some(match record {
            Record::Generation(generation) => Fact::Formed {
                term: generation.stamp.term,
                number: generation.stamp.generation,
                ranks: generation.ranks(),
                from: generation.resume.as_ref().map_or(0, |resume| resume.step),
            },
            Record::Begun(_) => Fact::Begun,
            Record::Committed(commit) => Fact::Step(Step {
                term: commit.stamp.term,
                generation: commit.stamp.generation,
                ranks: commit.ranks,
                number: commit.plan.step,
                samples: commit.plan.samples,
                tokens: commit.metrics.tokens,
                loss: commit.metrics.loss,
                learning_rate: commit.plan.learning_rate,
                // A number that is none becomes 0.
                nanoseconds: (commit.metrics.step_ms * 1e6) as u64,
            }),
            Record::Decision { reason } => Fact::Decided(reason.clone()),
            Record::Urgent(urgent) if urgent.kind == DirectiveKind::Regroup => Fact::Regroups,
            Record::Checkpoint(checkpoint) => Fact::Checkpointed {
                step: checkpoint.step,
                failure: None,
            },
            _ => return None,
        })
    }
}

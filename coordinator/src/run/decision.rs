//! What goes into the machine and what comes out of it.

use std::sync::Arc;

use lockstep_proto::domain::{
    Checkpoint, CommittedStep, CoordinatorBody, Directive as Urgent, Generation, JoinInfo, Outcome, Part, Plan,
    Progress, Return, RunEnd, Stamp, StepMetrics, StepReport, Validation, Written,
};
use serde::{Deserialize, Serialize};

use crate::branches::Rewind;
use crate::changes::{Ask, Change};
use crate::run::reach::Stands;

/// A connection of a member: a new stream is a new peer, whoever is behind it.
pub type Peer = u64;

/// What happens to a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A member wants to be part of the run.
    Join {
        /// Its stream.
        peer: Peer,
        /// What it says of itself.
        info: JoinInfo,
    },
    /// A member speaks again, on a new stream: its last one broke, or an earlier term ended.
    Return {
        /// Its new stream.
        peer: Peer,
        /// The number of the generation that it was last part of; 0: none.
        generation: u64,
        /// How it stands there.
        returned: Box<Return>,
    },
    /// The communicator id of rank 0.
    CommId {
        /// The stream.
        peer: Peer,
        /// The generation it was made for.
        stamp: Stamp,
        /// The id.
        id: Vec<u8>,
    },
    /// A rank's communicator stands and its parameters are initialised.
    Ready {
        /// The stream.
        peer: Peer,
        /// Its generation.
        stamp: Stamp,
        /// What it said.
        ready: Stands,
    },
    /// What a device thread does.
    Progress {
        /// The stream.
        peer: Peer,
        /// As said.
        progress: Progress,
    },
    /// A rank made a step.
    Report {
        /// The stream.
        peer: Peer,
        /// As said.
        report: StepReport,
    },
    /// A member holds another part of a snapshot.
    Holds {
        /// The stream.
        peer: Peer,
        /// Its generation.
        stamp: Stamp,
        /// The part.
        part: Part,
    },
    /// A rank has left the collectives of its generation.
    Stopped {
        /// The stream.
        peer: Peer,
        /// Its generation.
        stamp: Stamp,
        /// Why it did so by itself; none: it was told to.
        cause: Option<String>,
        /// Every part that it holds.
        parts: Vec<Part>,
        /// Whether the checkpoint that it was to load is damaged or not there.
        checkpoint_is_bad: bool,
        /// The rank in whose memory a bit has changed by itself, where that is the cause.
        drifted: Option<u32>,
        /// The step whose loss or gradient cannot be used, where the run is to go back before it.
        unusable: Option<u64>,
    },
    /// A rank's part of a checkpoint lies in the store, or does not.
    Wrote {
        /// The stream.
        peer: Peer,
        /// Its generation.
        stamp: Stamp,
        /// The step.
        step: u64,
        /// The part, or why there is none.
        written: Result<Box<Written>, String>,
    },
    /// A manifest was committed, or could not be.
    Commissioned {
        /// Which.
        checkpoint: Checkpoint,
        /// Why not.
        result: Result<(), String>,
    },
    /// A member is asked to go away by its host.
    Leaving {
        /// The stream.
        peer: Peer,
        /// As said.
        reason: String,
    },
    /// A member's part is over.
    Finished {
        /// The stream.
        peer: Peer,
        /// The generation that it was last part of.
        stamp: Stamp,
        /// How it ended.
        outcome: Outcome,
        /// The last step whose parameters it holds.
        step: u64,
    },
    /// A stream closed.
    MemberLost {
        /// The stream.
        peer: Peer,
    },
    /// A rank has stopped moving: it is silent, or its device thread hangs.
    Lapsed {
        /// The stream.
        peer: Peer,
        /// How that shows.
        how: String,
    },
    /// Time went by.
    Tick,
    /// An operator's command.
    Pause,
    /// An operator's command.
    Resume,
    /// An operator's command: write a checkpoint as soon as can be.
    Checkpoint,
    /// An operator's command.
    Stop,
    /// An operator's command: end now, in the middle of a step.
    Abandon,
    /// An operator's order, with what it depends on.
    Ordered(Box<Order>),
}

/// What an operator wants, and on what conditions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// What.
    pub wanted: Wanted,
    /// The operator's name for this order: said again it is answered again, and not carried out again. Empty: none.
    #[serde(default)]
    pub key: String,
    /// Only if it takes effect before this step.
    #[serde(default)]
    pub if_step_before: Option<u64>,
    /// Only to learn what would be answered.
    #[serde(default)]
    pub dry_run: bool,
}

/// What an operator wants.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Wanted {
    /// Wait at the end of the running step.
    #[default]
    Pause,
    /// Go on.
    Resume,
    /// End with the running step.
    Stop,
    /// Write a checkpoint as soon as can be.
    Checkpoint,
    /// Change what is planned.
    Change(Ask),
    /// Go back to a committed step, and make what follows anew.
    Rewind {
        /// The step whose parameters the run is to go on from; 0: the initial ones.
        to: u64,
    },
    /// Have a member leave.
    Drain {
        /// Its name.
        member: String,
    },
}

/// From which step on an order shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// The step.
    pub step: u64,
    /// The version of its plan.
    pub version: u64,
}

/// An order that was carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// Its key.
    pub key: String,
    /// What was wanted.
    pub wanted: Wanted,
    /// What was answered.
    pub sentence: String,
    /// From which step on it shows, where that is one.
    pub effect: Option<Effect>,
}

/// What the machine decided about one event.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// To be carried out in this order: whatever is persisted must be durable before what follows is sent.
    pub directives: Vec<Directive>,
    /// One sentence: the answer to a command, else what the run waits for now.
    pub reason: String,
    /// Whoever sent the event is refused.
    pub refusal: Option<Refusal>,
    /// From which step on an order shows, where that is one.
    pub effect: Option<Effect>,
}

/// One thing that the service must do.
#[derive(Clone, Debug, PartialEq)]
pub enum Directive {
    /// Make this durable.
    Persist(Record),
    /// Send this to a member.
    Send {
        /// The stream.
        to: Peer,
        /// Under this term and generation.
        stamp: Stamp,
        /// The message: one for all of those to whom the same is said, so that it is made and encoded once.
        body: Arc<CoordinatorBody>,
    },
    /// Close this member's stream, with this sentence: nothing that it says counts any more.
    Fence {
        /// The stream.
        peer: Peer,
        /// Why.
        reason: String,
    },
    /// Commit the manifest of a checkpoint, and say what became of it.
    Commit(Box<Commission>),
    /// The run is over.
    End(RunEnd),
}

/// What the ledger keeps.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A formation of members into ranks.
    Generation(Generation),
    /// The ranks of a generation have begun to train.
    Begun(Begun),
    /// What the operators want has changed.
    Wish(Wish),
    /// The member of a rank has ended its part.
    Farewell {
        /// The generation.
        generation: u64,
        /// The rank.
        rank: u32,
        /// How it ended, and the last step whose parameters it holds.
        farewell: Farewell,
    },
    /// Plans that are issued together.
    Plans(Vec<Plan>),
    /// An urgent directive that is given.
    Urgent(Urgent),
    /// A committed step.
    Committed(Box<Commit>),
    /// The validation of a committed step.
    Validation {
        /// The step.
        step: u64,
        /// Its loss.
        validation: Validation,
    },
    /// Every part of a snapshot is held by its owner and by a buddy.
    Snapshot {
        /// The step whose parameters it holds.
        step: u64,
        /// Its parts.
        parts: Vec<Part>,
    },
    /// A checkpoint is committed.
    Checkpoint(Checkpoint),
    /// A checkpoint could not be loaded, and is not used again.
    CheckpointRefused {
        /// Which.
        checkpoint: Checkpoint,
        /// Why.
        reason: String,
    },
    /// A branch is closed, and another one begins.
    Rewound(Rewind),
    /// Operators have changed what is planned.
    Changed(Box<Change>),
    /// An order was carried out, and has a key.
    Answered(Box<Answered>),
    /// A decision that people may ask about later.
    Decision {
        /// One sentence.
        reason: String,
    },
    /// The end.
    End(RunEnd),
}

/// The manifest of a checkpoint that is to be committed.
#[derive(Clone, Debug, PartialEq)]
pub struct Commission {
    /// Which.
    pub checkpoint: Checkpoint,
    /// Samples consumed.
    pub cursor: u64,
    /// Version of the schedule.
    pub schedule_version: u64,
    /// Hash of the parameters.
    pub parameter_hash: [u8; 32],
    /// The parts, by rank.
    pub parts: Vec<Written>,
    /// The checkpoints that were committed before and are relied on. Of what else the store may hold nobody here knows, such as
    /// of one whose commit was not acknowledged.
    pub known: Vec<Checkpoint>,
}

/// How a member ended its part, and the last step whose parameters it held.
pub type Farewell = (Outcome, u64);

/// What the operators want the ranks to do, whatever else they are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// Make steps.
    #[default]
    Train,
    /// Wait at the end of a step.
    Pause,
    /// End.
    Stop,
}

/// The beginning of training in a generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// The generation.
    pub generation: u64,
    /// The step whose parameters every rank had then; 0: initial values.
    pub from: u64,
    /// Their hash.
    pub parameter_hash: [u8; 32],
    /// The build of every member.
    pub build: String,
    /// The fingerprint of every member.
    pub fingerprint: String,
}

/// A committed step as the ledger keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Commit {
    /// The generation that made it.
    pub stamp: Stamp,
    /// Its plan: step, learning rate, sample range.
    pub plan: Plan,
    /// Hash of the parameters after it, equal on every rank.
    pub parameter_hash: [u8; 32],
    /// What rank 0 measured.
    pub metrics: StepMetrics,
    /// Ranks that reported it.
    pub ranks: u32,
    /// Samples of the run so far, this step included.
    pub samples: u64,
    /// Counted tokens of the run so far, this step included.
    pub tokens: u64,
    /// The gradient noise scale, smoothed over the steps so far; samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_scale: Option<f64>,
}

impl Commit {
    /// As `watch` and the progress bar show it, in a run of `total_steps`.
    pub fn to_committed_step(&self, total_steps: u64) -> CommittedStep {
        let metrics = &self.metrics;
        let seconds = metrics.step_ms / 1e3;
        CommittedStep {
            step: self.plan.step,
            total_steps,
            samples: self.samples,
            tokens: self.tokens,
            loss: metrics.loss,
            learning_rate: self.plan.learning_rate,
            effective_learning_rate: metrics.effective_learning_rate,
            batch: self.plan.samples,
            grad_norm: metrics.grad_norm,
            update_norm: metrics.update_norm,
            tokens_per_second: if seconds > 0.0 {
                metrics.tokens as f64 / seconds
            } else {
                0.0
            },
            step_ms: metrics.step_ms,
            phases: metrics.phases.clone(),
            generation: self.stamp.generation,
            ranks: self.ranks,
            parameter_hash: self.parameter_hash,
            polar_factors: metrics.polar_factors,
            model_value: metrics.model_value,
            dual_norm: metrics.dual_norm,
            lower_bound: metrics.lower_bound,
            gradient_variance: metrics.gradient_variance,
            gradient_square: metrics.gradient_square,
            noise_scale: self.noise_scale,
            orthogonality: metrics.orthogonality.clone(),
            skipped: metrics.skipped.clone(),
        }
    }
}

/// Why somebody's wish is not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// A word for programs, in capitals.
    pub kind: &'static str,
    /// What is refused: a member, a config key, the run.
    pub subject: String,
    /// One sentence for people.
    pub reason: String,
}

impl Refusal {
    pub(crate) fn new(kind: &'static str, subject: impl Into<String>, reason: String) -> Refusal {
        Refusal {
            kind,
            subject: subject.into(),
            reason,
        }
    }
}

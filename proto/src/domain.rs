//! The words of the protocol as plain Rust: what the coordinator decides with and what the device thread reads.
//! Nothing here knows about the wire; `convert` carries these types to the generated messages and back.

mod metrics;
mod overview;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use crate::domain::metrics::{Orthogonality, StepMetrics};
pub use crate::domain::overview::{Alert, Overview, PastDecision};

/// Which life of the coordinator and which formation of members a message belongs to. Older ones are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// One life of the coordinator; a higher one fences a lower one.
    pub term: u64,
    /// One formation of members into ranks; 0 before the first.
    pub generation: u64,
}

/// What stands in front of every message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The run; empty only where the sender cannot know it yet.
    pub run_id: String,
    /// The sender's term and generation; zeros where it cannot know them yet.
    pub stamp: Stamp,
}

/// What one step does. Names lanes' micro-batches, never ranks. Never altered once it was issued.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// 1-based: step s consumes its samples and makes parameters s.
    pub step: u64,
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// Micro-batches of the whole step, over all lanes.
    pub micro_batches: u32,
    /// Global index of the first sample.
    pub first_sample: u64,
    /// Samples of the step: `micro_batches` × the size of a micro-batch.
    pub samples: u64,
    /// Whether the whole validation split is evaluated after the step.
    pub validate: bool,
    /// Whether this is the run's last step.
    pub last: bool,
    /// Version of the schedule that made this plan; rises with every live change.
    pub version: u64,
    /// Whether a checkpoint is written after the step.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub checkpoint: bool,
    /// The momentum of this step; none: the config's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// The weight decay of this step, where a group has none of its own; none: the config's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Whether the run stops after the step, by an operator's wish; it can be resumed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop: bool,
}

/// Where a member stands in a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberPlace {
    /// The member's name.
    pub member: String,
    /// Its rank in this generation.
    pub rank: u32,
    /// The lanes that it hosts.
    pub lanes: Range<u32>,
    /// Process id on its host.
    pub pid: u32,
    /// Name of its host.
    pub host: String,
    /// Where its parts of snapshots can be fetched, `HOST:PORT`; empty: nowhere.
    #[serde(default)]
    pub parts_address: String,
}

/// A part of a snapshot: what one rank of a generation owned after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Part {
    /// The step.
    pub step: u64,
    /// The number of the generation whose rank made it.
    pub generation: u64,
    /// That rank.
    pub part: u32,
    /// BLAKE3 over its values.
    pub hash: [u8; 32],
}

/// The snapshot that every rank of a generation loads.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The step whose parameters it holds.
    pub step: u64,
    /// The number of the generation whose ranks made the parts.
    pub generation: u64,
    /// Where each part can be fetched, by part.
    pub parts: Vec<PartPlace>,
    /// The checkpoint in whose place the parts are; then there are none.
    #[serde(default)]
    pub checkpoint: Option<Checkpoint>,
    /// The secret of that generation, which opens them. Never written to disk.
    #[serde(skip)]
    pub secret: [u8; 32],
}

impl std::fmt::Debug for Resume {
    // By hand, so that the secret never lands in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resume")
            .field("step", &self.step)
            .field("generation", &self.generation)
            .field("parts", &self.parts)
            .field("checkpoint", &self.checkpoint)
            .finish_non_exhaustive()
    }
}

/// Where a part can be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartPlace {
    /// BLAKE3 over its values.
    pub hash: [u8; 32],
    /// Addresses of the members that hold it, `HOST:PORT`.
    pub addresses: Vec<String>,
}

/// One formation of members into ranks, `members[r]` having rank r.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Term and number.
    pub stamp: Stamp,
    /// In rank order.
    pub members: Vec<MemberPlace>,
    /// Lanes of the run.
    pub lanes: u32,
    /// The snapshot that everybody loads; none: initial values.
    pub resume: Option<Resume>,
    /// Steps up to this one are committed already: they are made again, and directives wait.
    #[serde(default)]
    pub replay_through: u64,
    /// Authenticates the data plane of this generation. Never written to disk.
    #[serde(skip)]
    pub secret: [u8; 32],
}

impl Generation {
    /// Ranks of the world.
    pub fn ranks(&self) -> u32 {
        self.members.len() as u32
    }

    /// The place of the member of this name.
    pub fn place_of(&self, member: &str) -> Option<&MemberPlace> {
        self.members.iter().find(|place| place.member == member)
    }
}

impl std::fmt::Debug for Generation {
    // By hand, so that the secret never lands in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation")
            .field("stamp", &self.stamp)
            .field("members", &self.members)
            .field("lanes", &self.lanes)
            .field("resume", &self.resume)
            .field("replay_through", &self.replay_through)
            .finish_non_exhaustive()
    }
}

/// What the operator wants at the end of the running step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DirectiveKind {
    /// Nothing was ever asked for.
    #[default]
    None,
    /// Go on.
    Resume,
    /// Wait after the step until a newer directive comes.
    Pause,
    /// The step is the last one.
    Stop,
    /// The step is the last one of this generation: another one is formed.
    Regroup,
}

/// An urgent directive. Rides in the first slot exchange as a word whose maximum over the ranks is the newest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Directive {
    /// Rises with every directive of the run; 0: none yet.
    pub sequence: u64,
    /// What to do.
    pub kind: DirectiveKind,
}

impl Directive {
    /// `sequence << 8 | kind`, so that the larger word is the newer directive.
    pub fn to_word(self) -> u64 {
        self.sequence << 8
            | match self.kind {
                DirectiveKind::None => 0,
                DirectiveKind::Resume => 1,
                DirectiveKind::Pause => 2,
                DirectiveKind::Stop => 3,
                DirectiveKind::Regroup => 4,
            }
    }

    /// The directive of a word; none for a word that `to_word` never makes.
    pub fn from_word(word: u64) -> Option<Directive> {
        let kind = match word & 0xff {
            0 => DirectiveKind::None,
            1 => DirectiveKind::Resume,
            2 => DirectiveKind::Pause,
            3 => DirectiveKind::Stop,
            4 => DirectiveKind::Regroup,
            _ => return None,
        };
        Some(Directive {
            sequence: word >> 8,
            kind,
        })
    }
}

/// The loss over the whole validation split.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Mean, nats a token.
    pub loss: f64,
    /// Tokens predicted.
    pub tokens: u64,
}

/// A rank's word that it made parameters `step`.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Term and generation that the rank trains in.
    pub stamp: Stamp,
    /// The rank.
    pub rank: u32,
    /// The step.
    pub step: u64,
    /// Hash of all parameters after the step.
    pub parameter_hash: [u8; 32],
    /// Sent by rank 0.
    pub metrics: Option<StepMetrics>,
    /// Where the step was validated; sent by rank 0. May come in a second report of the same step.
    pub validation: Option<Validation>,
    /// Peak resident memory of the process.
    pub peak_memory_mib: u64,
}

/// What a member says of itself when it joins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinInfo {
    /// The member's name; unique in the run.
    pub member: String,
    /// Process id.
    pub pid: u32,
    /// Host name.
    pub host: String,
    /// Version of the trainer's build.
    pub build: String,
    /// Hash of the run config.
    pub config_hash: String,
    /// Hash of the data manifest.
    pub data_hash: String,
    /// Everything that may change the bits: library versions, ISA, threads, probe hashes.
    pub fingerprint: String,
    /// The devices that it drives, for people.
    pub devices: Vec<String>,
    /// Where other members fetch the parts of snapshots that it holds, `HOST:PORT`; empty: nowhere.
    pub parts_address: String,
}

/// How a trainer ended its part of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Every planned step was made.
    Completed,
    /// Stopped by an operator after a step.
    Stopped,
    /// It could not go on.
    Failed {
        /// One sentence.
        reason: String,
    },
}

/// What a rank says when its communicator stands and its parameters are those that the generation begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Hash of those parameters.
    pub hash: [u8; 32],
    /// How it reaches each rank, by rank; empty for itself.
    pub transports: Vec<String>,
}

/// What a member says.
#[derive(Clone, Debug, PartialEq)]
pub enum MemberBody {
    /// Wants to be part of the run.
    Join(JoinInfo),
    /// The communicator id, from the lowest rank.
    CommId(Vec<u8>),
    /// The communicator stands and the parameters are those that the generation begins with.
    Ready(Ready),
    /// What the device thread does now.
    Progress(Progress),
    /// A step was made.
    Report(StepReport),
    /// The member is about to go; why.
    Leaving(String),
    /// The member holds another part of a snapshot, whole.
    Holds(Part),
    /// The member has left the collectives of its generation, and waits for the next one.
    Stopped {
        /// The last step whose parameters it holds.
        step: u64,
        /// Why it stopped by itself; none: it was told to.
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
    /// What this rank owned after a step lies in the store of checkpoints, or why it does not.
    Wrote {
        /// The step.
        step: u64,
        /// The part, or one sentence.
        written: Result<Box<Written>, String>,
    },
    /// The member's part is over.
    Finished {
        /// How it ended.
        outcome: Outcome,
        /// The last step whose parameters this rank holds.
        step: u64,
    },
    /// Speaks to a coordinator again, after its stream broke. The generation of the header is the one that it was last
    /// part of.
    Return(Return),
}

/// One rank's part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Values of the whole run, named, as 64-bit words; the same on every rank.
    pub words: Vec<(String, u64)>,
    /// BLAKE3 of the part's file, which is also its name.
    pub hash: [u8; 32],
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Its blocks, run by run, in the order of the file.
    pub runs: Vec<BlockRun>,
}

/// Neighbouring blocks of an array in a part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRun {
    /// The tensor's name.
    pub tensor: String,
    /// The array's name.
    pub array: String,
    /// Its elements in the flat array.
    pub elements: Range<u64>,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// BLAKE3 of each block's bytes.
    pub hashes: Vec<[u8; 32]>,
}

/// Which checkpoint. Its file lies in the run's store under these three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The term that committed it.
    pub term: u64,
    /// The generation that wrote it.
    pub generation: u64,
    /// The step whose parameters it holds.
    pub step: u64,
}

/// What a member says when it speaks to a coordinator again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Return {
    /// What it said when it joined.
    pub info: JoinInfo,
    /// How it stands in the generation that it was last part of.
    pub standing: Standing,
    /// What it said when its communicator stood, if it is still in the collectives.
    pub ready: Option<Ready>,
    /// Every part of a snapshot that it holds.
    pub parts: Vec<Part>,
}

/// How a member stands in a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In no collectives: it was part of no generation yet, or has left them.
    Outside,
    /// It connects and loads.
    Meeting,
    /// It has plans.
    Training,
}

/// What the device thread does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The step it works on.
    pub step: u64,
    /// Name of the phase.
    pub phase: String,
    /// Rises with every change.
    pub counter: u64,
    /// Whether it waits for other ranks, a store or the coordinator, so that nothing is expected of it.
    pub waits: bool,
    /// The longest that the member ever stayed in that phase without a change, in milliseconds; none: it never left it.
    pub longest_ms: Option<u64>,
}

/// A message of a member.
#[derive(Clone, Debug, PartialEq)]
pub struct FromMember {
    /// Run, term and generation.
    pub header: Header,
    /// What it says.
    pub body: MemberBody,
}

/// What the coordinator says to a member.
#[derive(Clone, Debug, PartialEq)]
pub enum CoordinatorBody {
    /// First message of a stream: the run's config as TOML.
    Welcome {
        /// As resolved.
        config_toml: String,
    },
    /// The world is complete.
    Generation(Generation),
    /// The communicator id of the lowest rank.
    CommId(Vec<u8>),
    /// The next plans, in order.
    PlanWindow(Vec<Plan>),
    /// An urgent directive.
    Directive(Directive),
    /// The generation is over; why.
    Abort {
        /// One sentence.
        reason: String,
    },
    /// Every part of this snapshot is held by its owner and by a buddy.
    SnapshotStands {
        /// The step whose parameters it holds.
        step: u64,
        /// Parts of earlier steps than this one may be freed.
        free_before: u64,
    },
    /// The run is over for this member: it ends.
    Release {
        /// How.
        outcome: Outcome,
        /// Why, in one sentence.
        reason: String,
    },
    /// Everything up to `step` is committed and durable.
    Acknowledged {
        /// The last committed step.
        step: u64,
        /// Answers `Finished`.
        finished: bool,
    },
}

/// A message of the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub struct FromCoordinator {
    /// Run, term and generation.
    pub header: Header,
    /// What it says.
    pub body: CoordinatorBody,
}

/// A committed step, as `watch` and the progress bar show it.
#[derive(Clone, Debug, PartialEq)]
pub struct CommittedStep {
    /// The step.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Samples of the run so far.
    pub samples: u64,
    /// Counted tokens of the run so far.
    pub tokens: u64,
    /// Mean loss of the step, nats a token.
    pub loss: f64,
    /// As planned.
    pub learning_rate: f64,
    /// As applied.
    pub effective_learning_rate: f64,
    /// Samples of the step.
    pub batch: u64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Global norm of the update.
    pub update_norm: f64,
    /// Counted tokens of the step by its wall time.
    pub tokens_per_second: f64,
    /// Wall time of the step.
    pub step_ms: f64,
    /// Milliseconds of the step's phases.
    pub phases: Vec<(String, f64)>,
    /// The generation that made it.
    pub generation: u64,
    /// Ranks of that generation.
    pub ranks: u32,
    /// Hash of the parameters after the step, equal on every rank.
    pub parameter_hash: [u8; 32],
    /// Polar factors that all owners computed together; 0 where there are none.
    pub polar_factors: u32,
    /// h, the value of the model of the loss, nats a token. This and what follows: see [`StepMetrics`].
    pub model_value: Option<f64>,
    /// G, the dual norm of the momentum.
    pub dual_norm: Option<f64>,
    /// F*, the lower bound of the loss, nats a token.
    pub lower_bound: Option<f64>,
    /// How orthogonal one polar factor of the step is.
    pub orthogonality: Option<Orthogonality>,
    /// tr σ² of one sample's gradient, as this step estimates it.
    pub gradient_variance: Option<f64>,
    /// ‖G‖² of the expected gradient, as this step estimates it.
    pub gradient_square: Option<f64>,
    /// The gradient noise scale tr σ²/‖G‖², both smoothed over steps; samples.
    pub noise_scale: Option<f64>,
    /// Why the step changed nothing, if it was skipped.
    pub skipped: Option<String>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunEnd {
    /// Completed, stopped or failed.
    pub outcome: Outcome,
    /// One sentence that says what happened.
    pub reason: String,
    /// The last committed step.
    pub last_step: u64,
}

/// What happens in a run, as `watch` and the progress bar see it.
#[derive(Clone, Debug, PartialEq)]
pub enum RunEvent {
    /// The run waits for something else, or for another reason.
    State {
        /// Name of the phase.
        phase: String,
        /// One sentence.
        reason: String,
    },
    /// The coordinator decided something that is not a step: why, in one sentence.
    Decided {
        /// The sentence.
        reason: String,
    },
    /// A step was committed.
    Step(Box<CommittedStep>),
    /// A committed step was validated.
    Validation {
        /// The step.
        step: u64,
        /// Its validation loss.
        validation: Validation,
    },
    /// The run is over; nothing follows.
    Ended(RunEnd),
}

/// The answer to `status`.
#[derive(Clone, Debug, PartialEq)]
pub struct RunStatus {
    /// Run, term and generation.
    pub header: Header,
    /// Name of the run.
    pub name: String,
    /// What the run waits for.
    pub phase: String,
    /// One sentence.
    pub reason: String,
    /// The last committed step.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Ranks of the world.
    pub ranks: u32,
    /// Members present.
    pub members: u32,
    /// Transport of the collectives.
    pub backend: String,
    /// Of the last committed step.
    pub loss: Option<f64>,
    /// The newest one.
    pub validation_loss: Option<f64>,
    /// Of the last committed step.
    pub tokens_per_second: Option<f64>,
    /// How many pairs of ranks reach each other by a transport, by its name.
    pub transports: Vec<(String, u32)>,
    /// Steps that were skipped, in the whole run.
    pub skipped_steps: u64,
    /// Why the newest of them was.
    pub last_skip: Option<String>,
    /// How often the run went back before a step that could not be used.
    pub rewinds: u64,
    /// Why it did the last time.
    pub last_rewind: Option<String>,
    /// Alerts that are raised.
    pub alerts: Vec<Alert>,
}

/// One line of `members`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// What it said when it joined.
    pub info: JoinInfo,
    /// Rank and lanes, once the world is complete.
    pub place: Option<(u32, Range<u32>)>,
    /// The newest step that it reported.
    pub reported_step: u64,
    /// What its device thread does, as last heard.
    pub phase: String,
    /// How it reaches each rank, by rank, once its communicator stands; empty for itself.
    pub transports: Vec<String>,
    /// Whether its device thread waits for others, as last heard.
    pub waits: bool,
}

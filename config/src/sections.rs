//! The types of a config, section by section; those of `[batch.adaptive]`, `[alerts]`, `[fault]`, `[optimizer]`, `[security]` and
//! `[telemetry]`, and schedules, are in files of their own. A value of these types has passed
//! every check of [`crate::read`].

/// Gives an enum its words in TOML.
macro_rules! words {
    ($kind:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $kind {
            /// Every value with its word in TOML.
            pub(crate) const WORDS: &'static [(&'static str, $kind)] = &[$(($word, $kind::$variant)),+];

            /// The word in TOML.
            pub fn word(self) -> &'static str {
                match self {
                    $($kind::$variant => $word),+
                }
            }
        }
    };
}

mod adaptive;
mod alerts;
mod fault;
mod optimizer;
mod schedule;
mod security;
mod telemetry;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use adaptive::*;
pub use alerts::*;
pub use fault::*;
pub use optimizer::*;
pub use schedule::*;
pub use security::*;
pub use telemetry::*;

/// A whole run config, checked and resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct RunConfig {
    /// `[run]`: identity, length and numerics.
    pub run: RunSection,
    /// `[data]`: what is trained on.
    pub data: DataSection,
    /// `[model]`: the network.
    pub model: ModelSection,
    /// `[batch]`: micro-batch and batch-size schedule.
    pub batch: BatchSection,
    /// `[learning_rate]`: its schedule.
    pub learning_rate: LearningRateSection,
    /// `[momentum]`: its schedule, in place of `optimizer.momentum`.
    pub momentum: Option<Schedule>,
    /// `[weight_decay]`: its schedule, in place of `optimizer.weight_decay`.
    pub weight_decay: Option<Schedule>,
    /// `[optimizer]`: the update.
    pub optimizer: OptimizerSection,
    /// `[validation]`: when to validate.
    pub validation: ValidationSection,
    /// `[checkpoint]`: when to write checkpoints, where, and which stay.
    pub checkpoint: CheckpointSection,
    /// `[collective]`: how ranks exchange data.
    pub collective: CollectiveSection,
    /// `[fault]`: what happens when ranks come and go, a step goes wrong, or memory changes.
    pub fault: FaultSection,
    /// `[coordinator]`: how the coordinator serves.
    pub coordinator: CoordinatorSection,
    /// `[security]`: whom the coordinator lets in.
    pub security: SecuritySection,
    /// `[alerts]`: what people are told about without having asked.
    pub alerts: AlertsSection,
    /// `[telemetry]`: where the run's trace goes.
    pub telemetry: TelemetrySection,
}

/// `[run]`.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSection {
    /// Name of the run and of its folder under `runs/`: letters, digits, `.`, `_`, `-`; at most 64.
    pub name: String,
    /// Seed of initial values, sample order and dropout.
    pub seed: u64,
    /// Logical data-parallel workers, fixed for the whole life of the run.
    pub lanes: u32,
    /// When the run is over.
    pub length: Length,
    /// Threads of each rank's tensor library.
    pub intra_op_threads: u32,
    /// Precision of working copies and products.
    pub precision: Precision,
    /// How sums over ranks are ordered.
    pub reduction: Reduction,
    /// What computes.
    pub device: Device,
}

/// When the run is over: exactly one of the keys `run.steps`, `run.samples`, `run.tokens`, `run.epochs`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// After this many steps.
    Steps(u64),
    /// With the first step that reaches this many samples (sequences).
    Samples(u64),
    /// With the first step that reaches this many tokens.
    Tokens(u64),
    /// With the first step that reaches this many passes over the training data.
    Epochs(f64),
}

/// A floating-point format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// bfloat16 working copies over float32 masters.
    Bf16,
    /// float32 throughout.
    Fp32,
}

/// How sums over lanes are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// By the lane tree: the same bits on every world.
    Invariant,
    /// Each rank adds its lanes one after the other, and ranks are added in the backend's own order: bits depend on the
    /// world.
    Fast,
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor's cores.
    Cpu,
    /// One GPU a rank.
    Cuda,
}

/// `[data]`.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSection {
    /// A folder made by `lockstep data prepare`.
    pub path: PathBuf,
    /// Another prepared folder whose validation split is used; default: the one of `path`.
    pub validation: Option<PathBuf>,
    /// Tokens a sequence predicts; a training sample is a window of one token more.
    pub sequence_length: u32,
}

/// `[model]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSection {
    /// The family.
    pub kind: ModelKind,
    /// Transformer layers.
    pub layers: u32,
    /// Attention heads; divides `width`.
    pub heads: u32,
    /// Width of the residual stream.
    pub width: u32,
    /// Rows of the embedding; default: the data's vocabulary. At least that.
    pub vocab: Option<u32>,
    /// Whether linear layers and norms have biases.
    pub bias: bool,
    /// Whether queries and keys are normalised.
    pub qk_norm: bool,
    /// Positions the model knows; default: `data.sequence_length`. At least that.
    pub context: Option<u32>,
}

/// A model family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// GPT-2: learned positions, tied head, GELU, pre-norm.
    Gpt2,
}

/// `[batch]`.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchSection {
    /// Sequences in one micro-batch.
    pub micro_batch: u32,
    /// Batch size over the run.
    pub schedule: BatchSchedule,
    /// How it is decided on while the run trains; none: as scheduled.
    pub adaptive: Option<AdaptiveSection>,
}

/// Batch size over the run, in samples (sequences); rounded up to whole micro-batches by the plan.
#[derive(Debug, Clone, PartialEq)]
pub enum BatchSchedule {
    /// One size for the whole run.
    Constant {
        /// Samples a step.
        size: u64,
    },
    /// Another size from certain steps on.
    Steps {
        /// `(from_step, size)`: once `from_step` steps are done, `size` samples a step. The first `from_step`
        /// is 0 and they rise strictly; never empty.
        sizes: Vec<(u64, u64)>,
    },
    /// Any other schedule.
    Curve(Schedule),
}

/// `[learning_rate]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LearningRateSection {
    /// Its schedule.
    pub schedule: Schedule,
    /// How it follows the batch.
    pub coupling: Coupling,
}

/// `[validation]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidationSection {
    /// Validate every so many steps and at the end; 0: only at the end.
    pub every: u64,
}

/// `[checkpoint]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointSection {
    /// Write one every so many steps and when the run stops; 0: only when it stops.
    pub every: u64,
    /// So many of the newest stay.
    pub keep_last: u64,
    /// And every one whose step is a multiple of this; 0: none more.
    pub keep_every: u64,
    /// A folder or `s3://BUCKET/PREFIX`; default: `checkpoints/` in the run's folder.
    pub store: Option<String>,
}

/// `[collective]`.
#[derive(Debug, Clone, PartialEq)]
pub struct CollectiveSection {
    /// What carries the data.
    pub backend: CollectiveBackend,
    /// How partial sums travel.
    pub wire: Wire,
    /// Whether reductions run while backward goes on, and gathers while the next forward does.
    pub overlap: bool,
    /// How ranks of the host backend reach each other.
    pub transport: HostTransport,
    /// How long a rank waits for another one in a collective before it gives up, in seconds.
    pub deadline_seconds: f64,
}

impl Default for CollectiveSection {
    fn default() -> CollectiveSection {
        CollectiveSection {
            backend: CollectiveBackend::Auto,
            wire: Wire::Fp32,
            overlap: true,
            transport: HostTransport::Auto,
            deadline_seconds: 600.0,
        }
    }
}

/// What carries data between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectiveBackend {
    /// NCCL between GPUs, our own transport between processors.
    Auto,
    /// Our own: shared memory inside a host, TCP between hosts.
    Host,
    /// MPI; needs `lockstep-trainer-mpi`, started by `mpirun`.
    Mpi,
    /// NCCL; needs GPUs.
    Nccl,
}

/// The format of partial sums between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// float32: nothing is rounded.
    Fp32,
    /// Every partial sum but the whole is rounded to bfloat16, on every world alike.
    Bf16,
}

/// How ranks of the host backend reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostTransport {
    /// Shared memory where two ranks share a host, else TCP.
    Auto,
    /// TCP everywhere: for tests and measurements.
    Tcp,
}

/// `[coordinator]`.
#[derive(Debug, Clone, PartialEq)]
pub struct CoordinatorSection {
    /// Where it listens; another address than loopback only as `[security]` allows. Port 0 takes a free one.
    pub bind: SocketAddr,
    /// Seconds of plans that trainers hold ahead of need.
    pub plan_window_seconds: f64,
    /// Whether the ledger keeps every event that decided something, so that `lockstep ledger replay` can check them.
    pub record_events: bool,
}

impl RunConfig {
    /// Positions the model knows: `model.context`, or `data.sequence_length` where it is not given.
    pub fn context(&self) -> u32 {
        self.model.context.unwrap_or(self.data.sequence_length)
    }
}

impl RunConfig {
    /// The name of what carries data in a world of `ranks` ranks. One rank has nobody to talk to; on a GPU it adds its lanes
    /// by what adds them among several.
    pub fn backend_name(&self, ranks: u32) -> &'static str {
        match (ranks, self.collective.backend, self.run.device) {
            (_, _, Device::Cuda) => "nccl",
            (1, _, Device::Cpu) => "solo",
            (_, CollectiveBackend::Mpi, _) => "mpi",
            (_, CollectiveBackend::Nccl, _) => "nccl",
            (_, CollectiveBackend::Host | CollectiveBackend::Auto, _) => "host",
        }
    }
}

words!(Precision { Bf16 = "bf16", Fp32 = "fp32" });
words!(Reduction {
    Invariant = "invariant",
    Fast = "fast",
});
words!(Device {
    Cpu = "cpu",
    Cuda = "cuda",
});
words!(CollectiveBackend {
    Auto = "auto",
    Host = "host",
    Mpi = "mpi",
    Nccl = "nccl",
});
words!(Wire {
    Fp32 = "fp32",
    Bf16 = "bf16",
});
words!(HostTransport {
    Auto = "auto",
    Tcp = "tcp",
});
words!(ModelKind { Gpt2 = "gpt2" });

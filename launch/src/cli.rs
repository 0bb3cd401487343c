//! What can be typed.

mod jobs;
mod k8s;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lockstep_data::TokenizerChoice;
use lockstep_security::{CredentialArguments, Role};

pub use jobs::{MpirunArguments, RenderArguments, SlurmCommand};
pub use k8s::{K8sArguments, K8sCommand, Overlay};

/// A distributed data-parallel trainer: the same bits on any number of ranks.
#[derive(Debug, Parser)]
#[command(name = "lockstep", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train: start a coordinator and trainers on this machine and watch them to the end
    Run(RunArguments),
    /// Train: start a coordinator here, and trainers by one mpirun, here or on the hosts of a hostfile
    Mpirun(MpirunArguments),
    /// Train as a job of Slurm
    Slurm {
        /// What to do.
        #[command(subcommand)]
        command: SlurmCommand,
    },
    /// Become a program that ends with the process that has started it
    #[command(hide = true)]
    Tied {
        /// That process.
        parent: i32,
        /// The folder for the program's files.
        folder: PathBuf,
        /// The program, and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        words: Vec<OsString>,
    },
    /// Remove the folder of an mpirun when nobody uses it any more
    #[command(hide = true)]
    Janitor {
        /// The folder.
        folder: PathBuf,
    },
    /// Show what a live run does
    Status(Target),
    /// Follow a live run, a line per step
    Watch(Target),
    /// List the trainers of a live run
    Members(Target),
    /// Look at everything that a run needs, before it starts: devices, libraries, memory, disks, network, data
    Doctor(Box<DoctorArguments>),
    /// Show a live run on the whole terminal: numbers, loss, members, alerts, decisions
    Top(TopArguments),
    /// Write the page of a run, over or live, into one file that any browser shows
    Page {
        /// The run's folder, or the name of a run under ./runs
        run_dir: PathBuf,
        /// The file (default: RUN.html here)
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Pause a live run at the end of a step
    Pause(OrderArguments),
    /// Let a paused run go on
    Resume(OrderArguments),
    /// Stop a live run at the end of a step and write its final files
    Stop(StopArguments),
    /// Have a live run write a checkpoint as soon as it can
    Checkpoint(OrderArguments),
    /// Change learning rate, batch, momentum or weight decay of a live run, from its next plan on
    Set(SetArguments),
    /// Make a live run longer
    Extend(ExtendArguments),
    /// Leave out the next samples that no plan of a live run has yet
    Skip(SkipArguments),
    /// Have a live run go back to a committed step, and make what follows anew
    Rewind(RewindArguments),
    /// Have a trainer leave a live run, which goes on without it
    Drain(DrainArguments),
    /// Prepare data
    Data {
        /// What to do with data.
        #[command(subcommand)]
        command: DataCommand,
    },
    /// Read the ledger of a run, live or over: show it, prove things from it, decide everything again
    Ledger {
        /// What to do with the ledger.
        #[command(subcommand)]
        command: LedgerCommand,
    },
    /// Run on Kubernetes: make, show and delete the objects of a run
    #[command(name = "k8s")]
    K8s {
        /// What to do.
        #[command(subcommand)]
        command: K8sCommand,
    },
    /// Ask whether a coordinator serves, for probes and for whoever waits for it
    Health(HealthArguments),
    /// Make certificates and tokens, for coordinators that others reach
    Certs {
        /// What to make.
        #[command(subcommand)]
        command: CertsCommand,
    },
    /// Preview learning rate, batch size and length of a run
    Schedule(ScheduleArguments),
    /// Predict memory, communication and time of a run, here or on a kind of GPU, and say what fits
    Plan(PlanArguments),
    /// Write text with trained weights: CHECKPOINT --prompt TEXT … (see `lockstep generate --help`)
    #[command(disable_help_flag = true)]
    Generate {
        /// Passed on to `lockstep-trainer generate`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Show parameters, owners and memory of a CHECKPOINT or CONFIG (see `lockstep inspect --help`)
    #[command(disable_help_flag = true)]
    Inspect {
        /// Passed on to `lockstep-trainer inspect`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// What both are told that train: `lockstep run` and `lockstep mpirun`.
#[derive(Debug, Args)]
pub struct TrainingArguments {
    /// The config of the run, a TOML file
    pub config: PathBuf,
    /// How gradients travel between ranks
    #[arg(long, value_enum)]
    pub backend: Option<Backend>,
    /// Set a value of the config: section.key=value (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Go on with the run of this name, if there is one, on this number of ranks
    #[arg(long)]
    pub resume: bool,
    /// Print one JSON object a line for everything that happens
    #[arg(long)]
    pub json: bool,
}

/// `lockstep run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// What is trained, and how it is shown.
    #[command(flatten)]
    pub training: TrainingArguments,
    /// Trainer processes: a number from 1 to run.lanes, or auto (as many as cores and lanes allow)
    #[arg(short = 'n', long = "ranks", default_value = "auto", value_name = "RANKS")]
    pub ranks: Ranks,
}

/// `lockstep doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// The config of the run, a TOML file; without one the machine is looked at
    pub config: Option<PathBuf>,
    /// Ranks on this machine: a number from 1 to run.lanes, or auto (as many as cores and lanes allow)
    #[arg(
        short = 'n',
        long = "ranks",
        default_value = "auto",
        value_name = "RANKS",
        requires = "config"
    )]
    pub ranks: Ranks,
    /// How gradients travel between ranks
    #[arg(long, value_enum, requires = "config")]
    pub backend: Option<Backend>,
    /// Set a value of the config: section.key=value (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    pub sets: Vec<String>,
    /// Address of a coordinator that is to be reached, such as http://127.0.0.1:40001 or https://HOST:PORT
    #[arg(long, value_name = "URL")]
    pub coordinator: Option<String>,
    /// What is shown to it.
    #[command(flatten)]
    pub credentials: CredentialArguments,
    /// Hash all data, and measure the backend between ranks on this machine
    #[arg(long)]
    pub deep: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// End with exit code 1 for warnings too
    #[arg(long)]
    pub strict: bool,
    /// Answer the measurements of others here until interrupted, such as 0.0.0.0:7400
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["config", "peers", "meet"])]
    pub listen: Option<SocketAddr>,
    /// Measure the way to a doctor that listens there (may be repeated)
    #[arg(long = "peer", value_name = "HOST:PORT", conflicts_with = "meet")]
    pub peers: Vec<String>,
    /// Started on all ranks by mpirun, srun or torchrun: they meet at this address of rank 0's host, and measure all ways
    #[arg(long, value_name = "HOST:PORT")]
    pub meet: Option<String>,
    /// Which rank this is, where whoever started it does not say
    #[arg(long, requires = "meet", requires = "size")]
    pub rank: Option<u32>,
    /// Of how many
    #[arg(long, requires = "rank", value_parser = clap::value_parser!(u32).range(1..))]
    pub size: Option<u32>,
    /// Seconds for which ranks wait for each other
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub patience: u64,
    /// What a way between ranks should carry, in Mbit/s
    #[arg(long, default_value_t = 800.0, value_name = "MBIT")]
    pub expect_mbit: f64,
    /// What it may take there and back, in milliseconds
    #[arg(long, default_value_t = 2.0, value_name = "MS")]
    pub expect_ms: f64,
}

/// `-n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranks {
    /// As many as cores and lanes allow.
    Auto,
    /// So many.
    Exactly(u32),
}

impl FromStr for Ranks {
    type Err = String;

    fn from_str(word: &str) -> Result<Ranks, String> {
        match (word, word.parse()) {
            ("auto", _) => Ok(Ranks::Auto),
            (_, Ok(ranks)) if ranks > 0 => Ok(Ranks::Exactly(ranks)),
            _ => Err("write a whole number of at least 1, or auto".to_owned()),
        }
    }
}

/// How gradients travel between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Our own transport: shared memory inside a host, TCP between hosts
    Host,
    /// MPI: the trainers are lockstep-trainer-mpi, started by mpirun
    Mpi,
    /// NCCL, between GPUs
    Nccl,
}

impl Backend {
    /// The override of the config that says the same.
    pub fn as_set(self) -> &'static str {
        match self {
            Backend::Host => "collective.backend=host",
            Backend::Mpi => "collective.backend=mpi",
            Backend::Nccl => "collective.backend=nccl",
        }
    }
}

/// Which live run a command is for.
#[derive(Debug, Args)]
pub struct Target {
    /// Name of a run under ./runs, or its folder; not needed where one run is live
    pub run: Option<String>,
    /// Address of the run's coordinator, such as http://127.0.0.1:40001 or https://HOST:PORT
    #[arg(long, value_name = "URL")]
    pub coordinator: Option<String>,
    /// What is shown to it.
    #[command(flatten)]
    pub credentials: CredentialArguments,
}

/// `lockstep health`.
#[derive(Debug, Args)]
pub struct HealthArguments {
    /// Address of the coordinator, or of its health service
    #[arg(long, env = "LOCKSTEP_COORDINATOR", value_name = "URL")]
    pub coordinator: String,
    /// Ask again for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub wait: u64,
    /// What is shown to it.
    #[command(flatten)]
    pub credentials: CredentialArguments,
}

/// `lockstep certs …`.
#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Make an authority of one's own and certificates for coordinator, trainers, operators and viewers
    New(CertsArguments),
    /// Make a token, print it once, and add its hash to a file for security.tokens
    Token(TokenArguments),
}

/// `lockstep certs new`.
#[derive(Debug, Args)]
pub struct CertsArguments {
    /// The folder for the files, made if it is not there; no file in it is written over
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// A name or address of the coordinator's host, besides localhost and this machine's name (may be repeated)
    #[arg(long = "host", value_name = "NAME")]
    pub hosts: Vec<String>,
    /// Days for which the certificates are valid
    #[arg(long, default_value_t = 365, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
}

/// `lockstep certs token`.
#[derive(Debug, Args)]
pub struct TokenArguments {
    /// What it is for: trainer, operator or viewer
    #[arg(long)]
    pub role: Role,
    /// Whose it is; the ledger names it with every order
    #[arg(long)]
    pub name: String,
    /// The file of hashes, made if it is not there
    #[arg(long, value_name = "FILE")]
    pub tokens: PathBuf,
}

/// On what conditions an order is carried out.
#[derive(Debug, Clone, Args)]
pub struct Conditions {
    /// Name of this order: said again it is answered again, and not carried out again (by itself each has one of its own)
    #[arg(long = "order-key", value_name = "NAME")]
    pub order_key: Option<String>,
    /// Only if it takes effect before this step
    #[arg(long, value_name = "STEP")]
    pub if_step_before: Option<u64>,
    /// Only say what would be answered
    #[arg(long)]
    pub dry_run: bool,
}

/// An order without a content.
#[derive(Debug, Args)]
pub struct OrderArguments {
    /// Which run.
    #[command(flatten)]
    pub target: Target,
    /// On what conditions.
    #[command(flatten)]
    pub conditions: Conditions,
}

/// `lockstep stop`.
#[derive(Debug, Args)]
pub struct StopArguments {
    /// Which run.
    #[command(flatten)]
    pub target: Target,
    /// On what conditions.
    #[command(flatten)]
    pub conditions: Conditions,
    /// Not now but after this step; 0 takes back an earlier wish
    #[arg(long, value_name = "STEP")]
    pub after: Option<u64>,
}

/// `lockstep set`.
#[derive(Debug, Args)]
pub struct SetArguments {
    /// [RUN] KEY=VALUE…: learning_rate, batch, momentum, weight_decay (a number, xFACTOR or schedule), validate_every,
    /// checkpoint_every
    #[arg(required = true, value_name = "KEY=VALUE")]
    pub words: Vec<String>,
    /// Address of the run's coordinator, such as http://127.0.0.1:40001 or https://HOST:PORT
    #[arg(long, value_name = "URL")]
    pub coordinator: Option<String>,
    /// What is shown to it.
    #[command(flatten)]
    pub credentials: CredentialArguments,
    /// On what conditions.
    #[command(flatten)]
    pub conditions: Conditions,
}

/// `lockstep extend`.
#[derive(Debug, Args)]
pub struct ExtendArguments {
    /// Which run.
    #[command(flatten)]
    pub target: Target,
    /// On what conditions.
    #[command(flatten)]
    pub conditions: Conditions,
    /// By how much.
    #[command(flatten)]
    pub by: Longer,
}

/// By how much a run is made longer, in the unit of its length.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct Longer {
    /// By so many steps
    #[arg(long)]
    pub steps: Option<u64>,
    /// By so many samples
    #[arg(long)]
    pub samples: Option<u64>,
    /// By so many tokens
    #[arg(long)]
    pub tokens: Option<u64>,
    /// By so many passes over the training data
    #[arg(long)]
    pub epochs: Option<f64>,
}

/// `lockstep skip`.
#[derive(Debug, Args)]
pub struct SkipArguments {
    /// Which run.
    #[command(flatten)]
    pub target: Target,
    /// How many
    #[arg(long, value_name = "COUNT")]
    pub samples: u64,
    /// On what conditions.
    #[command(flatten)]
    pub conditions: Conditions,
}

/// `lockstep rewind`.
#[derive(Debug, Args)]
pub struct RewindArguments {
    /// Which run.
    #[command(flatten)]
    pub target: Target,
    /// The step whose parameters it goes on from; 0: the initial ones
    #[arg(long, value_name = "STEP")]
    pub to: u64,
    /// On what conditions.
    #[command(flatten)]
    pub conditions: Conditions,
}

/// `lockstep drain`.
#[derive(Debug, Args)]
pub struct DrainArguments {
    /// Which run.
    #[command(flatten)]
    pub target: Target,
    /// Name of the trainer, as `lockstep members` shows it
    #[arg(long, value_name = "NAME")]
    pub member: String,
    /// On what conditions.
    #[command(flatten)]
    pub conditions: Conditions,
}

/// `lockstep top`.
#[derive(Debug, Args)]
pub struct TopArguments {
    /// Which run
    #[command(flatten)]
    pub target: Target,
    /// Print one frame as plain text and end
    #[arg(long)]
    pub once: bool,
}

/// `lockstep data …`.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Turn text into tokens; the last tenth is kept for validation
    Prepare(PrepareArguments),
}

/// `lockstep ledger …`.
#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// Show terms, generations, plans, committed steps, snapshots, validations, decisions and ends, and the size
    Show {
        /// The run's folder, or the name of a run under ./runs
        run_dir: PathBuf,
        /// Print JSON: one object, or with --table one a row
        #[arg(long)]
        json: bool,
        /// Show every row of one table
        #[arg(long, value_name = "NAME")]
        table: Option<String>,
    },
    /// Prove from the ledger alone that every step and sample was trained once, in order, by the plans of the config
    Audit {
        /// The run's folder, or the name of a run under ./runs
        run_dir: PathBuf,
        /// Print one JSON object for each claim
        #[arg(long)]
        json: bool,
    },
    /// Make every decision again from the recorded events, and compare with what was decided
    Replay {
        /// The run's folder, or the name of a run under ./runs
        run_dir: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// `lockstep data prepare`.
#[derive(Debug, Args)]
pub struct PrepareArguments {
    /// How text becomes tokens: byte, gpt2, FILE.json (of the tokenizers library) or train:VOCAB
    #[arg(long, default_value = "byte")]
    pub tokenizer: TokenizerChoice,
    /// The data folder to make; a former data folder is replaced
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Text files, and folders of them
    #[arg(required = true, value_name = "PATH")]
    pub inputs: Vec<PathBuf>,
}

/// `lockstep schedule`.
#[derive(Debug, Args)]
pub struct ScheduleArguments {
    /// The config of the run, a TOML file
    pub config: PathBuf,
    /// Set a value of the config: section.key=value (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Write every step as CSV
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Draw learning rate and batch size, over samples
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Show another config's schedule beside it
    #[arg(long, value_name = "CONFIG")]
    pub compare: Option<PathBuf>,
}

/// `lockstep plan`.
#[derive(Debug, Args)]
pub struct PlanArguments {
    /// The config of the run, a TOML file
    pub config: PathBuf,
    /// Numbers of ranks, such as 1,2,8
    #[arg(short = 'n', long, default_value = "1", value_name = "RANKS")]
    pub ranks: String,
    /// What the ranks compute on: here (measured in a minute), or a100, h100, h200, b200, l40s, rtx4090 (by data sheet)
    #[arg(long)]
    pub device: Option<String>,
    /// What a rank gets from the others, GB/s, instead of what is measured or known
    #[arg(long, value_name = "GB/S")]
    pub link: Option<f64>,
    /// The step whose batch is looked at
    #[arg(long, default_value_t = 1)]
    pub step: u64,
    /// Set a value of the config: section.key=value (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

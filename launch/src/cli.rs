//! What can be typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lockstep_data::TokenizerChoice;

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
    /// Show what a live run does
    Status(Target),
    /// Follow a live run, a line per step
    Watch(Target),
    /// List the trainers of a live run
    Members(Target),
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
    Pause(Target),
    /// Let a paused run go on
    Resume(Target),
    /// Stop a live run at the end of a step and write its final files
    Stop(Target),
    /// Have a live run write a checkpoint as soon as it can
    Checkpoint(Target),
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
    /// Preview learning rate, batch size and length of a run
    Schedule(ScheduleArguments),
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

/// `lockstep run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The config of the run, a TOML file
    pub config: PathBuf,
    /// Trainer processes: a number from 1 to run.lanes, or auto (as many as cores and lanes allow)
    #[arg(short = 'n', long = "ranks", default_value = "auto", value_name = "RANKS")]
    pub ranks: Ranks,
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
    /// Address of the run's coordinator, such as http://127.0.0.1:40001
    #[arg(long, value_name = "URL")]
    pub coordinator: Option<String>,
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
    /// Draw learning rate and batch size
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

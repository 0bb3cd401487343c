//! What can be typed to start a run by somebody else's launcher.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::TrainingArguments;

/// `lockstep mpirun`.
#[derive(Debug, Args)]
pub struct MpirunArguments {
    /// What is trained, and how it is shown.
    #[command(flatten)]
    pub training: TrainingArguments,
    /// Trainer processes: a number from 1 to run.lanes
    #[arg(short = 'n', long = "ranks", value_name = "RANKS", value_parser = clap::value_parser!(u32).range(1..))]
    pub ranks: u32,
    /// The hosts for them, as mpirun wants them
    #[arg(long, value_name = "FILE")]
    pub hostfile: Option<PathBuf>,
    /// The name or address by which the other hosts reach this one
    #[arg(long, value_name = "NAME")]
    pub advertise: Option<String>,
    /// Other words for mpirun
    #[arg(last = true, value_name = "MPIRUN_ARGS")]
    pub arguments: Vec<OsString>,
}

/// `lockstep slurm …`.
#[derive(Debug, Subcommand)]
pub enum SlurmCommand {
    /// Print the script of a job, for sbatch
    Render(RenderArguments),
}

/// `lockstep slurm render`.
#[derive(Debug, Args)]
pub struct RenderArguments {
    /// The config of the run, a TOML file
    pub config: PathBuf,
    /// Trainer processes: a number from 1 to run.lanes
    #[arg(short = 'n', long = "ranks", default_value_t = 1, value_name = "RANKS", value_parser = clap::value_parser!(u32).range(1..))]
    pub ranks: u32,
    /// Hosts for them
    #[arg(long, value_name = "NODES", value_parser = clap::value_parser!(u32).range(1..))]
    pub nodes: Option<u32>,
    /// The time limit, as Slurm writes it: MINUTES, HOURS:MINUTES:SECONDS, DAYS-HOURS …
    #[arg(long, value_name = "TIME")]
    pub time: Option<String>,
    /// The partition
    #[arg(long, value_name = "NAME")]
    pub partition: Option<String>,
    /// The account
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
    /// Seconds before the time limit at which the run is stopped, so that it writes its checkpoint
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=65_535))]
    pub grace: u32,
    /// Indices of an array of jobs; each is a run of its own, whose name ends in its index
    #[arg(long, value_name = "INDICES")]
    pub array: Option<String>,
    /// Memory of each host, as Slurm writes it
    #[arg(long, value_name = "SIZE")]
    pub mem: Option<String>,
    /// Set a value of the config: section.key=value (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Another line of #SBATCH, without that word (may be repeated)
    #[arg(long = "sbatch", value_name = "OPTION", allow_hyphen_values = true)]
    pub options: Vec<String>,
    /// The trainer on the hosts [default: the one beside this program]
    #[arg(long, value_name = "PROGRAM")]
    pub trainer: Option<PathBuf>,
}

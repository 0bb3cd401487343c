//! `cargo xtask setup|demo|test|bench`: everything a newcomer, a developer and the continuous integration type.
//!
//! Plain Rust that is built before libtorch exists: [`setup`] fetches libtorch, [`demo`] shows a whole run,
//! [`stages`] is what the continuous integration runs, [`repository`] are the rules about the files themselves, and
//! [`bench`] measures a training step. [`workspace`] knows where things are and [`process`] starts programs; each
//! failure is one [`failure::Failure`]: a sentence and an exit code.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bench;
mod demo;
mod failure;
mod metrics;
mod plot;
mod process;
mod repository;
mod setup;
mod stages;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Failure;
use crate::workspace::Workspace;

/// The chores of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Fetch libtorch and check the compiler; does nothing where all is in place.
    Setup {
        /// Put libtorch under this folder instead of third_party.
        #[arg(long, hide = true)]
        root: Option<PathBuf>,
    },
    /// Build everything and train a small GPT on Shakespeare with two ranks on this machine.
    Demo,
    /// What the continuous integration runs: repository rules, format, clippy, build and all tests.
    Test {
        /// Only these stages, in the usual order (default: all).
        #[arg(value_enum)]
        stages: Vec<stages::Stage>,
    },
    /// Measure.
    Bench {
        #[command(subcommand)]
        what: BenchKind,
    },
}

#[derive(Subcommand)]
enum BenchKind {
    /// A step of a 30 M parameter GPT on two ranks with one thread each, beside a peer if one is given.
    Train {
        /// A training script for `python -m torch.distributed.run` that prints one JSON line, run turn about with ours.
        #[arg(long, requires = "python")]
        peer: Option<PathBuf>,
        /// The Python interpreter that has what the peer needs.
        #[arg(long, requires = "peer")]
        python: Option<PathBuf>,
        /// An argument for the peer's script; repeat it for more.
        #[arg(long = "peer-arg", requires = "peer", allow_hyphen_values = true)]
        peer_arguments: Vec<String>,
        /// How many runs of each.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
        runs: u32,
        /// A change of the config, as in `lockstep run --set`; repeat it for more.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        sets: Vec<String>,
    },
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let workspace = Workspace::find()?;
    match arguments.chore {
        Chore::Setup { root } => setup::setup(&workspace, root.as_deref()),
        Chore::Demo => demo::demo(&workspace),
        Chore::Test { stages } => stages::test(&workspace, &stages),
        Chore::Bench {
            what:
                BenchKind::Train {
                    peer,
                    python,
                    peer_arguments,
                    runs,
                    sets,
                },
        } => {
            let peer = peer.zip(python).map(|(script, python)| bench::Peer {
                script,
                python,
                arguments: peer_arguments,
            });
            bench::train(&workspace, peer.as_ref(), runs, &sets)
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            failure.exit_code()
        }
    }
}

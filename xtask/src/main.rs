//! `cargo xtask setup|demo|test|chaos|sanitize|check-gpu|containers|bench`: everything a newcomer, a developer and the continuous integration
//! type.
//!
//! Plain Rust that is built before libtorch exists: [`setup`] fetches libtorch, [`demo`] shows a whole run,
//! [`stages`] is what the continuous integration runs, [`repository`] are the rules about the files themselves,
//! [`chaos`] disturbs real runs, [`sanitize`] tests under the sanitizers, [`check_gpu`] looks at NVIDIA's libraries,
//! [`containers`] trains in containers, and [`bench`] measures. [`workspace`]
//! knows where things are and [`process`] starts programs; each failure is one [`failure::Failure`]: a sentence and an exit
//! code.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bench;
mod chaos;
mod check_gpu;
mod containers;
mod demo;
mod failure;
mod metrics;
mod plot;
mod process;
mod repository;
mod sanitize;
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
        /// Fetch the CUDA build of libtorch and its libraries into third_party/cuda too (2.4 GB to fetch, 3.4 GB on disk).
        #[arg(long)]
        cuda: bool,
    },
    /// Build everything and train a small GPT on Shakespeare with two ranks on this machine.
    Demo,
    /// What the continuous integration runs: repository rules, format, clippy, build and all tests.
    Test {
        /// Only these stages, in the usual order (default: all).
        #[arg(value_enum)]
        stages: Vec<stages::Stage>,
    },
    /// Disturb real runs by real faults, and compare each with a run that nothing disturbs.
    Chaos(chaos::Options),
    /// Test the communication on the host under the address and the thread sanitizer; needs Rust's `rust-src`.
    Sanitize {
        /// Only these (default: both).
        #[arg(value_enum)]
        sanitizers: Vec<sanitize::Sanitizer>,
    },
    /// Check the GPU path on a machine without a GPU; fetches NVIDIA's libraries as `setup --cuda` does.
    CheckGpu {
        /// Only these checks, in the usual order (default: all).
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(check_gpu::names()))]
        checks: Vec<String>,
    },
    /// Build the image's run-time stages with Docker, and train in such containers as the objects of Kubernetes say.
    Containers(containers::Options),
    /// Measure.
    Bench {
        #[command(subcommand)]
        what: bench::Kind,
    },
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let workspace = Workspace::find()?;
    match arguments.chore {
        Chore::Setup { root, cuda: true } => setup::setup_for_gpus(&workspace, root.as_deref()),
        Chore::Setup { root, cuda: false } => setup::setup(&workspace, root.as_deref()),
        Chore::Demo => demo::demo(&workspace),
        Chore::Test { stages } => stages::test(&workspace, &stages),
        Chore::Chaos(options) => chaos::chaos(&workspace, &options),
        Chore::Sanitize { sanitizers } => sanitize::sanitize(&workspace, &sanitizers),
        Chore::CheckGpu { checks } => check_gpu::check_gpu(&workspace, &checks),
        Chore::Containers(options) => containers::containers(&workspace, &options),
        Chore::Bench { what } => bench::bench(&workspace, &what),
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

//! `bench scale`: how the coordinator takes many members. The pure machine with worlds of growing size, and a coordinator
//! process with real connections while an operator calls. The work itself is in `coordinator/examples/scale`, which needs no
//! libtorch; this builds it and runs it.

use std::process::Command;

use clap::Args;

use super::step::machine;
use crate::failure::Failure;
use crate::process;
use crate::workspace::Workspace;

/// Options of `bench scale`.
#[derive(Args)]
pub(crate) struct Options {
    /// Members with a connection each.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    members: u32,
    /// Steps of the load.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(6..=100_000))]
    steps: u64,
    /// Milliseconds of a step; 0: as fast as they go.
    #[arg(long, default_value_t = 1_000)]
    step_ms: u64,
    /// Sizes of the worlds that the pure machine is given.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 10_000, 100_000])]
    worlds: Vec<u32>,
    /// Leave the load out.
    #[arg(long)]
    only_machine: bool,
    /// Leave the pure machine out.
    #[arg(long, conflicts_with = "only_machine")]
    only_load: bool,
    /// A change of the load's config, as in `lockstep run --set`; repeat it for more.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// Runs the benchmark, which prints its tables.
pub(crate) fn scale(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let package = ["--release", "--package", "lockstep-coordinator"];
    let mut build = workspace.cargo();
    build.arg("build").args(package).args(["--bins", "--example", "scale"]);
    process::run("building", &mut build)?;
    println!("\n{}", machine());
    if !options.only_load {
        let worlds: Vec<String> = options.worlds.iter().map(u32::to_string).collect();
        let mut pure = program(workspace);
        pure.args(["machine", "--members", &worlds.join(",")]);
        process::run("measuring the machine", &mut pure)?;
    }
    if !options.only_machine {
        let mut load = program(workspace);
        load.args(["load", "--members", &options.members.to_string()])
            .args(["--steps", &options.steps.to_string()])
            .args(["--step-ms", &options.step_ms.to_string()]);
        for set in &options.sets {
            load.args(["--set", set]);
        }
        process::run("measuring the load", &mut load)?;
    }
    Ok(())
}

fn program(workspace: &Workspace) -> Command {
    Command::new(workspace.program("examples/scale"))
}

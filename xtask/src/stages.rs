//! `test`: what the continuous integration runs, stage by stage in one target folder and one profile. The first stage
//! that fails ends it, with its name.

use std::time::Instant;

use clap::ValueEnum;

use crate::chaos;
use crate::failure::Failure;
use crate::process;
use crate::repository;
use crate::setup::{browser, jobs, mpi, python, setup};
use crate::workspace::Workspace;

/// A stage, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Stage {
    /// Compiler, libtorch, MPI, and what starts jobs.
    Setup,
    /// The rules about the files of the repository.
    Repository,
    /// `cargo fmt --check`.
    Format,
    /// `cargo clippy`, warnings refused.
    Clippy,
    /// Every program and test.
    Build,
    /// Unit, property and end-to-end tests.
    Tests,
    /// A run under thirty real faults, of a new seed each time.
    Chaos,
}

impl Stage {
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn run(self, workspace: &Workspace) -> Result<(), Failure> {
        let cargo = |arguments: &[&str]| {
            let mut cargo = workspace.cargo();
            if !mpi::is_there() {
                // Tests of whole runs are left out with the trainer that they need.
                cargo.env(mpi::WITHOUT, "1");
            }
            for without in jobs::left_out() {
                cargo.env(without, "1");
            }
            if let Some(browser) = browser::program() {
                // Tests that want one must not leave themselves out.
                cargo.env(browser::BROWSER, browser);
            }
            if self == Stage::Tests
                && let Some(packages) = python::prepare(&workspace.third_party())
            {
                cargo.env(python::PACKAGES, packages);
            }
            process::run(&format!("`cargo {}`", arguments[0]), cargo.args(arguments))
        };
        let with_members = |before: &[&str], after: &[&str]| cargo(&[before, &mpi::members(), after].concat());
        match self {
            Stage::Setup => setup(workspace, None),
            Stage::Repository => repository::check(&workspace.root),
            Stage::Format => cargo(&["fmt", "--all", "--check"]),
            Stage::Clippy => with_members(&["clippy", "--release"], &["--all-targets", "--", "--deny", "warnings"]),
            Stage::Build => with_members(&["build", "--release"], &[]),
            Stage::Tests => with_members(&["test", "--release"], &["--no-fail-fast"]),
            Stage::Chaos => chaos::chaos(workspace, &chaos::Options::short()),
        }
    }
}

/// Runs `chosen`, or every stage if none is chosen, and prints how long each took.
pub(crate) fn test(workspace: &Workspace, chosen: &[Stage]) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for stage in in_order(chosen) {
        println!("\n== {}", stage.name());
        let started = Instant::now();
        let result = stage.run(workspace);
        let seconds = started.elapsed().as_secs_f64();
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        lines.push(format!("{:<12}{word:<8}{seconds:>7.1} s", stage.name()));
        if let Err(failure) = result {
            println!("\n{}", lines.join("\n"));
            return Err(Failure::work(format!("the stage {} failed: {failure}", stage.name())));
        }
    }
    println!("\n{}\nall stages passed", lines.join("\n"));
    Ok(())
}

fn in_order(chosen: &[Stage]) -> Vec<Stage> {
    let mut stages = if chosen.is_empty() {
        Stage::value_variants().to_vec()
    } else {
        chosen.to_vec()
    };
    stages.sort();
    stages.dedup();
    stages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_run_in_their_order_once_and_all_by_default() {
        assert_eq!(in_order(&[]), Stage::value_variants());
        assert_eq!(
            in_order(&[Stage::Tests, Stage::Format, Stage::Tests]),
            [Stage::Format, Stage::Tests]
        );
    }
}

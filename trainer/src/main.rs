//! `lockstep-trainer`: the process that trains, and the commands that need libtorch.

use std::process::ExitCode;

fn main() -> ExitCode {
    lockstep_trainer::cli::main(None)
}

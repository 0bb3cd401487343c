//! `lockstep-trainer-mpi`: the trainer, linked with an MPI.

use std::process::ExitCode;

use lockstep_trainer_mpi::Library;

fn main() -> ExitCode {
    lockstep_trainer::cli::main(Some(&Library))
}

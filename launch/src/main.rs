//! `lockstep`: parses the command line, carries the command out, ends with its exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = lockstep::cli::Cli::parse();
    match lockstep::execute(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(ending) => {
            if let Some(sentence) = ending.sentence() {
                eprintln!("error: {sentence}");
            }
            ExitCode::from(ending.code())
        }
    }
}

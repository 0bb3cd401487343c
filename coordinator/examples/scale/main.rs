//! How the coordinator takes many members. `scale machine` feeds the pure machine with worlds of growing size and says what
//! an event costs by kind; `scale load` starts a coordinator process and trainers that speak the protocol over sockets of
//! their own and train nothing, and says what the coordinator needs for them and how long operators wait meanwhile.
//!
//! Way of data: [`machine`] is alone; in `load`, [`load`] starts the process and the threads, [`member`] is one trainer,
//! [`operator`] calls the control service, [`process`] reads what the kernel counts, [`numbers`] lays out what was measured.
//! `cargo xtask bench scale` runs both.

mod load;
mod machine;
mod member;
mod numbers;
mod operator;
mod process;

use clap::{Parser, Subcommand};

/// What is measured.
#[derive(Parser)]
#[command(name = "scale")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The pure machine: microseconds of an event by kind, and how that grows with the members.
    Machine(machine::Options),
    /// A coordinator process and members with connections of their own.
    Load(load::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Machine(options) => machine::measure(&options),
        What::Load(options) => load::measure(&options),
    }
}

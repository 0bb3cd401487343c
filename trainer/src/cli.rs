//! The command line of `lockstep-trainer` and of its sibling with MPI. A thin shell: arguments in, an exit code out
//! (0 done, 2 bad input, 3 stopped by an operator, 4 set apart from a run that goes on and wants another process, 1 anything
//! else).

use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::bench::{BenchOptions, Carrier, collectives};
use crate::error::TrainerError;
use crate::facts::facts;
use crate::generate::{GenerateOptions, generate};
use crate::inspect::inspect;
use crate::plan::{PlanOptions, plan};
use crate::started::{end_with_starter, guard, keep_log, member};
use crate::together::{TogetherOptions, together};
use crate::train::{Mpi, TrainOptions, train};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use lockstep_proto::domain::Outcome;
use lockstep_security::{CredentialArguments, Credentials};
use lockstep_session::SessionError;

/// Trains as one rank of a run, and does what needs libtorch.
///
/// With a config it trains as a rank of the job that mpirun, srun or torchrun has started; rank 0 hosts the coordinator, unless
/// one is named.
#[derive(Parser)]
#[command(
    name = "lockstep-trainer",
    version,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    together: TogetherArguments,
}

/// A trainer that is started with a config.
#[derive(Args)]
struct TogetherArguments {
    /// The config of the run, a TOML file.
    config: Option<PathBuf>,
    /// Overrides keys of the config: KEY=VALUE.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// The number of ranks [default: as what has started them says].
    #[arg(long)]
    ranks: Option<u32>,
    /// The address of a coordinator that runs elsewhere [default: rank 0 hosts one].
    #[arg(long, env = "LOCKSTEP_COORDINATOR")]
    coordinator: Option<String>,
    /// The file in which ranks find the coordinator that rank 0 hosts [default: coordinator.json in the run's folder].
    #[arg(long, env = "LOCKSTEP_COORDINATOR_FILE", value_name = "FILE")]
    coordinator_file: Option<PathBuf>,
    /// The hosts of the job, rank 0's first, as mpirun has them; Slurm's are known.
    #[arg(long, env = "LOCKSTEP_HOSTFILE", value_name = "FILE")]
    hostfile: Option<PathBuf>,
    #[command(flatten)]
    member: MemberArguments,
}

/// What a member of a run is told, however it is started.
#[derive(Args)]
struct MemberArguments {
    #[command(flatten)]
    credentials: CredentialArguments,
    /// The name of this member, unique in the run [default where ranks are started together: trainer-RANK].
    #[arg(long, env = "LOCKSTEP_MEMBER")]
    member: Option<String>,
    /// The run's folder [default: runs/NAME].
    #[arg(long, env = "LOCKSTEP_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// The address at which other hosts reach this one [default: the one that leads to the coordinator].
    #[arg(long, env = "LOCKSTEP_ADVERTISE")]
    advertise: Option<IpAddr>,
    /// Seconds for which a coordinator is looked for whose connection broke.
    #[arg(long, env = "LOCKSTEP_COORDINATOR_PATIENCE", default_value_t = 300)]
    coordinator_patience: u64,
}

#[derive(Subcommand)]
enum Command {
    /// Train as a member of a run.
    Train {
        /// The coordinator's address.
        #[arg(long, env = "LOCKSTEP_COORDINATOR")]
        coordinator: String,
        #[command(flatten)]
        member: MemberArguments,
    },
    /// Write text with final weights.
    Generate {
        /// The folder of final weights, for example runs/NAME/final.
        weights: PathBuf,
        /// What the text begins with.
        #[arg(long)]
        prompt: String,
        /// Tokens to add.
        #[arg(long, default_value_t = 200)]
        tokens: u32,
        /// 0 takes the most likely token; 1 draws as the model says.
        #[arg(long, default_value_t = 0.8)]
        temperature: f64,
        /// Seed of the draws.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Measure.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Predict memory, communication and time of a run's steps, by a short calibration here or a device's data sheet.
    Plan {
        /// A config file.
        config: PathBuf,
        /// Numbers of ranks, such as 1,2,8.
        #[arg(short = 'n', long, value_delimiter = ',', default_value = "1")]
        ranks: Vec<u32>,
        /// What the ranks compute on: here, or a device that is known by its data sheet, such as h100.
        #[arg(long)]
        device: Option<String>,
        /// What a rank gets from the others, GB/s, instead of what is measured or known.
        #[arg(long, value_name = "GB/S", value_parser = positive)]
        link: Option<f64>,
        /// Micro-batches of a step [default: one a lane; `lockstep plan` reads it from the schedule].
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        micro_batches: Option<u32>,
        /// Steps of the run.
        #[arg(long)]
        steps: Option<u64>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
        /// Overrides keys of the config: KEY=VALUE.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        sets: Vec<String>,
    },
    /// Print what `lockstep doctor` asks for: libraries, instructions, GPUs, the memory of a config. One JSON object.
    Facts {
        /// A config file.
        config: Option<PathBuf>,
        /// Ranks of the world whose memory is told.
        #[arg(short = 'n', long, default_value_t = 1)]
        ranks: u32,
        /// Overrides keys of the config: KEY=VALUE.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        sets: Vec<String>,
    },
    /// Show tensors, owners and memory of a config, or the tensors of final weights.
    Inspect {
        /// A config file, or a folder of final weights.
        path: PathBuf,
        /// Ranks of the world whose owners are shown.
        #[arg(short = 'n', long, default_value_t = 1)]
        ranks: u32,
        /// Overrides keys of the config: KEY=VALUE.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        sets: Vec<String>,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// Latency and bandwidth of the collectives by size, between ranks on this machine.
    Collectives {
        /// What carries the data.
        #[arg(long, value_enum, default_value = "host")]
        backend: Carrier,
        /// Ranks; under mpirun as many as it starts.
        #[arg(short = 'n', long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=64))]
        ranks: u32,
        /// The largest payload, in MiB.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
        largest: u32,
        /// Timed rounds of each size.
        #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        rounds: u32,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
}

/// The whole program; `mpi` where the binary has it.
pub fn main(mpi: Option<&'static dyn Mpi>) -> ExitCode {
    lockstep_autograd::cuda::open_libraries(); // before anything asks libtorch about CUDA; callers later get the answer
    let version = match mpi {
        Some(mpi) => format!("{} ({})", env!("CARGO_PKG_VERSION"), mpi.version()),
        None => env!("CARGO_PKG_VERSION").to_owned(),
    };
    let matches = Arguments::command().version(version).get_matches();
    let arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        // Whoever has read it may have gone, and by itself that would be said there, too.
        .log_internal_errors(false)
        .init();
    if !lockstep_autograd::keep_freed_memory() {
        tracing::warn!("the C allocator cannot be told to keep freed memory; steps will be slower");
    }
    let code = match run(arguments, mpi) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lockstep-trainer: {error}");
            match error {
                TrainerError::SetApart(_) => 4,
                error if is_bad_input(&error) => 2,
                _ => 1,
            }
        }
    };
    // A reader that went away is no failure of ours.
    let _ = std::io::stdout().flush();
    lockstep_autograd::device::leave_if_opened(code);
    ExitCode::from(code)
}

fn is_bad_input(error: &TrainerError) -> bool {
    matches!(
        error,
        TrainerError::Refused(_)
            | TrainerError::OutOfMemory(_)
            | TrainerError::Config(_)
            | TrainerError::Data(_)
            | TrainerError::File { .. }
            | TrainerError::Session(SessionError::Credentials(_))
    )
}

fn run(arguments: Arguments, mpi: Option<&'static dyn Mpi>) -> Result<u8, TrainerError> {
    let (command, arguments) = (arguments.command, arguments.together);
    match (command, arguments.config) {
        (Some(command), _) => carry_out(command, mpi),
        (None, Some(config)) => {
            let (member, train) = options_of(String::new(), arguments.member)?;
            let options = TogetherOptions {
                config,
                sets: arguments.sets,
                ranks: arguments.ranks,
                coordinator: arguments.coordinator,
                coordinator_file: arguments.coordinator_file,
                hostfile: arguments.hostfile,
                member,
                train,
            };
            together(&options, mpi)
        }
        (None, None) => Err(TrainerError::Refused(
            "name a config, or a command (see --help)".to_owned(),
        )),
    }
}

/// What a member is told, but for its name, which may be given.
fn options_of(coordinator: String, member: MemberArguments) -> Result<(Option<String>, TrainOptions), TrainerError> {
    let options = TrainOptions {
        coordinator,
        credentials: Credentials::of(member.credentials).map_err(SessionError::from)?,
        member: String::new(),
        run_dir: member.run_dir,
        advertise: member.advertise,
        coordinator_patience: Duration::from_secs(member.coordinator_patience),
        run: None,
        leaves_on_sigterm: true,
    };
    Ok((member.member, options))
}

fn carry_out(command: Command, mpi: Option<&'static dyn Mpi>) -> Result<u8, TrainerError> {
    match command {
        Command::Train {
            coordinator,
            member: arguments,
        } => {
            if let Some(code) = guard::stand_before()? {
                return Ok(code);
            }
            let (name, mut options) = options_of(coordinator, arguments)?;
            options.member = member(name)?;
            keep_log()?;
            end_with_starter()?;
            mpi.map_or(Ok(()), Mpi::start)?;
            let outcome = train(&options, mpi)?;
            // After a failure MPI is not finished, since that waits for all ranks: this process then ends without, which
            // tells mpirun to end the job.
            mpi.map_or(Ok(()), Mpi::finish)?;
            Ok(match outcome {
                Outcome::Completed => 0,
                Outcome::Stopped => 3,
                Outcome::Failed { .. } => 1,
            })
        }
        Command::Generate {
            weights,
            prompt,
            tokens,
            temperature,
            seed,
        } => {
            tch::set_num_threads(1);
            print_out(&generate(&GenerateOptions {
                weights,
                prompt,
                tokens,
                temperature,
                seed,
            })?)
        }
        Command::Bench {
            what:
                Bench::Collectives {
                    backend,
                    ranks,
                    largest,
                    rounds,
                    json,
                },
        } => {
            let options = BenchOptions {
                backend,
                ranks,
                largest: (largest as usize) << 20,
                rounds: rounds as usize,
                json,
            };
            mpi.map_or(Ok(()), Mpi::start)?;
            collectives(&options, mpi)?;
            mpi.map_or(Ok(()), Mpi::finish)?;
            Ok(0)
        }
        Command::Plan {
            config,
            ranks,
            device,
            link,
            micro_batches,
            steps,
            json,
            sets,
        } => {
            let planned = plan(&PlanOptions {
                config,
                sets,
                ranks,
                device,
                link,
                micro_batches,
                steps,
                json,
            })?;
            planned.map_or(Ok(0), |text| print_out(&text))
        }
        Command::Facts { config, ranks, sets } => print_out(&facts(config.as_deref(), ranks, &sets, mpi)?),
        Command::Inspect { path, ranks, sets } => print_out(&inspect(&path, ranks, &sets)?),
    }
}

/// A number above 0.
fn positive(word: &str) -> Result<f64, String> {
    match word.parse() {
        Ok(number) if number > 0.0 && f64::is_finite(number) => Ok(number),
        _ => Err("write a number above 0".to_owned()),
    }
}

fn print_out(text: &str) -> Result<u8, TrainerError> {
    // A reader that went away (a closed pipe) is no failure of ours.
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end_matches('\n'));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_stands_where_a_command_would_and_never_beside_one() {
        let parsed = |words: &str| Arguments::try_parse_from(words.split_whitespace());
        let together = parsed("lockstep-trainer run.toml --set run.steps=3 --ranks 2").unwrap();
        assert!(together.command.is_none());
        assert_eq!(together.together.config, Some(PathBuf::from("run.toml")));
        assert_eq!((together.together.sets.len(), together.together.ranks), (1, Some(2)));
        let one = parsed("lockstep-trainer train --coordinator http://127.0.0.1:1").unwrap();
        assert!(matches!(one.command, Some(Command::Train { .. })) && one.together.config.is_none());
        assert!(parsed("lockstep-trainer run.toml train --coordinator http://127.0.0.1:1").is_err());
        assert!(parsed("lockstep-trainer").is_err(), "nothing is no run");
    }
}

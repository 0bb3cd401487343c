//! The coordinator as a process of its own, for pods and clusters: prints its address and serves one run. Started again
//! on the folder of a run that has begun, it goes on with it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use lockstep_config::RunConfig;
use lockstep_coordinator::{BegunRun, ControlHandle, Coordinator, CoordinatorOptions, Running, StartError};
use lockstep_data::Dataset;
use lockstep_proto::domain::Outcome;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal as Caught, SignalKind, signal};

/// Names the process that hosts this one.
const PARENT: &str = "LOCKSTEP_PARENT_PID";

/// Coordinates one run.
#[derive(Parser)]
#[command(name = "lockstep-coordinator", version)]
struct Arguments {
    /// The run's config, a TOML file.
    #[arg(long, env = "LOCKSTEP_CONFIG")]
    config: PathBuf,
    /// Overrides a key of the config.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// The run's folder.
    #[arg(long, env = "LOCKSTEP_RUN_DIR")]
    run_dir: PathBuf,
    /// Trainers of the world.
    #[arg(long, env = "LOCKSTEP_RANKS")]
    ranks: u32,
    /// Where to listen, instead of coordinator.bind; an address other than loopback as [security] allows.
    #[arg(long, env = "LOCKSTEP_LISTEN")]
    listen: Option<SocketAddr>,
    /// Belong to the process that has started this one: end with it, leave signals to it, and stop the run when it writes
    /// `stop` to stdin. Rank 0 of a job starts its coordinator so.
    #[arg(long)]
    hosted: bool,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env().add_directive(tracing::Level::INFO.into()))
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    let is_hosted = arguments.hosted;
    if is_hosted && let Err(sentence) = end_with_parent() {
        eprintln!("lockstep-coordinator: {sentence}");
        return ExitCode::FAILURE;
    }
    // Before anything starts: whoever has read the address may signal at once, and must not find the default action.
    let signals = match Signals::install(is_hosted) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("lockstep-coordinator: cannot listen for SIGINT and SIGTERM: {error}");
            return ExitCode::FAILURE;
        }
    };
    let running = match start(arguments) {
        Ok(running) => running,
        Err(error) => {
            eprintln!("lockstep-coordinator: {error:#}");
            // Whoever starts it again and again must not take a run that is complete for one that cannot begin.
            let is_over = matches!(error.downcast_ref(), Some(StartError::Over { .. }));
            return if is_over { ExitCode::SUCCESS } else { ExitCode::from(2) };
        }
    };
    println!("{}", running.url());
    let handle = running.handle();
    std::thread::spawn(move || match is_hosted {
        true => obey_stdin(&handle),
        false => signals.obey(&handle),
    });
    let end = running.wait();
    eprintln!("{}", end.reason);
    match end.outcome {
        Outcome::Completed => ExitCode::SUCCESS,
        Outcome::Stopped => ExitCode::from(3),
        Outcome::Failed { .. } => ExitCode::FAILURE,
    }
}

fn start(arguments: Arguments) -> anyhow::Result<Running> {
    let mut sets = arguments.sets;
    if let Some(listen) = arguments.listen {
        sets.push(format!("coordinator.bind=\"{listen}\""));
    }
    let config = RunConfig::read(&arguments.config, &sets)?;
    let data = Dataset::open(&config.data.path)?;
    let running = Coordinator::start(CoordinatorOptions {
        training_samples: data.train().training_samples(config.data.sequence_length),
        data_hash: data.manifest_hash(),
        config,
        run_dir: arguments.run_dir.clone(),
        begun: BegunRun::TakenOver,
        vocabulary: data.vocab(),
        ranks: arguments.ranks,
    });
    running.with_context(|| format!("no run in {}", arguments.run_dir.display()))
}

/// Has the kernel end this process with its parent.
fn end_with_parent() -> Result<(), String> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("cannot tie it to its parent: {error}"))?;
    let parent = std::env::var(PARENT).unwrap_or_default();
    // It may have ended before the line above.
    match getppid().map(|pid| pid.as_raw_nonzero().to_string()) {
        Some(pid) if pid == parent => Ok(()),
        _ => Err(format!(
            "--hosted: the process that {PARENT} names, \"{parent}\", is not this one's parent"
        )),
    }
}

/// The first `stop` stops the run after its step, the second at once. Its end is the parent's, which is seen elsewhere.
fn obey_stdin(handle: &ControlHandle) {
    let lines = std::io::stdin().lines().map_while(Result::ok);
    for (index, _) in lines.filter(|line| line.trim() == "stop").enumerate() {
        if index == 0 { handle.stop() } else { handle.abandon() }
    }
}

/// SIGINT and SIGTERM, caught from [`Signals::install`] on; those that come before [`Signals::obey`] wait for it.
struct Signals {
    runtime: Runtime,
    interrupt: Caught,
    terminate: Caught,
    /// Caught only so that they do not end this process.
    _others: Vec<Caught>,
}

impl Signals {
    fn install(is_hosted: bool) -> std::io::Result<Signals> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let others = match is_hosted {
            true => vec![SignalKind::user_defined1(), SignalKind::hangup()],
            false => Vec::new(),
        };
        let (interrupt, terminate, others) = {
            let _inside = runtime.enter();
            let others: std::io::Result<Vec<Caught>> = others.into_iter().map(signal).collect();
            (
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                others?,
            )
        };
        Ok(Signals {
            runtime,
            interrupt,
            terminate,
            _others: others,
        })
    }

    /// The first signal stops the run after its step, the second at once.
    fn obey(mut self, handle: &ControlHandle) {
        for stop in [true, false] {
            self.runtime.block_on(async {
                tokio::select! {
                    _ = self.interrupt.recv() => {}
                    _ = self.terminate.recv() => {}
                }
            });
            if stop { handle.stop() } else { handle.abandon() }
        }
    }
}

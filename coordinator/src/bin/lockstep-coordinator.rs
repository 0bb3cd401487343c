//! The coordinator as a process of its own, for pods and clusters: prints its address and serves one run.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use lockstep_config::RunConfig;
use lockstep_coordinator::{Coordinator, CoordinatorOptions, Running};
use lockstep_data::Dataset;
use lockstep_proto::domain::Outcome;

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
    /// Transport of the trainers' collectives.
    #[arg(long, default_value = "host")]
    backend: String,
    /// Where to listen, instead of coordinator.bind; a loopback address.
    #[arg(long, env = "LOCKSTEP_LISTEN")]
    listen: Option<SocketAddr>,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env().add_directive(tracing::Level::INFO.into()))
        .with_writer(std::io::stderr)
        .init();
    let running = match start(Arguments::parse()) {
        Ok(running) => running,
        Err(error) => {
            eprintln!("lockstep-coordinator: {error:#}");
            return ExitCode::from(2);
        }
    };
    println!("http://{}", running.address());
    let handle = running.handle();
    std::thread::spawn(move || listen_for_signals(&handle));
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
        ranks: arguments.ranks,
        backend: arguments.backend,
    });
    running.with_context(|| format!("no run in {}", arguments.run_dir.display()))
}

/// The first SIGINT or SIGTERM stops the run after its step, the second at once.
fn listen_for_signals(handle: &lockstep_coordinator::ControlHandle) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return;
    };
    runtime.block_on(async {
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        for stop in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop { handle.stop() } else { handle.abandon() }
        }
    });
}

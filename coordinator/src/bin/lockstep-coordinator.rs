//! The coordinator as a process of its own, for pods and clusters: prints its address and serves one run. Started again
//! on the folder of a run that has begun, it goes on with it.
//!
//! Whoever keeps it alive (a pod's controller) may want four things besides: health in clear at an address of its own; that
//! SIGTERM means to leave the run to the next coordinator, not to stop it; that it stays when the run is over, where it would
//! be started again for ever; and that it holds a Lease of its cluster, and waits for it before all else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use lockstep_config::RunConfig;
use lockstep_coordinator::ledger::LedgerError;
use lockstep_coordinator::{
    BegunRun, ControlHandle, Coordinator, CoordinatorOptions, Health, Keeper, Lease, LeaseError, LeaseOptions, Running,
    StartError,
};
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
    /// Where the health service of gRPC listens in clear, for probes: it says that somebody serves, and nothing of the run.
    #[arg(long, env = "LOCKSTEP_HEALTH", value_name = "ADDRESS")]
    health: Option<SocketAddr>,
    /// What a first SIGTERM means.
    #[arg(long, env = "LOCKSTEP_ON_SIGTERM", value_enum, default_value = "stop")]
    on_sigterm: OnSigterm,
    /// When the run is over, stay until a signal, for those who would start this again whenever it ends.
    #[arg(long, env = "LOCKSTEP_STAY")]
    stay: bool,
    /// Hold this Lease of the Kubernetes cluster that this pod is in: wait for it before all else, and end when another has it.
    #[arg(
        long,
        env = "LOCKSTEP_LEASE",
        value_name = "NAME",
        requires = "lease_holder",
        conflicts_with = "hosted"
    )]
    lease: Option<String>,
    /// As whom: another one in every pod, such as its uid.
    #[arg(long, env = "LOCKSTEP_LEASE_HOLDER", value_name = "NAME")]
    lease_holder: Option<String>,
    /// The folder in which Kubernetes mounts the account of the pod.
    #[arg(
        long,
        env = "LOCKSTEP_LEASE_ACCOUNT",
        value_name = "DIR",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount"
    )]
    lease_account: PathBuf,
    /// Belong to the process that has started this one: end with it, leave signals to it, and stop the run when it writes
    /// `stop` to stdin. Rank 0 of a job starts its coordinator so.
    #[arg(long)]
    hosted: bool,
}

/// What a first SIGTERM means.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnSigterm {
    /// The run stops after its step, as an operator would stop it.
    Stop,
    /// This process ends, and the run goes on under the coordinator that is started after it.
    Leave,
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
    let mut signals = match Signals::install(is_hosted) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("lockstep-coordinator: cannot listen for SIGINT and SIGTERM: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut health = match arguments.health.map(Health::serve).transpose() {
        Ok(health) => health,
        Err(error) => {
            eprintln!("lockstep-coordinator: cannot serve health at the address of --health: {error}");
            return ExitCode::FAILURE;
        }
    };
    let keeper = match hold_lease(&arguments, &mut signals) {
        Ok(keeper) => Arc::new(keeper),
        Err(code) => return code,
    };
    let (on_sigterm, stay) = (arguments.on_sigterm, arguments.stay);
    let over = Arc::new(OnceLock::new());
    let running = match start(arguments) {
        Ok(running) => running,
        Err(error) => {
            eprintln!("lockstep-coordinator: {error:#}");
            // Whoever starts it again and again must not take a run that is complete for one that cannot begin.
            let is_over = matches!(error.downcast_ref(), Some(StartError::Over { .. }));
            if is_over && stay {
                signals.next();
            }
            give_up(&keeper);
            return match is_over {
                true => ExitCode::SUCCESS,
                false if may_pass(&error) => ExitCode::FAILURE,
                false => ExitCode::from(2),
            };
        }
    };
    println!("{}", running.url());
    let handle = running.handle();
    if let Some(health) = &mut health {
        health.watch(handle.clone());
    }
    let (known, held) = (Arc::clone(&over), Arc::clone(&keeper));
    std::thread::spawn(move || match is_hosted {
        true => obey_stdin(&handle),
        false => signals.obey(&handle, on_sigterm, &known, &held),
    });
    let end = running.wait();
    if let Some(health) = &mut health {
        health.over();
    }
    eprintln!("{}", end.reason);
    let code = match end.outcome {
        Outcome::Completed => 0,
        Outcome::Stopped => 3,
        Outcome::Failed { .. } => 1,
    };
    if stay {
        eprintln!("lockstep-coordinator: the run is over, and this process stays until a signal (--stay)");
        // Set once, here.
        let _set = over.set(code);
        loop {
            std::thread::park();
        }
    }
    give_up(&keeper);
    ExitCode::from(code)
}

/// Whether the same start may succeed another time: the disk or the system failed, or another coordinator has the run still,
/// and nothing is wrong with what was given.
fn may_pass(error: &anyhow::Error) -> bool {
    use LedgerError::{InUse, Store};
    matches!(
        error.downcast_ref(),
        Some(StartError::File(_) | StartError::Thread(_) | StartError::Ledger(Store { .. } | InUse { .. }))
    )
}

/// Waits for the Lease that was asked for, if one was, and keeps it; or the exit code.
fn hold_lease(arguments: &Arguments, signals: &mut Signals) -> Result<Option<Keeper>, ExitCode> {
    let Some((name, holder)) = arguments.lease.clone().zip(arguments.lease_holder.clone()) else {
        return Ok(None);
    };
    let options = LeaseOptions {
        name,
        holder,
        account: arguments.lease_account.clone(),
    };
    let Some(acquired) = signals.until(Lease::acquire(&options)) else {
        eprintln!(
            "lockstep-coordinator: asked to end while it waited for the Lease {}",
            options.name
        );
        return Err(ExitCode::FAILURE);
    };
    let said = |sentence: &dyn std::fmt::Display| eprintln!("lockstep-coordinator: {sentence}");
    let lease = acquired.map_err(|error| {
        said(&error);
        // Objects that are just being made are not all there yet.
        match matches!(error, LeaseError::Missing(_) | LeaseError::Denied { .. }) {
            true => ExitCode::FAILURE,
            false => ExitCode::from(2),
        }
    })?;
    let lost = |sentence: &str| {
        // As if it were killed, which loses nothing: whatever was said to a trainer is in the ledger.
        eprintln!("lockstep-coordinator: {sentence}");
        std::process::exit(1);
    };
    lease.keep(lost).map(Some).map_err(|error| {
        said(&format_args!("cannot start the thread that renews the Lease: {error}"));
        ExitCode::FAILURE
    })
}

/// The next coordinator need not wait until the Lease has run out.
fn give_up(keeper: &Option<Keeper>) {
    if let Some(keeper) = keeper {
        keeper.release();
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

    /// The first signal stops the run after its step, the second at once; or as [`OnSigterm`] says. Once the run is over, any
    /// signal ends this process.
    fn obey(mut self, handle: &ControlHandle, on_sigterm: OnSigterm, over: &OnceLock<u8>, keeper: &Option<Keeper>) {
        let mut is_first = true;
        loop {
            let is_sigterm = self.next();
            if let Some(code) = over.get() {
                give_up(keeper);
                std::process::exit((*code).into());
            }
            if is_sigterm && on_sigterm == OnSigterm::Leave {
                // As if it were killed, which loses nothing: whatever was said to a trainer is in the ledger.
                eprintln!("lockstep-coordinator: asked to leave; the run goes on under the next coordinator");
                give_up(keeper);
                std::process::exit(1);
            }
            if is_first {
                handle.stop()
            } else {
                handle.abandon()
            }
            is_first = false;
        }
    }

    /// Does this, unless a signal comes first.
    fn until<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        self.runtime.block_on(async {
            tokio::select! {
                done = work => Some(done),
                _ = self.interrupt.recv() => None,
                _ = self.terminate.recv() => None,
            }
        })
    }

    /// The next signal; whether it is SIGTERM.
    fn next(&mut self) -> bool {
        self.runtime.block_on(async {
            tokio::select! {
                _ = self.interrupt.recv() => false,
                _ = self.terminate.recv() => true,
            }
        })
    }
}

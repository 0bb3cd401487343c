//! The coordinator that rank 0 hosts: a child process, `lockstep-coordinator`, which ends with this one however that ends.
//!
//! Signals do not reach it: whoever signals a whole job (Slurm does) would signal it too, and twice means "at once" to it. It
//! takes its orders from its stdin instead, a line each. One that a signal has killed is started again on the same folder and
//! address, and goes on in its next term.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::TrainerError;

/// Overrides where the coordinator's binary is.
const COORDINATOR: &str = "LOCKSTEP_COORDINATOR_PROGRAM";
/// How often one that was killed is started again.
const RESTARTS: u32 = 8;

/// What it is started with.
#[derive(Clone, Debug)]
pub(super) struct Orders {
    /// The config's file.
    pub(super) config: PathBuf,
    /// Overrides of its keys.
    pub(super) sets: Vec<String>,
    /// The run's folder.
    pub(super) run_dir: PathBuf,
    /// Ranks of the world.
    pub(super) ranks: u32,
}

/// A coordinator that serves.
#[derive(Debug)]
pub(super) struct Hosted {
    /// Where it says that it listens.
    pub(super) url: String,
    /// Its process.
    pub(super) pid: u32,
    stop: Stop,
    ended: Receiver<u8>,
}

/// Asks a hosted coordinator to stop the run.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop {
    stdin: Arc<Mutex<Option<ChildStdin>>>,
    asked: Arc<std::sync::atomic::AtomicBool>,
}

impl Stop {
    /// The run is to stop at the end of its step. Said again it changes nothing.
    pub(super) fn ask(&self) {
        if !self.asked.swap(true, std::sync::atomic::Ordering::SeqCst) {
            self.say();
        }
    }

    fn say(&self) {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stdin) = stdin.as_mut() {
            // If it is not there any more, its end is noticed elsewhere.
            let _ = stdin.write_all(b"stop\n").and_then(|()| stdin.flush());
        }
    }

    fn give(&self, stdin: Option<ChildStdin>) {
        *self.stdin.lock().unwrap_or_else(PoisonError::into_inner) = stdin;
        // One that was started again has not heard it.
        if self.asked.load(std::sync::atomic::Ordering::SeqCst) {
            self.say();
        }
    }
}

/// What became of a start.
#[derive(Debug)]
pub(super) enum Start {
    /// It serves.
    Serves(Hosted),
    /// It ended at once, with this exit code: the run is over already, or cannot be.
    Ended(u8),
}

/// Starts a coordinator and waits for its address.
///
/// # Errors
/// There is no such program, or the system refuses.
pub(super) fn host(orders: Orders) -> Result<Start, TrainerError> {
    let program = program()?;
    let stop = Stop::default();
    let (told, heard) = channel();
    let (over, ended) = channel();
    let steered = stop.clone();
    // The kernel ends a child with the thread that has started it, so that thread lives as long.
    std::thread::Builder::new()
        .name("coordinator".to_owned())
        .spawn(move || keep(&program, &orders, &steered, &told, &over))
        .map_err(|error| TrainerError::Broken(format!("the system gives no thread: {error}")))?;
    match heard.recv() {
        Ok(Ok((url, pid))) => Ok(Start::Serves(Hosted { url, pid, stop, ended })),
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(Start::Ended(ended.recv().unwrap_or(1))),
    }
}

impl Hosted {
    /// How its run is stopped.
    pub(super) fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Waits for its end; its exit code.
    pub(super) fn wait(self) -> u8 {
        self.ended.recv().unwrap_or(1)
    }
}

/// A coordinator from its start to its end, through its deaths. `told` hears of the first address, `over` of the end.
fn keep(
    program: &Path,
    orders: &Orders,
    stop: &Stop,
    told: &Sender<Result<(String, u32), TrainerError>>,
    over: &Sender<u8>,
) {
    let mut listen: Option<SocketAddr> = None;
    let mut restarts = RESTARTS;
    loop {
        let status = match serve(program, orders, stop, &mut listen, told) {
            Ok(status) => status,
            Err(error) => {
                tracing::error!("{error}");
                let _nobody_waits = told.send(Err(error));
                break;
            }
        };
        let Some(code) = status.code() else {
            if listen.is_some() && restarts > 0 {
                restarts -= 1;
                tracing::warn!("the coordinator of this job was killed ({status}); it is started again");
                continue;
            }
            break;
        };
        let _nobody_waits = over.send(u8::try_from(code).unwrap_or(1));
        return;
    }
    let _nobody_waits = over.send(1);
}

/// One life of it.
fn serve(
    program: &Path,
    orders: &Orders,
    stop: &Stop,
    listen: &mut Option<SocketAddr>,
    told: &Sender<Result<(String, u32), TrainerError>>,
) -> Result<ExitStatus, TrainerError> {
    let failed = |error: std::io::Error| {
        TrainerError::Broken(format!("cannot start the coordinator {}: {error}", program.display()))
    };
    let mut child = command(program, orders, *listen).spawn().map_err(failed)?;
    stop.give(child.stdin.take());
    if let Some(url) = first_line(&mut child) {
        let is_first = listen.is_none();
        *listen = address_of(&url);
        if is_first {
            // Whoever waits for it is there until it has heard.
            let _ = told.send(Ok((url, child.id())));
        }
    }
    let status = child.wait().map_err(failed);
    stop.give(None);
    status
}

fn command(program: &Path, orders: &Orders, listen: Option<SocketAddr>) -> Command {
    let mut command = Command::new(program);
    command.arg("--hosted").arg("--config").arg(&orders.config);
    for set in &orders.sets {
        command.arg("--set").arg(set);
    }
    command.arg("--run-dir").arg(&orders.run_dir);
    command.arg("--ranks").arg(orders.ranks.to_string());
    if let Some(listen) = listen {
        command.arg("--listen").arg(listen.to_string());
    }
    // Words for a coordinator that somebody starts by hand.
    for name in ["LOCKSTEP_CONFIG", "LOCKSTEP_RANKS"] {
        command.env_remove(name);
    }
    if listen.is_some() {
        command.env_remove("LOCKSTEP_LISTEN");
    }
    command
        .env("LOCKSTEP_PARENT_PID", std::process::id().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// What it prints once it listens; none if it ends before.
fn first_line(child: &mut Child) -> Option<String> {
    let mut line = String::new();
    let read = BufReader::new(child.stdout.take()?).read_line(&mut line);
    let line = line.trim();
    (read.is_ok() && !line.is_empty()).then(|| line.to_owned())
}

fn address_of(url: &str) -> Option<SocketAddr> {
    url.split_once("://")?.1.parse().ok()
}

/// The coordinator's binary: as named, or beside this one.
fn program() -> Result<PathBuf, TrainerError> {
    let path = match std::env::var_os(COORDINATOR) {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()
            .map_err(|error| TrainerError::Broken(format!("cannot tell where this program lies: {error}")))?
            .with_file_name("lockstep-coordinator"),
    };
    match path.is_file() {
        true => Ok(path),
        false => Err(TrainerError::Refused(format!(
            "rank 0 hosts the coordinator, but {} is not there; build it with `cargo build --release`, name it in {COORDINATOR}, \
             or name a coordinator that runs elsewhere with --coordinator",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_kept_for_the_next_life() {
        assert_eq!(address_of("http://127.0.0.1:7000"), "127.0.0.1:7000".parse().ok());
        assert_eq!(address_of("https://[::1]:7000"), "[::1]:7000".parse().ok());
        assert_eq!(address_of("nonsense"), None);
    }

    #[test]
    fn the_next_life_listens_where_the_first_one_did() {
        let orders = Orders {
            config: "run.toml".into(),
            sets: vec!["run.steps=3".to_owned()],
            run_dir: "runs/one".into(),
            ranks: 2,
        };
        let words = |listen| -> Vec<String> {
            let command = command(Path::new("c"), &orders, listen);
            command
                .get_args()
                .map(|word| word.to_string_lossy().into_owned())
                .collect()
        };
        let first = words(None);
        assert_eq!(
            first.join(" "),
            "--hosted --config run.toml --set run.steps=3 --run-dir runs/one --ranks 2"
        );
        let next = words("127.0.0.1:7000".parse().ok());
        assert_eq!(next[first.len()..].join(" "), "--listen 127.0.0.1:7000");
    }
}

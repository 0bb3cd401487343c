//! The trainer processes of a run: spawned, by the launcher itself or by one mpirun, looked after, reaped. None outlives this
//! value.

use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lockstep_config::{LOCAL_RANK, prepare_for_gpu};
use lockstep_security::{Credentials, Token};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::ending::Ending;
use crate::run::mpirun::Mpirun;
use crate::run::mpirun::scratch::Scratch;
use crate::run::supervisor::{Exit, Exited, Process};

/// Names the authority that a coordinator's certificate comes from.
const AUTHORITY: &str = "LOCKSTEP_CA";

/// Lines of a log that are shown after a failure.
const TAIL_LINES: usize = 8;
/// Bytes of a log that are looked through for them.
const TAIL_BYTES: usize = 4096;

/// mpirun ends its ranks when it is asked to, and needs so long for it; killed, it leaves files behind.
const MPIRUN_GRACE: Duration = Duration::from_secs(3);

/// What every trainer is started with.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    /// The trainer binary.
    pub(crate) binary: &'a Path,
    /// The mpirun that starts the trainers, if one does.
    pub(crate) mpirun: Option<&'a Mpirun>,
    /// The coordinator's address.
    pub(crate) coordinator: &'a str,
    /// What they show to it, if they are asked.
    pub(crate) token: Option<&'a Token>,
    /// The authority that its certificate comes from, where it talks TLS and the environment names none.
    pub(crate) authority: Option<&'a Path>,
    /// Processes.
    pub(crate) ranks: u32,
    /// Threads of its tensor library.
    pub(crate) threads: u32,
    /// Whether it computes on a GPU.
    pub(crate) gpu: bool,
    /// The run's folder.
    pub(crate) folder: &'a Path,
    /// Folder of the logs.
    pub(crate) logs: PathBuf,
}

/// The trainers of a run.
#[derive(Debug, Default)]
pub(crate) struct Trainers {
    children: Vec<Started>,
    /// Where mpirun keeps its files.
    _scratch: Option<Scratch>,
}

#[derive(Debug)]
struct Started {
    process: Process,
    child: Child,
    reaped: bool,
    /// When it is killed, if it has not ended as it was asked to.
    patience: Option<Instant>,
}

impl Trainers {
    /// Starts all of them. Call it from the main thread: the kernel ends a trainer with the thread that started
    /// it.
    ///
    /// # Errors
    /// A log cannot be made or a process not be started; those that were started are ended and reaped.
    pub(crate) fn start(start: &Start<'_>) -> Result<Trainers, Ending> {
        let failed = |error: std::io::Error| {
            let binary = start.mpirun.map_or(start.binary, |mpirun| &mpirun.program);
            Ending::Failed(format!("cannot start {}: {error}", binary.display()))
        };
        std::fs::create_dir_all(&start.logs).map_err(failed)?;
        let folder = std::path::absolute(start.folder).map_err(failed)?;
        let mut trainers = Trainers::default();
        if let Some(mpirun) = start.mpirun {
            let scratch = Scratch::make().map_err(failed)?;
            let logs = std::path::absolute(&start.logs).map_err(failed)?;
            let command = mpirun.command(&logs, &scratch).map_err(failed)?;
            trainers._scratch = Some(scratch);
            trainers
                .spawn(Process::Mpirun, command, start, &folder)
                .map_err(failed)?;
            return Ok(trainers);
        }
        for rank in 0..start.ranks {
            trainers
                .spawn(Process::Rank(rank), of_rank(start, rank), start, &folder)
                .map_err(failed)?;
        }
        Ok(trainers)
    }

    /// Starts a trainer again that has ended, and gives its process id. Its log goes on. As [`Trainers::start`], call it from
    /// the main thread.
    ///
    /// # Errors
    /// The process cannot be started.
    pub(crate) fn restart(&mut self, start: &Start<'_>, process: Process) -> Result<u32, String> {
        let failed = |error: std::io::Error| format!("cannot start {} again: {error}", start.binary.display());
        let Process::Rank(rank) = process else {
            return Err(failed(std::io::ErrorKind::Unsupported.into()));
        };
        let folder = std::path::absolute(start.folder).map_err(failed)?;
        self.children
            .retain(|started| started.process != process || !started.reaped);
        self.spawn(process, of_rank(start, rank), start, &folder)
            .map_err(failed)?;
        Ok(self.children.last().map_or(0, |started| started.child.id()))
    }

    fn spawn(
        &mut self,
        process: Process,
        mut command: Command,
        start: &Start<'_>,
        folder: &Path,
    ) -> std::io::Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log_path(&start.logs, process))?;
        let threads = start.threads.to_string();
        if start.gpu {
            prepare_for_gpu(&mut command);
        }
        show_credentials(&mut command, start)?;
        command
            .env("LOCKSTEP_COORDINATOR", start.coordinator)
            .env("OMP_NUM_THREADS", &threads)
            .env("MKL_NUM_THREADS", &threads)
            .env("LOCKSTEP_RUN_DIR", folder);
        if let (Process::Mpirun, Some(mpirun)) = (process, start.mpirun) {
            mpirun.say(&mut command, start.binary, start.ranks);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own: Ctrl-C at the terminal is for the launcher, which stops the run in order.
            .process_group(0)
            .spawn()?;
        self.children.push(Started {
            process,
            child,
            reaped: false,
            patience: None,
        });
        Ok(())
    }

    /// What was started, and process ids.
    pub(crate) fn pids(&self) -> impl Iterator<Item = (Process, u32)> + '_ {
        self.children
            .iter()
            .map(|started| (started.process, started.child.id()))
    }

    /// Reaps those that have ended since the last call; those that a signal killed come first.
    pub(crate) fn poll(&mut self) -> Vec<Exited> {
        let mut exits: Vec<Exited> = self.children.iter_mut().filter_map(Started::poll).collect();
        exits.sort_by_key(|exited| matches!(exited.exit, Exit::Code(_)));
        exits
    }

    /// Kills all that are left, and what they started.
    pub(crate) fn kill_all(&mut self) {
        self.children.iter_mut().for_each(Started::end);
    }
}

/// A trainer shows a token of its own, and none of what this process's operator has in the environment. Only the same user
/// can read the environment of a process.
fn show_credentials(command: &mut Command, start: &Start<'_>) -> std::io::Result<()> {
    for operators in [
        "LOCKSTEP_TOKEN_FILE",
        "LOCKSTEP_CERT",
        "LOCKSTEP_KEY",
        Credentials::TOKEN_VARIABLE,
    ] {
        command.env_remove(operators);
    }
    if let Some(token) = start.token {
        command.env(Credentials::TOKEN_VARIABLE, token.reveal());
    }
    if let Some(authority) = start.authority
        && std::env::var_os(AUTHORITY).is_none()
    {
        command.env(AUTHORITY, std::path::absolute(authority)?);
    }
    Ok(())
}

/// The command of one trainer.
fn of_rank(start: &Start<'_>, rank: u32) -> Command {
    let mut command = Command::new(start.binary);
    command
        .args(["train", "--member", &format!("trainer-{rank}")])
        .env("LOCKSTEP_PARENT_PID", std::process::id().to_string())
        .env(LOCAL_RANK, rank.to_string());
    command
}

impl Started {
    fn poll(&mut self) -> Option<Exited> {
        if self.reaped {
            return None;
        }
        let Some(status) = self.child.try_wait().ok()? else {
            if self.patience.is_some_and(|patience| Instant::now() >= patience) {
                self.signal(Signal::KILL);
            }
            return None;
        };
        self.reaped = true;
        let exit = match (status.signal(), status.code()) {
            (Some(signal), _) => Exit::Signal(signal),
            (None, code) => Exit::Code(code.unwrap_or(-1)),
        };
        Some(Exited {
            process: self.process,
            pid: self.child.id(),
            exit,
        })
    }

    /// Ends it at once; mpirun as soon as its ranks have ended.
    fn end(&mut self) {
        match self.process {
            Process::Rank(_) => self.signal(Signal::KILL),
            Process::Mpirun => {
                self.signal(Signal::TERM);
                self.patience.get_or_insert(Instant::now() + MPIRUN_GRACE);
            }
        }
    }

    /// To it and its group.
    fn signal(&self, signal: Signal) {
        // Not yet reaped, so the id is still this process's own and that of its group.
        if !self.reaped
            && let Some(group) = Pid::from_raw(self.child.id().cast_signed())
        {
            // It may have ended by itself meanwhile.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Trainers {
    fn drop(&mut self) {
        self.kill_all();
        for started in &mut self.children {
            while !started.reaped && started.poll().is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Where a process's log is.
pub(crate) fn log_path(logs: &Path, process: Process) -> PathBuf {
    logs.join(match process {
        Process::Rank(rank) => format!("rank-{rank}.log"),
        Process::Mpirun => "mpirun.log".to_owned(),
    })
}

/// The last lines of a process's log.
pub(crate) fn log_tail(logs: &Path, process: Process) -> String {
    let bytes = std::fs::read(log_path(logs, process)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

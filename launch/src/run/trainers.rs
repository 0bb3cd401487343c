//! The trainer processes of a run: spawned, looked after, reaped. None outlives this value.

use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::ending::Ending;
use crate::run::supervisor::{Exit, Exited};

/// Lines of a log that are shown after a failure.
const TAIL_LINES: usize = 8;
/// Bytes of a log that are looked through for them.
const TAIL_BYTES: usize = 4096;

/// What every trainer is started with.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    /// The trainer binary.
    pub(crate) binary: &'a Path,
    /// The coordinator's address.
    pub(crate) coordinator: &'a str,
    /// Threads of its tensor library.
    pub(crate) threads: u32,
    /// The run's folder.
    pub(crate) folder: &'a Path,
    /// Folder of the logs.
    pub(crate) logs: PathBuf,
}

/// The trainers of a run.
#[derive(Debug, Default)]
pub(crate) struct Trainers {
    children: Vec<Trainer>,
}

#[derive(Debug)]
struct Trainer {
    rank: u32,
    child: Child,
    reaped: bool,
}

impl Trainers {
    /// Starts `ranks` trainers. Call it from the main thread: the kernel ends a trainer with the thread that started
    /// it.
    ///
    /// # Errors
    /// A log cannot be made or a process not be started; those that were started are ended and reaped.
    pub(crate) fn start(start: &Start<'_>, ranks: u32) -> Result<Trainers, Ending> {
        let failed = |error: std::io::Error| {
            Ending::Failed(format!("cannot start the trainer {}: {error}", start.binary.display()))
        };
        std::fs::create_dir_all(&start.logs).map_err(failed)?;
        let folder = std::path::absolute(start.folder).map_err(failed)?;
        let mut trainers = Trainers::default();
        for rank in 0..ranks {
            let log = File::create(log_path(&start.logs, rank)).map_err(failed)?;
            let threads = start.threads.to_string();
            let child = Command::new(start.binary)
                .args([
                    "train",
                    "--coordinator",
                    start.coordinator,
                    "--member",
                    &format!("trainer-{rank}"),
                ])
                .env("OMP_NUM_THREADS", &threads)
                .env("MKL_NUM_THREADS", &threads)
                .env("LOCKSTEP_RUN_DIR", &folder)
                .env("LOCKSTEP_PARENT_PID", std::process::id().to_string())
                .stdin(Stdio::null())
                .stdout(log.try_clone().map_err(failed)?)
                .stderr(log)
                // A group of its own: Ctrl-C at the terminal is for the launcher, which stops the run in order.
                .process_group(0)
                .spawn()
                .map_err(failed)?;
            trainers.children.push(Trainer {
                rank,
                child,
                reaped: false,
            });
        }
        Ok(trainers)
    }

    /// Ranks and process ids.
    pub(crate) fn pids(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.children.iter().map(|trainer| (trainer.rank, trainer.child.id()))
    }

    /// Reaps those that have ended since the last call; those that a signal killed come first.
    pub(crate) fn poll(&mut self) -> Vec<Exited> {
        let mut exits: Vec<Exited> = self.children.iter_mut().filter_map(Trainer::poll).collect();
        exits.sort_by_key(|exited| matches!(exited.exit, Exit::Code(_)));
        exits
    }

    /// Kills all that are left, and what they started.
    pub(crate) fn kill_all(&mut self) {
        self.children.iter_mut().for_each(Trainer::kill);
    }
}

impl Trainer {
    fn poll(&mut self) -> Option<Exited> {
        if self.reaped {
            return None;
        }
        let status = self.child.try_wait().ok()??;
        self.reaped = true;
        let exit = match (status.signal(), status.code()) {
            (Some(signal), _) => Exit::Signal(signal),
            (None, code) => Exit::Code(code.unwrap_or(-1)),
        };
        Some(Exited {
            rank: self.rank,
            pid: self.child.id(),
            exit,
        })
    }

    fn kill(&mut self) {
        // Not yet reaped, so the id is still this process's own and that of its group.
        if !self.reaped
            && let Some(group) = Pid::from_raw(self.child.id().cast_signed())
        {
            // It may have ended by itself meanwhile.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Trainers {
    fn drop(&mut self) {
        self.kill_all();
        for trainer in &mut self.children {
            if !trainer.reaped {
                // Killed above, so this ends at once.
                let _ = trainer.child.wait();
            }
        }
    }
}

/// Where a rank's log is.
pub(crate) fn log_path(logs: &Path, rank: u32) -> PathBuf {
    logs.join(format!("rank-{rank}.log"))
}

/// The last lines of a rank's log.
pub(crate) fn log_tail(logs: &Path, rank: u32) -> String {
    let bytes = std::fs::read(log_path(logs, rank)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

//! How this process was started: by the launcher, or by an MPI, a Slurm, a torchrun that a launcher or a person has started.
//! Said by the environment; a trainer that was started by hand knows none of it. [`lockstep_config::place`] reads rank and size
//! from it.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lockstep_config::place::{Environment, Place, place};
use lockstep_config::{LOCAL_RANK, this_machine};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{dup2_stderr, dup2_stdout, getppid};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::TrainerError;

pub(crate) mod guard;

/// The launcher's process, where it is this one's parent.
const PARENT: &str = "LOCKSTEP_PARENT_PID";
/// The launcher's process, where there are others between.
const LAUNCHER: &str = "LOCKSTEP_LAUNCHER_PID";
/// The machine, or container, whose process that is; ranks elsewhere end with the mpirun of theirs.
const LAUNCHER_HOST: &str = "LOCKSTEP_LAUNCHER_HOST";
/// The folder in which every process of an MPI job keeps a log of its own.
const LOGS: &str = "LOCKSTEP_LOGS";
/// A folder of the launcher's, with mpirun's files in it. Whoever uses it holds a shared lock on it, and it is removed when
/// nobody does.
const SCRATCH: &str = "LOCKSTEP_SCRATCH";
/// What MPIs say: Open MPI, anything that speaks PMIx, MPICH and its kin.
const RANKS: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"];

/// What this process's environment says of its place among others.
///
/// # Errors
/// Words that contradict each other.
pub fn own_place() -> Result<Option<Place>, TrainerError> {
    place(OWN).map_err(TrainerError::Refused)
}

const OWN: Environment<'static> = &|name| std::env::var(name).ok();

/// This process's number among the ranks of its host, where whoever started it has said so.
pub fn local_rank() -> Option<usize> {
    let ours = std::env::var(LOCAL_RANK).ok().and_then(|word| word.trim().parse().ok());
    ours.or_else(|| Some(own_place().ok()??.local_rank? as usize))
}

/// The rank that MPI gave this process; none if no MPI started it.
pub fn mpi_rank() -> Option<u32> {
    RANKS
        .iter()
        .find_map(|name| std::env::var(name).ok()?.trim().parse().ok())
}

/// The member's name: as given, or after the rank that the environment says.
pub(crate) fn member(given: Option<String>) -> Result<String, TrainerError> {
    if let Some(name) = given {
        return Ok(name);
    }
    match own_place()? {
        Some(place) => Ok(member_of(place.rank)),
        None => Err(TrainerError::Refused(
            "this trainer has no name: give --member NAME, unique in the run (processes of mpirun, srun and torchrun get theirs \
             from their ranks)"
                .to_owned(),
        )),
    }
}

/// The name of a member that has a rank when it is started.
pub(crate) fn member_of(rank: u32) -> String {
    format!("trainer-{rank}")
}

/// Ends this process with whoever started it, however that ends; refuses to start as an orphan.
pub(crate) fn end_with_starter() -> Result<(), TrainerError> {
    let broken = |error: &dyn std::fmt::Display| {
        TrainerError::Broken(format!("cannot tie this process to its launcher: {error}"))
    };
    if let Ok(parent) = std::env::var(PARENT) {
        set_pdeathsig(Signal::SIGKILL).map_err(|error| broken(&error))?;
        // The launcher may have ended before the line above.
        if getppid().to_string() != parent {
            return Err(TrainerError::Broken(format!(
                "the launcher, process {parent}, has ended"
            )));
        }
    }
    if let Ok(launcher) = std::env::var(LAUNCHER) {
        // mpirun, or what it starts processes by.
        set_pdeathsig(Signal::SIGKILL).map_err(|error| broken(&error))?;
        // A number of a process says nothing on another machine.
        if std::env::var(LAUNCHER_HOST).is_ok_and(|host| Some(host) != this_machine()) {
            return Ok(());
        }
        watch(&launcher)?;
        if let Some(scratch) = std::env::var_os(SCRATCH) {
            hold(Path::new(&scratch))?;
        }
    }
    Ok(())
}

/// Keeps a folder from being removed while this process lives.
fn hold(folder: &Path) -> Result<(), TrainerError> {
    static HELD: OnceLock<File> = OnceLock::new();
    let held =
        File::open(folder).and_then(|held| Ok(flock(&held, FlockOperation::NonBlockingLockShared).map(|()| held)?));
    let held = held.map_err(|error| {
        TrainerError::Broken(format!(
            "the folder for files of mpirun, {}, is not there any more ({error}): the launcher has ended",
            folder.display()
        ))
    })?;
    // Once is enough.
    let _ = HELD.set(held);
    Ok(())
}

/// Ends this process with its parent: the mpirun, or the part of one on this host, that has started it with others. Whoever
/// asks for that by words of ours has been heard before ([`end_with_starter`]).
pub(crate) fn end_with_parent() -> Result<(), TrainerError> {
    match rustix::process::getppid() {
        Some(parent) => end_with(parent, "what has started this rank"),
        None => Ok(()),
    }
}

/// Ends this process when the launcher has ended, which is not its parent.
fn watch(launcher: &str) -> Result<(), TrainerError> {
    let process = launcher
        .parse()
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| TrainerError::Refused(format!("{LAUNCHER} is \"{launcher}\", which is no process")))?;
    end_with(process, "the launcher")
}

/// Ends this process when another one has ended.
fn end_with(process: Pid, name: &'static str) -> Result<(), TrainerError> {
    let number = process.as_raw_nonzero();
    let process = pidfd_open(process, PidfdFlags::empty())
        .map_err(|error| TrainerError::Broken(format!("{name}, process {number}, is not there: {error}")))?;
    std::thread::Builder::new()
        .name("starter-watch".to_owned())
        .spawn(move || {
            // Readable when it has ended; a signal to this process may interrupt the wait.
            while poll(&mut [PollFd::new(&process, PollFlags::IN)], None) == Err(rustix::io::Errno::INTR) {}
            // Whoever has read what this process says may have gone, too.
            let _ = writeln!(
                std::io::stderr(),
                "lockstep-trainer: {name}, process {number}, has ended, and so does this rank"
            );
            lockstep_autograd::device::leave(1);
        })
        .map(drop)
        .map_err(|error| TrainerError::Broken(format!("the system gives no thread: {error}")))
}

/// Sends what this process says into a log of its own, where it was told to keep one. On a host that has no such folder, what
/// it says goes where it went: to mpirun, which puts the rank before each line.
pub(crate) fn keep_log() -> Result<(), TrainerError> {
    let (Some(folder), Some(place)) = (std::env::var_os(LOGS), own_place()?) else {
        return Ok(());
    };
    if !Path::new(&folder).is_dir() {
        return Ok(());
    }
    let path = PathBuf::from(folder).join(format!("rank-{}.log", place.rank));
    let log = File::options().create(true).append(true).open(&path);
    let redirected = log.and_then(|log| {
        dup2_stdout(&log)?;
        dup2_stderr(&log)?;
        Ok(())
    });
    redirected.map_err(|error| TrainerError::Broken(format!("cannot keep the log {}: {error}", path.display())))
}

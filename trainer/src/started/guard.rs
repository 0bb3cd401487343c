//! A guard before a rank. The mpirun of MPICH ends all ranks of a host as soon as a signal has killed one, whatever it is
//! told; one that ends with an exit code harms nobody. So it starts guards: each starts its rank as a child, and ends with
//! an exit code whatever has ended that. The launcher asks for it, where the run is to go on without a lost rank.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};

use signal_hook::consts::{SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::error::TrainerError;
use crate::started::{PARENT, end_with_starter, keep_log};

/// Set by the launcher where a guard is wanted.
const GUARD: &str = "LOCKSTEP_GUARD";

/// Where a guard is wanted, this process is one: it ends with the exit code that is given when its rank has ended. None in a
/// rank.
pub(crate) fn stand_before() -> Result<Option<u8>, TrainerError> {
    if std::env::var_os(GUARD).is_none() {
        return Ok(None);
    }
    let failed =
        |error: std::io::Error| TrainerError::Broken(format!("cannot start the rank behind its guard: {error}"));
    keep_log()?;
    end_with_starter()?;
    let mut signals = Signals::new([SIGTERM, SIGUSR1]).map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    // On this thread, which lives as long as this process: the kernel ends the child with it.
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env_remove(GUARD)
        .env(PARENT, std::process::id().to_string())
        // A group of its own: MPICH signals the guard's, and the rank would hear twice what is said once.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let rank = child.id();
    let passing = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            // MPICH tells survivors of a death by SIGUSR1; the coordinator has told ours before.
            if signal == SIGTERM
                && let Some(rank) = rustix::process::Pid::from_raw(rank.cast_signed())
            {
                // It may have ended meanwhile.
                let _ = rustix::process::kill_process(rank, rustix::process::Signal::TERM);
            }
        }
    });
    passing.map_err(failed)?;
    let status = child.wait().map_err(failed)?;
    if let Some(signal) = status.signal() {
        eprintln!("lockstep-trainer: the rank (pid {rank}) was killed by signal {signal}");
    }
    Ok(Some(code_of(status)))
}

/// The exit code of a process; as shells do it, of one that a signal has killed.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_rank_becomes_an_exit_code() {
        for (raw, code) in [(0, 0), (3 << 8, 3), (9, 137), (15, 143)] {
            assert_eq!(code_of(ExitStatus::from_raw(raw)), code);
        }
    }
}

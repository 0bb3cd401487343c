//! Signals to a job whose coordinator rank 0 hosts. Whoever signals it signals all of its processes: rank 0 stops the run by
//! its coordinator, and the others hear of it there. So SIGTERM (of mpirun, srun, Slurm), SIGINT and SIGUSR1 (which mpirun passes
//! on without ending anything) stop the run in order, however often they come.

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::host::Stop;
use crate::error::TrainerError;

/// From now on signals that ask to end stop the run. `stop` where this rank hosts its coordinator.
pub(super) fn stop_in_order(stop: Option<Stop>) -> Result<(), TrainerError> {
    let failed = |error: std::io::Error| TrainerError::Broken(format!("cannot listen for signals: {error}"));
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1]).map_err(failed)?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
                match &stop {
                    Some(stop) => {
                        tracing::info!("{name}: the run stops at the end of its step");
                        stop.ask();
                    }
                    None => tracing::info!("{name}: rank 0 stops the run, if it was signalled too"),
                }
            }
        })
        .map(drop)
        .map_err(failed)
}

//! SIGTERM: the host asks this process to go. It tells the coordinator, which decides: the others go on without this member,
//! after a step that all of them make, or the run stops. A second one ends the process at once.

use lockstep_session::Voice;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use crate::error::TrainerError;

/// Says that this member must leave, from the first SIGTERM on.
pub(super) fn say_on_sigterm(voice: Voice) -> Result<(), TrainerError> {
    let failed = |error: std::io::Error| TrainerError::Broken(format!("cannot listen for SIGTERM: {error}"));
    let mut signals = Signals::new([SIGTERM]).map_err(failed)?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut terms = signals.forever();
            if terms.next().is_some() {
                tracing::info!("SIGTERM: this member leaves as soon as the others can go on without it");
                voice.leaving("SIGTERM");
            }
            if terms.next().is_some() {
                lockstep_autograd::device::leave(1);
            }
        })
        .map_err(failed)?;
    Ok(())
}

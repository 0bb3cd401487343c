//! How busy the machine was, as its kernel has counted it: on a busy one, "in time" is later.

use std::fs;
use std::time::Duration;

/// How long the threads of a process were ready to run and had no core, since it began. Threads that have ended are not
/// counted. Zero where the kernel does not count.
pub(crate) fn waited_for_a_core(process: u32) -> Duration {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
        return Duration::ZERO;
    };
    // Time on a core, time ready without one, in nanoseconds; slices.
    let waited = threads.filter_map(|thread| {
        let counts = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        counts.split(' ').nth(1)?.parse::<u64>().ok()
    });
    Duration::from_nanos(waited.sum())
}

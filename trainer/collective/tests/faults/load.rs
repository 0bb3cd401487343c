//! How busy the machine was, as its kernel has counted it: on a busy one, "in time" is later.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// How long a thread was ready to run and had no core, since it began, by its `schedstat`. Zero where there is none.
pub(crate) fn waited_for_a_core(schedstat: impl AsRef<Path>) -> Duration {
    // Time on a core, time ready without one, in nanoseconds; slices.
    let counts = fs::read_to_string(schedstat).unwrap_or_default();
    let waited = counts.split(' ').nth(1).and_then(|waited| waited.parse().ok());
    Duration::from_nanos(waited.unwrap_or_default())
}

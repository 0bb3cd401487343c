//! Open files: every member is one, and most systems let a process have 1,024 unless it asks for more.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that the process has open besides its connections.
const OTHERS: u64 = 128;

/// Asks the system for as many open files as it lets this process have, and says so where the members of the first world would
/// not find a place.
pub(crate) fn allow_for(ranks: u32) {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let allowed = match setrlimit(Resource::Nofile, most) {
        Ok(()) => limit.maximum,
        // It stays as it was.
        Err(_) => limit.current,
    };
    let needed = u64::from(ranks) + OTHERS;
    if let Some(allowed) = allowed.filter(|allowed| *allowed < needed) {
        tracing::warn!(
            "{ranks} ranks need {needed} open files here, and this process may have {allowed}: raise the hard limit \
             (`ulimit -Hn`, LimitNOFILE of a unit, `nofile` of the container)"
        );
    }
}

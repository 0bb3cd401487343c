//! What the system lets a process of this user have.

use rustix::process::{Resource, geteuid, getrlimit};
use serde::Serialize;

use crate::facts::{Places, groups, names_in, text_of};

/// Limits; none: as many as there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Open files of a process.
    pub files: Option<u64>,
    /// Up to which it may raise that itself.
    pub files_hard: Option<u64>,
    /// Processes and threads of the user; none for root, whom the kernel does not count.
    pub processes: Option<u64>,
    /// Those that the user has.
    pub processes_now: u64,
    /// Processes and threads of the control group, and those that it has.
    pub group: Option<(u64, u64)>,
    /// Locked memory, bytes.
    pub locked: Option<u64>,
    /// The file that a crash leaves, bytes.
    pub core: Option<u64>,
    /// Whether there is an InfiniBand device.
    pub infiniband: bool,
}

impl Limits {
    /// Looks.
    pub fn look(places: &Places) -> Limits {
        let files = getrlimit(Resource::Nofile);
        let user = geteuid();
        let processes = match user.is_root() {
            true => None,
            false => getrlimit(Resource::Nproc).current,
        };
        Limits {
            files: files.current,
            files_hard: files.maximum,
            processes,
            processes_now: processes.map_or(0, |_| threads_of(places, user.as_raw())),
            group: groups::pids(places),
            locked: getrlimit(Resource::Memlock).current,
            core: getrlimit(Resource::Core).current,
            infiniband: !names_in(&places.sys.join("class/infiniband")).is_empty(),
        }
    }
}

/// Threads of all processes of a user.
fn threads_of(places: &Places, user: u32) -> u64 {
    let processes = names_in(&places.proc)
        .into_iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let threads = processes.filter_map(|name| {
        let status = text_of(&places.proc.join(name).join("status"))?;
        let of = |key: &str| -> Option<u64> {
            status
                .lines()
                .find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
        };
        let (owner, threads) = (of("Uid:")?, of("Threads:")?);
        (owner == u64::from(user)).then_some(threads)
    });
    threads.sum()
}

//! What the kernel counts of a process: memory, processor time by thread, open files.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that a process has open besides its members' sockets.
const OTHER_FILES: u64 = 128;

/// Resident memory of a process in KiB: now and at most so far.
pub(crate) fn memory_kib(pid: u32) -> anyhow::Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("the coordinator is gone")?;
    let of = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    };
    Ok((of("VmRSS:").unwrap_or(0), of("VmHWM:").unwrap_or(0)))
}

/// Processor time of each thread of a process so far, by its name; threads of one name together.
pub(crate) fn processor_time(pid: u32) -> anyhow::Result<BTreeMap<String, Duration>> {
    let mut times: BTreeMap<String, Duration> = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task")).context("the coordinator is gone")? {
        let path = entry?.path();
        // A thread may end while it is looked at.
        let (Ok(name), Ok(spent)) = (
            fs::read_to_string(path.join("comm")),
            fs::read_to_string(path.join("schedstat")),
        ) else {
            continue;
        };
        let nanoseconds = spent.split_whitespace().next().and_then(|text| text.parse().ok());
        *times.entry(name.trim().to_owned()).or_default() += Duration::from_nanos(nanoseconds.unwrap_or(0));
    }
    Ok(times)
}

/// Lets this process, and those that it starts, open a file for every member.
pub(crate) fn allow_files(members: u32) -> anyhow::Result<()> {
    let needed = u64::from(members) + OTHER_FILES;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if maximum.is_some_and(|maximum| maximum < needed) {
        bail!(
            "{members} members need {needed} open files, and this process may have {}: raise the hard limit (`ulimit -Hn`, \
             `nofile` in /etc/security/limits.conf, LimitNOFILE of a unit), or take fewer members",
            maximum.unwrap_or(0)
        );
    }
    if current.is_some_and(|current| current < needed) {
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        setrlimit(Resource::Nofile, raised).context("the limit of open files cannot be raised")?;
    }
    Ok(())
}

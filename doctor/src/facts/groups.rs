//! What the control groups of this process allow it, version 1 or 2: the least over the group and those above it.

use std::path::{Path, PathBuf};

use crate::facts::{Places, text_of};

/// Cores' worth of time.
pub(crate) fn cpu_quota(places: &Places) -> Option<f64> {
    let quota = |folder: &Path| -> Option<f64> {
        if let Some(text) = text_of(&folder.join("cpu.max")) {
            let (quota, period) = text.trim().split_once(' ')?;
            return Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?);
        }
        let number = |name: &str| number_in(&folder.join(name));
        let (quota, period) = (number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?);
        (quota > 0.0 && period > 0.0).then(|| quota / period)
    };
    folders(places, "cpu")
        .iter()
        .filter_map(|folder| quota(folder))
        .min_by(f64::total_cmp)
}

/// What a group lets its processes have of memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryLimit {
    /// At most.
    pub(crate) limit: u64,
    /// What of it is used and cannot be given back.
    pub(crate) used: u64,
    /// Swap beside it; none: as much as there is.
    pub(crate) swap: Option<u64>,
}

/// Files of the memory controller: the limit, what is used, the limit of swap; the beginning of the names in `memory.stat`
/// that count what is below, too.
type MemoryFiles = ([&'static str; 3], &'static str);
const VERSION_2: MemoryFiles = (["memory.max", "memory.current", "memory.swap.max"], "");
const VERSION_1: MemoryFiles = (
    [
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.memsw.limit_in_bytes",
    ],
    "total_",
);
/// What the kernel takes back when memory is wanted.
const RECLAIMABLE: [&str; 3] = ["inactive_file", "active_file", "slab_reclaimable"];

/// The tightest of the groups that have a limit.
pub(crate) fn memory(places: &Places) -> Option<MemoryLimit> {
    let of = |folder: &Path| -> Option<MemoryLimit> {
        let is_second = folder.join("memory.max").exists();
        let ([limit, usage, swap], beginning) = if is_second { VERSION_2 } else { VERSION_1 };
        let number = |name: &str| number_in(&folder.join(name)).map(|number| number as u64);
        let limit = number(limit)?;
        let stat = text_of(&folder.join("memory.stat")).unwrap_or_default();
        let is_reclaimable = |name: &str| RECLAIMABLE.contains(&name.strip_prefix(beginning).unwrap_or_default());
        let reclaimable: u64 = stat
            .lines()
            .filter_map(|line| line.split_once(' ').filter(|(name, _)| is_reclaimable(name)))
            .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
            .sum();
        Some(MemoryLimit {
            limit,
            used: number(usage).unwrap_or(0).saturating_sub(reclaimable),
            // Version 1 counts memory and swap together.
            swap: number(swap).map(|swap| if is_second { swap } else { swap.saturating_sub(limit) }),
        })
    };
    let groups = folders(places, "memory").into_iter().filter_map(|folder| of(&folder));
    // Without a limit version 1 says the largest number of pages.
    groups
        .filter(|group| group.limit < 1 << 62)
        .min_by_key(|group| group.limit.saturating_sub(group.used))
}

/// Processes and threads that may be, and those that are.
pub(crate) fn pids(places: &Places) -> Option<(u64, u64)> {
    let of = |folder: &Path| {
        let most = number_in(&folder.join("pids.max"))? as u64;
        Some((most, number_in(&folder.join("pids.current")).unwrap_or(0.0) as u64))
    };
    let groups = folders(places, "pids").into_iter().filter_map(|folder| of(&folder));
    groups.min_by_key(|(most, now)| most.saturating_sub(*now))
}

/// A number; none for the word `max` and for what is not there.
fn number_in(path: &Path) -> Option<f64> {
    text_of(path)?.trim().parse().ok()
}

/// The folders of this process's group and of those above it, for one controller. In a container the path that the kernel
/// tells may not be there; then the root of what is mounted is the container's group.
fn folders(places: &Places, controller: &str) -> Vec<PathBuf> {
    let text = text_of(&places.proc.join("self/cgroup")).unwrap_or_default();
    let root = places.sys.join("fs/cgroup");
    let mut found = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let mount = match controllers.split(',').any(|name| name == controller) {
            // Controllers that share a group are mounted under their joined names, and linked.
            true => [controller, controllers]
                .map(|name| root.join(name))
                .into_iter()
                .find(|mount| mount.is_dir()),
            false if controllers.is_empty() => {
                Some(root.clone()).filter(|root| root.join("cgroup.controllers").exists())
            }
            false => None,
        };
        let Some(mount) = mount else { continue };
        let group = mount.join(path.trim_start_matches('/'));
        let above = group.ancestors().take_while(|folder| folder.starts_with(&mount));
        found.extend(above.map(Path::to_path_buf));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn machine(groups: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Places) {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/self/cgroup", groups);
        files
            .iter()
            .for_each(|(path, text)| write(&format!("sys/fs/cgroup/{path}"), text));
        let places = Places {
            proc: root.path().join("proc"),
            sys: root.path().join("sys"),
            ..Places::default()
        };
        (root, places)
    }

    #[test]
    fn the_tightest_of_the_groups_above_counts_in_version_2() {
        let (_root, places) = machine(
            "0::/job/step\n",
            &[
                ("cgroup.controllers", "cpu memory"),
                ("job/cpu.max", "150000 100000\n"),
                ("job/memory.max", "1000\n"),
                ("job/memory.current", "700\n"),
                ("job/memory.swap.max", "30\n"),
                (
                    "job/memory.stat",
                    "anon 400\ninactive_file 200\nactive_file 90\nslab_reclaimable 10\n",
                ),
                ("job/step/cpu.max", "max 100000\n"),
                ("job/step/memory.max", "max\n"),
                ("job/step/pids.max", "50\n"),
                ("job/step/pids.current", "7\n"),
            ],
        );
        assert_eq!(cpu_quota(&places), Some(1.5));
        let tightest = MemoryLimit {
            limit: 1000,
            used: 400,
            swap: Some(30),
        };
        assert_eq!(memory(&places), Some(tightest));
        assert_eq!(pids(&places), Some((50, 7)));
    }

    #[test]
    fn version_1_has_a_tree_for_each_controller_and_says_no_limit_by_large_numbers() {
        let (_root, places) = machine(
            "4:memory:/box\n3:cpu,cpuacct:/box\n2:pids:/gone/inside\n",
            &[
                ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory/box/memory.limit_in_bytes", "4096\n"),
                ("memory/box/memory.usage_in_bytes", "96\n"),
                ("memory/box/memory.stat", "inactive_file 90\ntotal_inactive_file 6\n"),
                ("cpu,cpuacct/box/cpu.cfs_quota_us", "-1\n"),
                ("cpu,cpuacct/box/cpu.cfs_period_us", "100000\n"),
                ("pids/pids.max", "20\n"),
            ],
        );
        assert_eq!(cpu_quota(&places), None);
        let tightest = MemoryLimit {
            limit: 4096,
            used: 90,
            swap: None,
        };
        assert_eq!(memory(&places), Some(tightest));
        assert_eq!(
            pids(&places),
            Some((20, 0)),
            "a path that is not there is the mounted root"
        );
    }

    #[test]
    fn where_nothing_is_mounted_nothing_is_limited() {
        let (_root, places) = machine("0::/job\n", &[]);
        assert_eq!((cpu_quota(&places), memory(&places), pids(&places)), (None, None, None));
    }
}

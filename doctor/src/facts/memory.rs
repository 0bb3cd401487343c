//! Memory, and the part of it that is a file system.

use rustix::fs::statvfs;
use serde::Serialize;

use crate::facts::{Places, groups, text_of};

/// The memory of a machine, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All of it; 0 where the kernel does not tell.
    pub total: u64,
    /// What could be had now, caches given back.
    pub available: u64,
    /// What may be moved to a disk.
    pub swap: u64,
    /// What a control group lets this process and its children have.
    pub limit: Option<u64>,
    /// What of that limit is used and cannot be given back.
    pub limit_used: u64,
    /// `/dev/shm`, if it is there: its size and what is free.
    pub shm: Option<(u64, u64)>,
}

impl Memory {
    /// Looks.
    pub fn look(places: &Places) -> Memory {
        let text = text_of(&places.proc.join("meminfo")).unwrap_or_default();
        let of = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            kibibytes.unwrap_or(0) << 10
        };
        let group = groups::memory(places);
        let swap = of("SwapTotal:");
        let shm = statvfs(places.dev.join("shm")).ok();
        Memory {
            total: of("MemTotal:"),
            available: of("MemAvailable:"),
            swap: group
                .and_then(|group| group.swap)
                .map_or(swap, |allowed| allowed.min(swap)),
            limit: group.map(|group| group.limit),
            limit_used: group.map_or(0, |group| group.used),
            shm: shm.map(|shm| (shm.f_blocks * shm.f_frsize, shm.f_bavail * shm.f_frsize)),
        }
    }

    /// The most that there could ever be for a run; none where nobody tells.
    pub fn most(&self) -> Option<u64> {
        let total = Some(self.total).filter(|total| *total > 0);
        self.limit.into_iter().chain(total).min()
    }

    /// What there is now; none where nobody tells.
    pub fn now(&self) -> Option<u64> {
        let of_group = self.limit.map(|limit| limit.saturating_sub(self.limit_used));
        let of_machine = Some(self.available).filter(|_| self.total > 0);
        of_group.into_iter().chain(of_machine).min()
    }
}

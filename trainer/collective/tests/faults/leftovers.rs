//! What a process holds: compared before its first communicator and after its last.

use std::collections::BTreeSet;
use std::fs;

/// What is counted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// Where every descriptor leads.
    descriptors: Vec<String>,
    threads: usize,
    /// Mappings of memfds.
    mappings: Vec<String>,
}

impl Holdings {
    pub(crate) fn now() -> Holdings {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        Holdings {
            descriptors: descriptors(),
            threads: fs::read_dir("/proc/self/task").unwrap().count(),
            mappings: maps
                .lines()
                .filter(|line| line.contains("memfd:"))
                .map(str::to_owned)
                .collect(),
        }
    }
}

fn descriptors() -> Vec<String> {
    let mut links: Vec<String> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // Without the folder that is being read, which has been closed again by then for all others.
        .filter_map(|path| fs::read_link(path).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    links.sort();
    links
}

/// The names of abstract sockets that this process holds.
pub(crate) fn own_socket_names() -> BTreeSet<String> {
    let own = descriptors();
    rows()
        .into_iter()
        .filter(|(inode, _)| own.iter().any(|link| *link == format!("socket:[{inode}]")))
        .map(|(_, name)| name)
        .collect()
}

/// The names of all abstract sockets of this network namespace.
pub(crate) fn socket_names() -> BTreeSet<String> {
    rows().into_iter().map(|(_, name)| name).collect()
}

/// Inode and name of each abstract socket.
fn rows() -> Vec<(String, String)> {
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    let rows = table.lines().skip(1).filter_map(|row| {
        let mut words = row.split_whitespace().skip(6);
        let inode = words.next()?.to_owned();
        let name = words.next().filter(|name| name.starts_with('@'))?.to_owned();
        Some((inode, name))
    });
    rows.collect()
}

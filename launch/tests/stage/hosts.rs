//! Two hosts for a test.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Stage, real_trainer, said};

/// Two hosts: network namespaces joined by a pair of virtual interfaces, removed when dropped.
pub(crate) struct Hosts {
    pub(crate) names: [String; 2],
}

/// Their addresses, in a range that is for documentation only.
pub(crate) const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", said(&output));
}

impl Hosts {
    pub(crate) fn new() -> Hosts {
        // Several tests of one process may have hosts.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let names = ["a", "b"].map(|side| format!("lockstep-{}-{number}-{side}", std::process::id()));
        let hosts = Hosts { names };
        let [a, b] = &hosts.names;
        for name in [a, b] {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        ip(&format!("link add veth0 netns {a} type veth peer name veth0 netns {b}"));
        for (name, address) in hosts.names.iter().zip(ADDRESSES) {
            ip(&format!("-n {name} address add {address}/24 dev veth0"));
            ip(&format!("-n {name} link set veth0 up"));
        }
        hosts
    }

    pub(crate) fn handle(&self, host: usize) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.names[host])
    }

    /// A program of the folder of the binary under test, on one of the hosts.
    pub(crate) fn command(&self, host: usize, stage: &Stage, program: &str, words: &str) -> Command {
        let mut command = Command::new("nsenter");
        let binary = real_trainer().with_file_name(program);
        assert!(binary.is_file(), "{} is not there: build it first", binary.display());
        command
            .arg(format!("--net={}", self.handle(host).display()))
            .arg(binary)
            .args(words.split_whitespace())
            .current_dir(stage.path(""))
            .env("OMP_NUM_THREADS", "1")
            .env("MKL_NUM_THREADS", "1");
        command
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            // The interfaces go with them.
            let _ = Command::new("ip")
                .args(["netns", "delete", name])
                .stderr(Stdio::null())
                .status();
        }
    }
}

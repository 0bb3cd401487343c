//! Two hosts on one machine: network namespaces with a wire between them that can be cut and slowed.
//!
//! The coordinator serves its own host only, so a relay on that host passes the connections of the other one on: what the
//! wire does, it does to them as well.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::failure::{Failure, on_path};

/// In a range that is for documentation only.
const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
/// A link address that nobody has: what is sent to it is dropped, and the sender learns nothing.
const NOBODY: &str = "02:00:00:00:00:01";
const PREFIX: &str = "lockstep-chaos";
/// How often the relay looks whether it is over.
const LOOK: Duration = Duration::from_millis(50);

/// The namespaces; removed when dropped.
pub(super) struct Hosts {
    names: [String; 2],
    relay: Option<JoinHandle<()>>,
    is_over: Arc<AtomicBool>,
}

fn succeeds(program: &str, words: &str) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(words.split_whitespace()).stdin(Stdio::null());
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{program} {words}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

pub(super) fn set(program: &str, words: &str) -> Result<(), Failure> {
    succeeds(program, words).map_err(Failure::work)
}

/// Why this machine cannot have two hosts, if it cannot.
pub(super) fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root can make network namespaces".to_owned());
    }
    ["ip", "tc"]
        .iter()
        .find_map(|program| succeeds(program, "-V").err())
        .or_else(|| Hosts::new().err().map(|failure| failure.to_string()))
}

/// Namespaces of this harness that are there.
pub(super) fn left_namespaces() -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| name.starts_with(&format!("{PREFIX}-{}-", std::process::id())))
        .collect()
}

impl Hosts {
    pub(super) fn new() -> Result<Hosts, Failure> {
        let hosts = Hosts {
            names: ["a", "b"].map(|side| format!("{PREFIX}-{}-{side}", std::process::id())),
            relay: None,
            is_over: Arc::new(AtomicBool::new(false)),
        };
        let [a, b] = &hosts.names;
        for name in [a, b] {
            set("ip", &format!("netns add {name}"))?;
            set("ip", &format!("-n {name} link set lo up"))?;
        }
        set(
            "ip",
            &format!("link add veth0 netns {a} type veth peer name veth0 netns {b}"),
        )?;
        for (name, address) in hosts.names.iter().zip(ADDRESSES) {
            set("ip", &format!("-n {name} address add {address}/24 dev veth0"))?;
            set("ip", &format!("-n {name} link set veth0 up"))?;
        }
        Ok(hosts)
    }

    /// Words before those of a program that shall run there.
    pub(super) fn entering(&self, host: usize) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net=/run/netns/{}", self.names[host])]
    }

    pub(super) fn address(&self, host: usize) -> &'static str {
        ADDRESSES[host]
    }

    pub(super) fn coordinator_seen_from(&self, host: usize, port: u16) -> String {
        let address = if host == 0 { "127.0.0.1" } else { ADDRESSES[0] };
        format!("http://{address}:{port}")
    }

    /// From now on every packet between the hosts is lost, in both directions; nobody is told.
    pub(super) fn cut(&self) -> Result<(), Failure> {
        self.neighbours(&format!("lladdr {NOBODY} nud permanent"), "replace")
    }

    /// Ends a cut.
    pub(super) fn mend(&self) -> Result<(), Failure> {
        self.neighbours("", "delete")
    }

    fn neighbours(&self, what: &str, verb: &str) -> Result<(), Failure> {
        for (name, other) in self.names.iter().zip([ADDRESSES[1], ADDRESSES[0]]) {
            set("ip", &format!("-n {name} neighbour {verb} {other} {what} dev veth0"))?;
        }
        Ok(())
    }

    /// From now on the wire carries so many bits a second, each way.
    pub(super) fn slow(&self, rate: &str) -> Result<(), Failure> {
        for name in &self.names {
            set(
                "tc",
                &format!("-n {name} qdisc add dev veth0 root tbf rate {rate} burst 16kb latency 400ms"),
            )?;
        }
        Ok(())
    }

    /// Ends a slowness.
    pub(super) fn quicken(&self) -> Result<(), Failure> {
        for name in &self.names {
            set("tc", &format!("-n {name} qdisc delete dev veth0 root"))?;
        }
        Ok(())
    }

    /// Passes connections to the first host's address on to its coordinator, until this is dropped.
    pub(super) fn relay(&mut self, port: u16) -> Result<(), Failure> {
        let path = Path::new("/run/netns").join(&self.names[0]);
        let namespace = File::open(&path).map_err(on_path("open", &path))?;
        let is_over = Arc::clone(&self.is_over);
        let (told, heard) = std::sync::mpsc::channel();
        // A socket stays in the namespace of the thread that makes it.
        self.relay = Some(std::thread::spawn(move || {
            let listening = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(std::io::Error::from)
                .and_then(|()| TcpListener::bind((ADDRESSES[0], port)))
                .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
            // Who waits for it is there until it has heard.
            match listening {
                Ok(listener) => {
                    let _heard = told.send(Ok(()));
                    accept(&listener, port, &is_over);
                }
                Err(error) => drop(told.send(Err(error))),
            }
        }));
        let heard = heard.recv().map_err(|_| Failure::work("the relay has ended"))?;
        heard.map_err(|error| Failure::work(format!("no relay on {}:{port}: {error}", ADDRESSES[0])))
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        if let Some(relay) = self.relay.take() {
            // A panic there was printed.
            let _ended = relay.join();
        }
        for name in &self.names {
            // The interfaces go with them; what is left is told at the end.
            let _deleted = succeeds("ip", &format!("netns delete {name}"));
        }
    }
}

fn accept(listener: &TcpListener, port: u16, is_over: &Arc<AtomicBool>) {
    let mut passing = Vec::new();
    while !is_over.load(Ordering::SeqCst) {
        let Ok((here, _)) = listener.accept() else {
            std::thread::sleep(LOOK);
            continue;
        };
        // Without a coordinator the connection is closed at once, as one that is refused.
        let Ok(there) = TcpStream::connect(("127.0.0.1", port)) else {
            continue;
        };
        let (here, there) = (Arc::new(here), Arc::new(there));
        for (from, to) in [(Arc::clone(&here), Arc::clone(&there)), (there, here)] {
            let is_over = Arc::clone(is_over);
            passing.push(std::thread::spawn(move || pass(&from, &to, &is_over)));
        }
    }
    for thread in passing {
        // A panic there was printed.
        let _ended = thread.join();
    }
}

/// Carries bytes until one side closes, or it is all over.
fn pass(mut from: &TcpStream, mut to: &TcpStream, is_over: &AtomicBool) {
    let mut bytes = [0; 16 << 10];
    let is_set = from.set_nonblocking(false).is_ok()
        && from.set_read_timeout(Some(LOOK)).is_ok()
        && to.set_write_timeout(Some(Duration::from_secs(20))).is_ok()
        && to.set_nodelay(true).is_ok();
    while is_set && !is_over.load(Ordering::SeqCst) {
        match from.read(&mut bytes) {
            Ok(count @ 1..) if to.write_all(&bytes[..count]).is_ok() => {}
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            _ => break,
        }
    }
    // It may be closed already.
    let _closed = to.shutdown(Shutdown::Both);
    let _closed = from.shutdown(Shutdown::Both);
}

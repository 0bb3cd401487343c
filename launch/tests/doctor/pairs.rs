//! Ways between processes: measured, slow, late, missing.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::stage::{Running, said, wait_until};
use crate::ward::{Ward, may};

/// A doctor that answers, and its address; started by another program where one is named.
fn listening(ward: &Ward, starter: &[&str], address: &str) -> (Running, String) {
    let words = format!("doctor --listen {address}");
    let mut command = match starter {
        [] => ward.command(&words),
        starter => ward.under(starter, &words),
    };
    let mut listener = ward.stage.start(&mut command);
    wait_until("the doctor listens", || {
        assert!(listener.is_running(), "{}", listener.err());
        listener.out().contains('\n')
    });
    let said = listener.out();
    let bound = said.split(" on ").nth(1).unwrap().split(';').next().unwrap().to_owned();
    (listener, bound)
}

/// What no way of this machine falls below, however busy it is.
const LENIENT: &str = "--expect-mbit 1 --expect-ms 5000";

#[test]
fn a_peer_that_answers_has_a_way_and_one_that_does_not_is_named() {
    let ward = Ward::new();
    let (listener, address) = listening(&ward, &[], "127.0.0.1:0");
    let report = ward.examine(&format!("--peer {address} {LENIENT}"));
    assert_eq!(report.ids(), [""; 0], "{report:?}");
    let way = &report.json["facts"]["pairs"][0]["way"]["Ok"];
    for key in ["milliseconds", "megabits_to", "megabits_from"] {
        assert!(way[key].as_f64().unwrap() > 0.0, "{key}: {way}");
    }
    drop(listener);
    let report = ward.examine(&format!("--peer {address} {LENIENT}"));
    report.found("peer-unreachable", &[&address, "Connection refused", "NetworkPolicy"]);
}

/// Passes bytes on, each lot after a while.
fn late(to: String, delay: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for here in listener.incoming().map_while(Result::ok) {
            let there = TcpStream::connect(&to).unwrap();
            there.set_nodelay(true).unwrap();
            here.set_nodelay(true).unwrap();
            let ways = [
                (here.try_clone().unwrap(), there.try_clone().unwrap(), delay),
                (there, here, Duration::ZERO),
            ];
            for (mut from, mut to, delay) in ways {
                std::thread::spawn(move || {
                    let mut bytes = vec![0; 1 << 20];
                    while let Ok(count @ 1..) = from.read(&mut bytes) {
                        std::thread::sleep(delay);
                        if to.write_all(&bytes[..count]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    address
}

#[test]
fn a_way_on_which_everything_is_late() {
    let ward = Ward::new();
    let (_listener, address) = listening(&ward, &[], "127.0.0.1:0");
    let relay = late(address, Duration::from_millis(30));
    let report = ward.examine(&format!("--peer {relay} --expect-mbit 0.001 --expect-ms 10"));
    report.found("latency-high", &["there and back takes", &relay]);
}

/// Two hosts: network namespaces, gone when dropped.
struct Hosts([String; 2]);

impl Hosts {
    /// None, and a line that says so, where none can be made.
    fn new(name: &str) -> Option<Hosts> {
        let hosts = Hosts(["a", "b"].map(|side| format!("doctor-{}-{name}-{side}", std::process::id())));
        let [a, b] = &hosts.0;
        for host in [a, b] {
            if !may(&["ip", "netns", "add", host]) {
                return None;
            }
        }
        ip(&format!("link add veth0 netns {a} type veth peer name veth0 netns {b}"));
        for (host, address) in [(a, "192.0.2.1"), (b, "192.0.2.2")] {
            ip(&format!("-n {host} address add {address}/24 dev veth0"));
            ip(&format!("-n {host} link set veth0 up"));
            ip(&format!("-n {host} link set lo up"));
        }
        Some(hosts)
    }

    fn entering(&self, host: usize) -> [String; 2] {
        ["nsenter".to_owned(), format!("--net=/run/netns/{}", self.0[host])]
    }

    /// Lets so much through what leaves the first host.
    fn slow(&self, rate: &str) -> bool {
        let words = format!(
            "netns exec {} tc qdisc add dev veth0 root tbf rate {rate} burst 32kbit latency 400ms",
            self.0[0]
        );
        may(&[&["ip"], &words.split_whitespace().collect::<Vec<_>>()[..]].concat())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in &self.0 {
            // The interfaces go with them.
            let _ = Command::new("ip")
                .args(["netns", "delete", host])
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", said(&output));
}

#[test]
fn a_slow_link_between_two_hosts() {
    let ward = Ward::new();
    let Some(hosts) = Hosts::new("slow").filter(|hosts| hosts.slow("20mbit")) else {
        return;
    };
    let (first, second) = (hosts.entering(0), hosts.entering(1));
    let (_listener, _) = listening(&ward, &second.each_ref().map(String::as_str), "192.0.2.2:7400");
    let words = "--peer 192.0.2.2:7400 --expect-ms 5000";
    let report = ward.examine_under(&first.each_ref().map(String::as_str), words);
    report.found("link-slow", &["192.0.2.2:7400", "ethtool"]);
    let way = &report.json["facts"]["pairs"][0]["way"]["Ok"];
    let megabits = way["megabits_to"].as_f64().unwrap();
    assert!(megabits < 40.0, "the link lets 20 Mbit/s through: {way}");
}

#[test]
fn a_host_behind_a_firewall() {
    let ward = Ward::new();
    let Some(hosts) = Hosts::new("cut") else {
        return;
    };
    let first = hosts.entering(0);
    // Nothing comes back from there.
    ip(&format!("-n {} link set veth0 down", hosts.0[1]));
    let report = ward.examine_under(&first.each_ref().map(String::as_str), "--peer 192.0.2.2:7400");
    report.found("peer-unreachable", &["192.0.2.2:7400"]);
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn ranks_meet_and_measure_every_pair_and_end_alike() {
    let ward = Ward::new();
    let at = free_address();
    let others: Vec<Running> = (1..3)
        .map(|rank| {
            let words = format!("doctor run.toml --json --meet {at} --rank {rank} --size 3 {LENIENT}");
            ward.stage.start(&mut ward.command(&words))
        })
        .collect();
    let report = ward.examine(&format!("run.toml --meet {at} --rank 0 --size 3 {LENIENT}"));
    assert_eq!(report.ids(), [""; 0], "{report:?}");
    let pairs = report.json["facts"]["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 3, "{pairs:?}");
    for mut other in others {
        assert_eq!(other.wait(), 0, "{}", other.err());
        assert_eq!(other.out(), "", "rank 0 shows it");
    }
}

#[test]
fn what_another_rank_lacks_is_in_the_report_of_rank_0() {
    let ward = Ward::new();
    let at = free_address();
    let words = format!("doctor run.toml --json --meet {at} --rank 1 --size 2 {LENIENT}");
    let mut command = ward.command(&words);
    let mut other = ward.stage.start(command.env("LOCKSTEP_TRAINER", "/absent/trainer"));
    let report = ward.examine(&format!("run.toml --meet {at} --rank 0 --size 2 {LENIENT}"));
    report.found("trainer-missing", &["rank 1 (", "/absent/trainer"]);
    assert_eq!(other.wait(), 1, "all end alike: {}", other.err());
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let ward = Ward::new();
    let report = ward.examine(&format!("--meet {} --rank 0 --size 3 --patience 1", free_address()));
    report.found("ranks-missing", &["ranks 1, 2", "of 3 ranks 2 did not come"]);
    let output = ward
        .command(&format!(
            "doctor --meet {} --rank 1 --size 2 --patience 1",
            free_address()
        ))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("rank 0 is not reached within 1 s"),
        "{}",
        said(&output)
    );
}

#[test]
fn under_a_real_mpirun_every_rank_knows_which_one_it_is() {
    let ward = Ward::new();
    for mpirun in ["mpirun.openmpi", "mpirun.mpich"] {
        if !may(&[mpirun, "--version"]) {
            continue;
        }
        let words = format!("doctor --json --meet {} {LENIENT}", free_address());
        let mut command = ward.under(&[mpirun, "-n", "3"], &words);
        command
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            .env("OMPI_MCA_rmaps_base_oversubscribe", "1");
        let output = command.output().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{mpirun}: {error}: {}", said(&output)));
        assert_eq!(json["facts"]["pairs"].as_array().unwrap().len(), 3, "{mpirun}");
        assert_eq!(output.status.code(), Some(0), "{mpirun}: {}", said(&output));
    }
}

//! Set-ups that are broken for real, one thing at a time: `lockstep doctor` finds and names just that, and nothing in a healthy
//! one. What needs root, a namespace or a compiler says so where these are not to be had, and is left out.
#![allow(clippy::unwrap_used)]

mod certificates;
mod data;
mod disks;
mod gpus;
mod machine;
mod network;
mod page;
mod pairs;
mod programs;
mod short;
#[path = "../stage/mod.rs"]
mod stage;
mod ward;

use ward::Ward;

#[test]
fn a_healthy_set_up_has_no_finding() {
    let ward = Ward::new();
    let report = ward.examine("run.toml -n 1 --strict");
    assert_eq!(report.ids(), [""; 0], "{report:?}");
    assert_eq!(report.code, 0);
    let machine = ward.examine("--strict");
    assert_eq!(machine.ids(), [""; 0], "{machine:?}");
    let output = ward.stage.lockstep("doctor run.toml -n 1");
    let text = stage::said(&output);
    for part in ["cores ", "memory ", "disk ", "data ", "in 2 shards"] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    assert_eq!(
        ward.stage
            .listing()
            .keys()
            .filter(|path| path.to_string_lossy().contains("doctor"))
            .count(),
        0
    );
}

/// What containers, jobs and small machines lack without being the worse for it.
#[test]
fn healthy_set_ups_in_bare_surroundings_have_no_finding() {
    let ward = Ward::new();
    let healthy = |report: ward::Report, what: &str| assert_eq!(report.ids(), [""; 0], "{what}: {report:?}");
    std::fs::write(ward.path("cpuinfo"), "processor\t: 0\nBogoMIPS\t: 100\n").unwrap();
    let folder = ward.path("");
    let read_only = format!(
        "mount --bind {0} {0}; mount -o remount,bind,ro /; cd {0}",
        folder.display()
    );
    for script in [
        "mount -t tmpfs none /sys",
        "mount -t tmpfs none /sys/fs/cgroup",
        "mount --bind cpuinfo /proc/cpuinfo",
        read_only.as_str(),
    ] {
        if let Some(report) = ward.examine_inside(script, "run.toml -n 1 --strict") {
            healthy(report, script);
        }
    }
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let no_network = ["unshare", "--net"];
    let one_core = ["taskset", "-c", "0"];
    let binary = env!("CARGO_BIN_EXE_lockstep");
    for starter in [&nobody[..], &no_network, &one_core] {
        if ward::may(&[starter, &["test", "-x", binary]].concat()) {
            healthy(ward.examine_under(starter, "run.toml -n 1 --strict"), starter[0]);
        }
    }
}

#[test]
fn facts_are_told_to_programs() {
    let ward = Ward::new();
    let report = ward.examine("run.toml -n 1");
    let facts = &report.json["facts"];
    for (pointer, what) in [
        ("/processors/online", "cores"),
        ("/memory/total", "memory"),
        ("/disks/0/free", "disk"),
        ("/data/0/shards", "data"),
        ("/wanted/memory/bytes", "what the run wants"),
    ] {
        assert!(
            facts
                .pointer(pointer)
                .and_then(|value| value.as_u64())
                .is_some_and(|value| value > 0),
            "{what}: {facts}"
        );
    }
    assert_eq!(report.json["version"], 1);
}

#[test]
fn bad_input_has_exit_code_2() {
    let ward = Ward::new();
    for words in [
        "doctor absent.toml",
        "doctor run.toml -n 9",
        "doctor run.toml --set run.lnaes=3",
        "doctor --meet 127.0.0.1:1",
        "doctor --meet nowhere --rank 0 --size 2",
        "doctor --meet 127.0.0.1:1 --rank 2 --size 2",
        "doctor --listen 192.0.2.1:1",
        "doctor --peer 127.0.0.1:1 --meet 127.0.0.1:1",
        "doctor -n 2",
    ] {
        let output = ward.command(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words}: {}", stage::said(&output));
    }
}

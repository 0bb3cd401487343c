//! Disks that are full, small, slow or not to be written.

use crate::ward::Ward;

/// A file system of its own as the current folder; the config and the data stay where they are.
fn on(ward: &Ward, options: &str, more: &str, words: &str) -> Option<crate::ward::Report> {
    std::fs::create_dir_all(ward.path("disk")).unwrap();
    let script = format!("mount -t tmpfs -o {options} none disk; cd disk; {more}");
    let data = ward.path("data");
    ward.examine_inside(
        &script,
        &format!("../run.toml -n 1 --set data.path={} {words}", data.display()),
    )
}

#[test]
fn a_full_disk() {
    let ward = Ward::new();
    let fill = "dd if=/dev/zero of=filler bs=64k 2>/dev/null || true";
    if let Some(report) = on(&ward, "size=1m", fill, "") {
        report.found("disk-full", &["runs/first", "No space left on device"]);
    }
}

#[test]
fn a_disk_without_room_for_the_final_weights() {
    let ward = Ward::new();
    let large = "--set model.width=512 --set model.layers=4 --set model.heads=8";
    if let Some(report) = on(&ward, "size=40m", ":", large) {
        report.found("disk-full", &["final weights", "40.0 MiB"]);
    }
}

#[test]
fn a_disk_that_is_low() {
    let ward = Ward::new();
    if let Some(report) = on(&ward, "size=64m", ":", "--set alerts.disk_mib=1024") {
        report.found("disk-low", &["64.0 MiB", "alerts.disk_mib"]);
    }
    // Checkpoints that lie elsewhere.
    std::fs::create_dir_all(ward.path("store")).unwrap();
    let script = "mount -t tmpfs -o size=20m none store";
    let words = "run.toml -n 1 --set checkpoint.store=store --set checkpoint.keep_last=1000";
    if let Some(report) = ward.examine_inside(script, words) {
        report.found("disk-low", &["1001 checkpoints", "store"]);
    }
}

#[test]
fn a_store_of_checkpoints_that_is_full_or_cannot_be_written() {
    let ward = Ward::new();
    std::fs::create_dir_all(ward.path("store")).unwrap();
    let words = "run.toml -n 1 --set checkpoint.store=store";
    let full = "mount -t tmpfs -o size=64k none store; dd if=/dev/zero of=store/filler bs=4k 2>/dev/null || true";
    if let Some(report) = ward.examine_inside(full, words) {
        report.found("disk-low", &["No space left on device", "store"]);
    }
    if let Some(report) = ward.examine_inside("mount -t tmpfs -o ro none store", words) {
        report.found("checkpoints-unwritable", &["Read-only file system", "store"]);
    }
}

#[test]
fn a_disk_that_cannot_be_written() {
    let ward = Ward::new();
    if let Some(report) = on(&ward, "ro", ":", "") {
        report.found("disk-unwritable", &["Read-only file system", "runs/first"]);
    }
}

#[test]
fn a_disk_on_which_few_files_can_be_made() {
    let ward = Ward::new();
    if let Some(report) = on(&ward, "size=64m,nr_inodes=20", ":", "") {
        report.found("inodes-low", &["more files"]);
    }
}

#[test]
fn a_disk_that_is_slow() {
    let ward = Ward::new();
    // In the place of a disk that takes a second: whoever waits for it waits that long.
    let source = "#include <unistd.h>\nint fsync(int f) { (void)f; sleep(1); return 0; }\n";
    let Some(library) = ward.compiled("slow.so", source, "-shared -fPIC") else {
        return;
    };
    let report = ward.examine_with("run.toml -n 1", &[("LD_PRELOAD", library.to_str().unwrap())]);
    report.found("disk-slow", &["to be on the disk"]);
}

//! Cores, memory and limits.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::ward::{Group, Ward, may};

fn cores() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// This machine's first core, as `taskset` wants it.
fn a_core() -> Option<String> {
    let output = Command::new("taskset")
        .args(["-cp", &std::process::id().to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let list = text.rsplit(':').next()?.trim().to_owned();
    Some(list.split([',', '-']).next()?.to_owned())
}

#[test]
fn a_process_that_is_bound_to_one_core() {
    let ward = Ward::new();
    let Some(core) = a_core().filter(|_| cores() > 1) else {
        println!("not checked: there is one core, or no taskset");
        return;
    };
    let report = ward.examine_under(&["taskset", "-c", &core], "run.toml -n 2");
    report.found("binding-narrow", &["2 ranks × 1 thread", "may run on 1 of"]);
}

#[test]
fn a_quota_below_what_the_threads_want() {
    let ward = Ward::new();
    let settings = [("cpu.cfs_quota_us", "50000"), ("cpu.max", "50000 100000")];
    let Some(group) = Group::new("cpu", &settings) else {
        return;
    };
    let starter = group.entering();
    let report = ward.examine_under(&starter.each_ref().map(String::as_str), "run.toml -n 1");
    report.found("cpu-quota", &["0.50 cores"]);
}

#[test]
fn more_threads_than_cores() {
    let ward = Ward::new();
    let report = ward.examine("run.toml -n 1 --set run.intra_op_threads=1024");
    assert!(report.ids().contains(&"cores-few"), "{report:?}");
    assert_eq!(report.code, 0, "a warning");
    let strict = ward.examine("run.toml -n 1 --set run.intra_op_threads=1024 --strict");
    assert_eq!(strict.code, 1);
}

/// A processor as the kernel describes it, with these instructions.
fn with_flags(ward: &Ward, flags: &str, words: &str) -> Option<crate::ward::Report> {
    let one = |number: usize| format!("processor\t: {number}\nmodel name\t: Some CPU\nflags\t\t: fpu sse2 {flags}\n\n");
    let text: String = (0..cores()).map(one).collect();
    std::fs::write(ward.path("cpuinfo"), text).unwrap();
    ward.examine_inside("mount --bind cpuinfo /proc/cpuinfo", words)
}

#[test]
fn processors_without_avx2_and_without_products_in_bf16() {
    let ward = Ward::new();
    if let Some(report) = with_flags(&ward, "avx", "run.toml -n 1") {
        report.found("cpu-no-avx2", &["Some CPU", "AVX2"]);
    }
    if let Some(report) = with_flags(&ward, "avx2 fma", "run.toml -n 1 --set run.precision=bf16") {
        report.found("cpu-no-bf16", &["run.precision", "fp32"]);
    }
}

#[test]
fn variables_that_contradict_the_config_or_bind_all_ranks_alike() {
    let ward = Ward::new();
    let report = ward.examine_with("run.toml -n 1", &[("OMP_NUM_THREADS", "7")]);
    report.found(
        "threads-contradict",
        &["OMP_NUM_THREADS", "7", "run.intra_op_threads is 1"],
    );
    let words = "run.toml -n 2 --set run.intra_op_threads=1";
    let report = ward.examine_with(words, &[("OMP_PROC_BIND", "close")]);
    let ids = report.ids();
    assert!(ids.contains(&"binding-variables"), "{report:?}");
    let off = ward.examine_with("run.toml -n 2", &[("OMP_PROC_BIND", "false")]);
    assert!(!off.ids().contains(&"binding-variables"), "{off:?}");
}

/// About 50 million parameters.
const LARGE: &str = "--set model.width=1024 --set model.layers=4 --set model.heads=8";

#[test]
fn less_memory_than_the_run_s_account() {
    let ward = Ward::new();
    let settings = [("memory.limit_in_bytes", "268435456"), ("memory.max", "268435456")];
    if let Some(group) = Group::new("memory", &settings) {
        let starter = group.entering();
        let report = ward.examine_under(
            &starter.each_ref().map(String::as_str),
            &format!("run.toml -n 1 {LARGE}"),
        );
        report.found("memory-short", &["256.0 MiB", "control group", "raise the limit"]);
    }
    std::fs::write(ward.path("meminfo"), "MemTotal: 262144 kB\nMemAvailable: 200000 kB\n").unwrap();
    let script = "mount --bind meminfo /proc/meminfo";
    if let Some(report) = ward.examine_inside(script, &format!("run.toml -n 1 {LARGE}")) {
        report.found("memory-short", &["256.0 MiB", "lockstep plan"]);
    }
    std::fs::write(ward.path("meminfo"), "MemTotal: 16777216 kB\nMemAvailable: 100 kB\n").unwrap();
    if let Some(report) = ward.examine_inside(script, "run.toml -n 1") {
        report.found("memory-tight", &["100.0 KiB of 16.0 GiB are free"]);
    }
}

#[test]
fn a_tiny_dev_shm_and_none() {
    let ward = Ward::new();
    if let Some(report) = ward.examine_inside("mount -t tmpfs -o size=1m none /dev/shm", "") {
        report.found("shm-small", &["/dev/shm", "1.0 MiB", "emptyDir"]);
    }
    // The host backend's memory has no name there.
    if let Some(report) = ward.examine_inside("mount -t tmpfs -o size=1m none /dev/shm", "run.toml -n 1") {
        assert_eq!(report.ids(), [""; 0], "{report:?}");
    }
    ward.program(
        "no-mpi-trainer",
        &std::fs::read_to_string(ward.path("trainer")).unwrap(),
    );
    let mpirun = ward.program("mpirun", "#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\n");
    let mpirun = mpirun.to_str().unwrap();
    for (script, id) in [
        ("mount -t tmpfs -o size=1m none /dev/shm", "shm-small"),
        ("mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3", "shm-missing"),
    ] {
        let words = "doctor --json run.toml -n 2 --backend mpi";
        let Some(output) = ward.inside(script, words, &[("LOCKSTEP_MPIRUN", mpirun)]) else {
            continue;
        };
        let text = crate::stage::said(&output);
        assert!(text.contains(&format!("\"id\":\"{id}\"")), "{id}: {text}");
    }
}

#[test]
fn few_open_files() {
    let ward = Ward::new();
    if !may(&["prlimit", "--nofile=20:20", "true"]) {
        return;
    }
    let report = ward.examine_under(&["prlimit", "--nofile=20:20"], "run.toml -n 1");
    report.found("nofile-low", &["ulimit -Hn", "20"]);
    let report = ward.examine_under(&["prlimit", "--nofile=512:512"], "run.toml -n 600 --set run.lanes=600");
    assert!(report.json.to_string().contains("\"nofile-low\""), "{report:?}");
}

#[test]
fn few_processes_of_a_user_and_of_a_group() {
    let ward = Ward::new();
    if let Some(group) = Group::new("pids", &[("pids.max", "10")]) {
        let starter = group.entering();
        let report = ward.examine_under(&starter.each_ref().map(String::as_str), "run.toml -n 1");
        report.found("pids-low", &["control group", "10 in all"]);
    }
    // The kernel does not count root's.
    let open = |name: &str, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(ward.path(name), permissions).unwrap();
    };
    open("", 0o777);
    let binary = env!("CARGO_BIN_EXE_lockstep");
    let starter = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    if !may(&[&starter[..], &["test", "-x", binary]].concat()) {
        return;
    }
    let starter = [&starter[..], &["prlimit", "--nproc=10:10"]].concat();
    let report = ward.examine_under(&starter, "run.toml -n 1");
    report.found("nproc-low", &["ulimit -u", "10 in all"]);
}

#[test]
fn little_locked_memory_beside_infiniband() {
    let ward = Ward::new();
    let script = "mount -t tmpfs none /sys/class; mkdir -p /sys/class/infiniband/mlx5_0; ulimit -l 64";
    if let Some(report) = ward.examine_inside(script, "") {
        report.found("memlock-low", &["InfiniBand", "64.0 KiB"]);
    }
}

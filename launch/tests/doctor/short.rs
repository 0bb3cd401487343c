//! The short form, before each run: errors refuse, warnings are told, a healthy set-up hears nothing.

use std::fs;
use std::process::Output;

use crate::stage::said;
use crate::ward::{Ward, may};

/// `lockstep run` with a trainer that ends at once, so that a run which does start ends too.
const QUICK: &str = "--set fault.max_restarts=0";

fn ends(ward: &Ward, words: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = ward.command(&format!("run run.toml -n 1 {QUICK} {words}"));
    command
        .env("LOCKSTEP_TRAINER", "/bin/false")
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn a_healthy_set_up_hears_nothing() {
    let ward = Ward::new();
    let output = ends(&ward, "", &[]);
    let text = said(&output);
    assert!(text.contains("run first: 6 steps"), "the run has started: {text}");
    assert!(!text.contains("warning:"), "{text}");
    assert_eq!(
        ward.stage
            .listing()
            .keys()
            .filter(|path| path.to_string_lossy().contains("lockstep-doctor"))
            .count(),
        0
    );
}

#[test]
fn an_error_refuses_in_one_sentence_and_nothing_is_written() {
    let ward = Ward::new();
    if !may(&["prlimit", "--nofile=20:20", "true"]) {
        return;
    }
    let before = ward.stage.listing();
    let output = ward
        .under(&["prlimit", "--nofile=20:20"], "run run.toml -n 1")
        .output()
        .unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for part in ["nofile-low", "may open 20", "ulimit -n"] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    assert_eq!(text.trim().lines().count(), 1, "{text}");
    assert!(ward.stage.listing() == before, "a file was changed");
    ward.stage.nothing_runs();
}

#[test]
fn a_full_disk_refuses() {
    let ward = Ward::new();
    fs::create_dir_all(ward.path("disk")).unwrap();
    let data = ward.path("data");
    let script = "mount -t tmpfs -o size=1m none disk; cd disk; dd if=/dev/zero of=filler bs=64k 2>/dev/null || true";
    let words = format!("run ../run.toml -n 1 --set data.path={}", data.display());
    let Some(output) = ward.inside(script, &words, &[]) else {
        return;
    };
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("disk-full"), "{}", said(&output));
}

#[test]
fn what_files_say_of_a_gpu_refuses_nothing() {
    if std::path::Path::new("/proc/driver/nvidia").exists() {
        println!("not checked: this machine has a GPU");
        return;
    }
    let ward = Ward::new();
    let text = said(&ends(&ward, "--set run.device=cuda", &[]));
    assert!(text.contains("run first: 6 steps"), "the run has started: {text}");
    assert!(
        text.contains("warning: ") && text.contains("(driver-missing)"),
        "{text}"
    );
}

#[test]
fn of_ranks_on_other_hosts_this_one_tells_nothing() {
    let ward = Ward::new();
    let mpirun = "#!/bin/sh\n[ \"$1\" = --version ] && echo 'mpirun (Open MPI) 4.1.4'\n";
    let mpirun = ward.program("mpirun", mpirun);
    // An address for documentation only, which nobody has.
    fs::write(ward.path("hosts"), "203.0.113.7\n").unwrap();
    let words = "mpirun run.toml -n 2 --set run.intra_op_threads=2 --set coordinator.bind=0.0.0.0:0 --set security.insecure_bind=true";
    let begin = |more: &str| {
        let mut command = ward.command(&format!("{words} {more}"));
        command.env("LOCKSTEP_MPIRUN", &mpirun).env("OMP_THREAD_LIMIT", "1");
        let text = said(&command.output().unwrap());
        assert!(text.contains("run first: 6 steps"), "the run has started: {text}");
        let _ = fs::remove_dir_all(ward.path("runs"));
        text
    };
    assert!(begin("").contains("(threads-contradict)"));
    let far = begin("--hostfile hosts");
    assert!(
        !far.contains("(threads-contradict)") && !far.contains("(cores-few)"),
        "{far}"
    );
}

#[test]
fn warnings_are_told_and_the_run_goes_on() {
    let ward = Ward::new();
    let variables = [("OMP_THREAD_LIMIT", "1")];
    let words = "--set run.intra_op_threads=2";
    let output = ends(&ward, words, &variables);
    let text = said(&output);
    assert!(
        text.contains("warning: OMP_THREAD_LIMIT") && text.contains("(threads-contradict)"),
        "{text}"
    );
    let _ = fs::remove_dir_all(ward.path("runs"));
    let output = ends(&ward, &format!("{words} --json"), &variables);
    let lines = String::from_utf8(output.stdout).unwrap();
    let events = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let warnings: Vec<_> = events.filter(|event| event["event"] == "warning").collect();
    assert!(
        warnings.iter().any(|event| event["id"] == "threads-contradict"),
        "{lines}"
    );
}

#[test]
fn it_can_be_told_to_keep_still() {
    let ward = Ward::new();
    let variables = [("OMP_THREAD_LIMIT", "1"), ("LOCKSTEP_DOCTOR", "off")];
    let text = said(&ends(&ward, "--set run.intra_op_threads=2", &variables));
    assert!(
        text.contains("run first: 6 steps") && !text.contains("warning:"),
        "{text}"
    );
}

//! Two hosts: network namespaces, each with a file system of its own where the run's folder is, and a launch agent of this test
//! in the place of ssh.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use rustix::process::Signal;

use crate::stage::hosts::{ADDRESSES, Hosts};
use crate::stage::{Stage, said, wait_until};
use crate::{SETS, SLOW, calm, is_mpich, mpiruns, no_trace, program};

/// Whether hosts can be made here.
fn left_out() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("left out: only root can make network namespaces");
    }
    !is_root
}

/// A script that starts a command on the other host: what mpirun takes for ssh. That host has a name of its own, and another,
/// empty file system in the place of `runs`.
fn agent(stage: &Stage, hosts: &Hosts) -> PathBuf {
    let path = stage.path("agent");
    let runs = stage.path("runs");
    let script = format!(
        "#!/bin/sh\n\
         while [ \"${{1#-}}\" != \"$1\" ]; do shift; done\n\
         shift\n\
         echo \"$*\" >> {log}\n\
         exec nsenter --net={net} unshare --mount --uts sh -c 'hostname far; mount -t tmpfs none {runs}; exec sh -c \"$*\"' sh \"$@\"\n",
        log = stage.path("agent.log").display(),
        net = hosts.handle(1).display(),
        runs = runs.display(),
    );
    fs::create_dir_all(&runs).unwrap();
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The words by which an mpirun is told of the agent.
fn by_agent(mpirun: &str, agent: &std::path::Path) -> Vec<String> {
    let agent = agent.display().to_string();
    match is_mpich(mpirun) {
        true => vec!["-launcher-exec".to_owned(), agent],
        false => vec!["--mca".to_owned(), "plm_rsh_agent".to_owned(), agent],
    }
}

fn hostfile(stage: &Stage, mpirun: &str) {
    let line = |host: &&str| match is_mpich(mpirun) {
        true => format!("{host}:2\n"),
        false => format!("{host} slots=2\n"),
    };
    let text: String = ADDRESSES.iter().map(line).collect();
    fs::write(stage.path("hosts"), text).unwrap();
}

/// Checkpoints need a place that all hosts share; everything else does not.
const APART: &str = "--set checkpoint.every=0 --set coordinator.bind=0.0.0.0:0";
/// On a network of one's own.
const OPEN: &str = "--set security.insecure_bind=true";
/// On any other, with what `lockstep certs new --out keys` has made.
const GUARDED: &str = "--set security.certificate=keys/server.pem --set security.key=keys/server.key \
                       --set security.client_ca=keys/ca.pem";

/// `lockstep mpirun` on the first host, two ranks on each, behind certificates.
fn launched(stage: &Stage, hosts: &Hosts, mpirun: &str, name: &str) -> Command {
    hostfile(stage, mpirun);
    let agent = agent(stage, hosts);
    let output = stage.lockstep(&format!("certs new --out keys --host {}", ADDRESSES[0]));
    assert!(output.status.success(), "{}", said(&output));
    let words =
        format!("mpirun run.toml {SETS} {APART} {GUARDED} --set run.name={name} -n 4 --hostfile hosts --json --");
    let mut command = hosts.command(0, stage, "lockstep", &words);
    command.args(by_agent(mpirun, &agent)).env("LOCKSTEP_MPIRUN", mpirun);
    command
}

fn hashes_of(stage: &Stage, name: &str) -> Vec<String> {
    crate::hashes(stage, name)
}

#[test]
fn two_ranks_on_each_of_two_hosts_make_the_hashes_of_one_host_and_no_secret_is_on_a_command_line() {
    if left_out() {
        return;
    }
    for mpirun in mpiruns() {
        let stage = Stage::new();
        let calm = calm(&stage);
        let hosts = Hosts::new();
        let output = launched(&stage, &hosts, mpirun, "far").output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{mpirun}: {}{}",
            said(&output),
            crate::logs(&stage, "far")
        );
        assert!(hashes_of(&stage, "far") == calm, "{mpirun}: two hosts made other bits");
        assert_eq!(crate::summary(&stage, "far")["worlds"][0]["ranks"], 4);
        // The ranks of the other host have no folder for logs: mpirun passes on what they say, with their numbers.
        let log = stage.read("runs/far/logs/mpirun.log");
        let label = if is_mpich(mpirun) { "[3]" } else { "[1,3]<stderr>" };
        assert!(log.contains(label), "{log}");
        assert!(stage.path("runs/far/logs/rank-0.log").is_file() && !stage.path("runs/far/logs/rank-3.log").exists());
        assert!(
            !stage.read("agent.log").contains("LOCKSTEP_"),
            "{}",
            stage.read("agent.log")
        );
        no_trace(&stage);
    }
}

#[test]
fn plain_mpirun_on_two_hosts_finds_the_coordinator_at_the_first_host_of_the_hostfile_or_by_a_shared_file() {
    if left_out() {
        return;
    }
    for mpirun in mpiruns() {
        let stage = Stage::new();
        let calm = calm(&stage);
        let hosts = Hosts::new();
        hostfile(&stage, mpirun);
        let agent = agent(&stage, &hosts);
        let start = |name: &str, bind: &str, words: &str, job: Option<&str>| {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", hosts.handle(0).display())).arg(mpirun);
            command.args(by_agent(mpirun, &agent));
            match is_mpich(mpirun) {
                true => command.args(["-prepend-rank", "-f", "hosts"]),
                false => command.args(["--tag-output", "--bind-to", "none", "--hostfile", "hosts"]),
            };
            command
                .args(["-n", "4"])
                .arg(program("lockstep-trainer"))
                .arg("run.toml");
            let words = format!("{SETS} {APART} {OPEN} --set run.name={name} --set coordinator.bind={bind} {words}");
            command.args(words.split_whitespace()).current_dir(stage.path(""));
            command.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
            // MPICH passes on the whole environment; Open MPI has a word for the job itself.
            command.envs(job.map(|job| ("LOCKSTEP_JOB", job))).output().unwrap()
        };
        let refused = |output: &Output, part: &str| {
            assert_eq!(output.status.code(), Some(2), "{mpirun}: {}", said(output));
            assert!(said(output).contains(part), "{mpirun}: {}", said(output));
        };
        refused(&start("none", "127.0.0.1:0", "--hostfile hosts", None), "several hosts");
        let by_file = format!(
            "--hostfile hosts --coordinator-file {}",
            stage.path("it.json").display()
        );
        if is_mpich(mpirun) {
            refused(&start("none", "0.0.0.0:0", &by_file, None), "LOCKSTEP_JOB");
        }
        for (name, bind, words, job) in [
            ("at-first", "0.0.0.0:7000", "--hostfile hosts", None),
            ("by-file", "0.0.0.0:0", by_file.as_str(), Some("of-today")),
        ] {
            let output = start(name, bind, words, job);
            assert_eq!(output.status.code(), Some(0), "{mpirun} {name}: {}", said(&output));
            assert!(
                hashes_of(&stage, name) == calm,
                "{mpirun} {name}: two hosts made other bits"
            );
        }
        no_trace(&stage);
    }
}

#[test]
fn nothing_is_left_on_either_host_when_the_launcher_is_killed() {
    if left_out() {
        return;
    }
    for mpirun in mpiruns() {
        let stage = Stage::new();
        let hosts = Hosts::new();
        let mut run = stage.start(launched(&stage, &hosts, mpirun, "orphan").env(SLOW.0, SLOW.1));
        crate::reach(&stage, &mut run, "orphan", 5);
        assert_eq!(crate::ranks(&stage).len(), 4);
        run.signal(Signal::KILL);
        run.wait();
        wait_until("every process of both hosts has ended", || stage.processes().is_empty());
    }
}

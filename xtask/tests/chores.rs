//! Whole chores of the real binary in a small tree of its own, where `cargo`, `lockstep` and a peer are stand-ins that
//! leave what the real ones leave.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Says what it was asked, fails where `FAIL` names its first word, and leaves a run's files.
const LOCKSTEP: &str = r#"#!/bin/sh
echo "$@" >> asked.txt
[ "$FAIL" = "$1" ] && { echo "lockstep: no" >&2; exit 1; }
case "$1" in
data)
    while [ "$1" != --out ]; do shift; done
    mkdir -p "$2" ;;
run)
    if [ -n "$WAIT" ]; then
        trap 'sleep 0.2; touch stopped; exit 3' INT
        touch started
        for _ in $(seq 600); do sleep 0.1; done
    fi
    for word in "$@"; do case "$word" in run.name=*) name=${word#run.name=} ;; esac; done
    mkdir -p "runs/$name/final"
    for step in 1 2 3 4 5; do
        echo "{\"step\":$step,\"tokens\":$((step * 2048)),\"loss\":$((9 - step)).5,\"step_ms\":500,\"phases\":{\"forward_ms\":200}}"
    done > "runs/$name/metrics.jsonl"
    echo '{"step":3,"validation_loss":5.5}' >> "runs/$name/metrics.jsonl"
    echo "{\"step\":5,\"validation_loss\":${LAST:-4.25}}" >> "runs/$name/metrics.jsonl"
    echo '{"peak_memory_mib":700,"tokens_per_second":4096.0,"training_seconds":2.5}' > "runs/$name/summary.json" ;;
generate)
    echo "ROMEO: I dream." ;;
esac
"#;

const PEER: &str = r#"#!/bin/sh
echo "$OMP_NUM_THREADS $*" >> asked.txt
echo '{"tokens_per_second": 2048.0, "step_ms": 1000.0, "forward_ms": 400.0, "peak_memory_mib": 1400}'
"#;

/// A program that is being written cannot be started, and for a moment a process that another test starts holds all
/// files open that this one writes: so one tree at a time.
static TURN: Mutex<()> = Mutex::new(());

struct Tree {
    _turn: MutexGuard<'static, ()>,
    folder: tempfile::TempDir,
}

impl Tree {
    fn new() -> Tree {
        let tree = Tree {
            _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner),
            folder: tempfile::tempdir().unwrap(),
        };
        for file in [
            "Cargo.toml",
            "xtask/Cargo.toml",
            "libtorch/lib/libtorch_cpu.so",
            "libtorch/include/torch.h",
        ] {
            tree.write(file, "");
        }
        tree.write("libtorch/build-version", "2.13.0+cpu\n");
        tree.program("cargo", "#!/bin/sh\n[ \"$FAIL\" = cargo ] && exit 101\nexit 0\n");
        tree.program("target/release/lockstep", LOCKSTEP);
        tree.program("python", PEER);
        tree.write("peer.py", "");
        fs::copy(env!("CARGO_BIN_EXE_xtask"), tree.path("target/release/xtask")).unwrap();
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn program(&self, name: &str, text: &str) {
        self.write(name, text);
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn command(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(self.path("target/release/xtask"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("CARGO", self.path("cargo"))
            .env("LIBTORCH", self.path("libtorch"))
            .envs(environment.iter().copied());
        command
    }

    fn xtask(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        self.command(arguments, environment).output().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_demo_shows_falling_losses_a_sample_and_what_to_type_next() {
    let tree = Tree::new();
    let output = tree.xtask(&["demo"], &[]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(said.contains("5.500 (step 3) → 4.250 (step 5)"), "{said}");
    assert!(said.contains("ROMEO: I dream.") && tree.read("demo/sample.txt") == "ROMEO: I dream.\n");
    assert!(tree.read("runs/shakespeare-1/loss.svg").contains("validation"));
    assert!(said.contains("target/release/lockstep status"), "{said}");

    let again = tree.xtask(&["demo"], &[]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert!(
        tree.path("runs/shakespeare-2/loss.svg").exists(),
        "the second demo is another run"
    );
}

#[test]
fn a_demo_stops_where_a_part_fails_and_names_it() {
    let parts = [
        ("cargo", "building"),
        ("data", "preparing the text"),
        ("run", "training"),
        ("generate", "a sample"),
    ];
    for (fail, named) in parts {
        let tree = Tree::new();
        let output = tree.xtask(&["demo"], &[("FAIL", fail)]);
        assert_eq!(output.status.code(), Some(1), "{fail}");
        let said = text(&output.stderr);
        let sentence = said.lines().last().unwrap();
        assert!(
            sentence.starts_with("xtask: ") && sentence.contains(named),
            "{fail}: {said}"
        );
        assert!(!tree.path("demo/sample.txt").exists());
    }
}

#[test]
fn a_demo_that_learns_nothing_fails() {
    let tree = Tree::new();
    let output = tree.xtask(&["demo"], &[("LAST", "8.75")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("has learnt nothing"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn an_interrupted_demo_waits_for_the_run_to_stop_in_order() {
    let tree = Tree::new();
    let demo = tree
        .command(&["demo"], &[("WAIT", "1")])
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(&tree.path("started"));
    // As a terminal does on Ctrl-C: to the whole group.
    let group = Pid::from_raw(i32::try_from(demo.id()).unwrap()).unwrap();
    kill_process_group(group, Signal::INT).unwrap();
    let output = demo.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(tree.path("stopped").exists(), "the demo ended before its run");
    assert!(
        text(&output.stderr).contains("training ended with exit status: 3"),
        "{}",
        text(&output.stderr)
    );
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} did not appear", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_benchmark_runs_turn_about_and_prints_ratios() {
    let tree = Tree::new();
    let peer = [
        "--peer",
        "peer.py",
        "--python",
        "./python",
        "--peer-arg",
        "--muon",
        "--peer-arg",
        "sharded",
    ];
    let output = tree.xtask(&[&["bench", "train", "--runs", "2"][..], &peer].concat(), &[]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    for (name, ratio) in [
        ("tokens/s", "2.00"),
        ("step, ms", "2.00"),
        ("forward, ms", "2.00"),
        ("memory", "2.00"),
    ] {
        let line = said
            .lines()
            .find(|line| line.contains(name) && line.starts_with("| "))
            .unwrap();
        assert!(line.trim_end_matches([' ', '|']).ends_with(ratio), "{line}");
    }
    let command = "1 -m torch.distributed.run --nproc_per_node 2 peer.py --muon sharded";
    let asked = tree.read("asked.txt");
    assert_eq!(asked.lines().filter(|line| *line == command).count(), 2, "{asked}");
    assert!(
        tree.path("target/bench/runs/bench-30m/metrics.jsonl").exists(),
        "runs lie below the target folder"
    );
}

#[test]
fn bad_input_is_one_sentence_and_exit_code_2() {
    let tree = Tree::new();
    let nowhere = tree.xtask(&["bench", "train", "--peer", "none.py", "--python", "./python"], &[]);
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(
        text(&nowhere.stderr).contains("none.py, which is not a file"),
        "{}",
        text(&nowhere.stderr)
    );

    tree.write("libtorch/build-version", "2.9.1\n");
    let other = tree.xtask(&["setup"], &[]);
    assert_eq!(other.status.code(), Some(2));
    assert!(text(&other.stderr).contains("2.9.1"), "{}", text(&other.stderr));

    let outside = Command::new(tree.path("target/release/xtask"))
        .arg("setup")
        .current_dir("/")
        .output()
        .unwrap();
    assert_eq!(outside.status.code(), Some(2));
    assert!(
        text(&outside.stderr).contains("change into it"),
        "{}",
        text(&outside.stderr)
    );
}

#[test]
fn a_failing_stage_fails_the_test_and_is_named() {
    let tree = Tree::new();
    let output = tree.xtask(&["test"], &[("FAIL", "cargo")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("the stage format failed"),
        "{}",
        text(&output.stderr)
    );
    assert!(
        text(&output.stdout).contains("repository  ok"),
        "{}",
        text(&output.stdout)
    );

    tree.write("data/Cargo.toml", "[dependencies]\nlibc = \"0.2\"\n");
    let broken = tree.xtask(&["test", "repository"], &[]);
    assert_eq!(broken.status.code(), Some(1));
    assert!(
        text(&broken.stdout).contains("data/Cargo.toml: libc"),
        "{}",
        text(&broken.stdout)
    );

    fs::remove_file(tree.path("data/Cargo.toml")).unwrap();
    let passed = tree.xtask(&["test", "format", "tests", "repository"], &[]);
    assert!(passed.status.success(), "{}", text(&passed.stderr));
    assert!(text(&passed.stdout).contains("all stages passed"));
}

/// The stand-ins leave the tree as a checkout of people would have it.
#[test]
fn setup_leaves_nothing_but_what_git_ignores() {
    let tree = Tree::new();
    assert!(tree.xtask(&["setup"], &[]).status.success());
    let left: Vec<_> = fs::read_dir(tree.path("third_party"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

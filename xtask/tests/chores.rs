//! Whole chores of the real binary in a small tree of its own, where `cargo`, `lockstep` and a peer are stand-ins that
//! leave what the real ones leave.
#![allow(clippy::unwrap_used)]

#[path = "chores/benches.rs"]
mod benches;
#[path = "chores/tree.rs"]
mod tree;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::tree::{Tree, text, wait_for};

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
        .command(&["demo"], &[("WAIT", ".")])
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(&tree.path("started-shakespeare-1"));
    // As a terminal does on Ctrl-C: to the whole group.
    let group = Pid::from_raw(i32::try_from(demo.id()).unwrap()).unwrap();
    kill_process_group(group, Signal::INT).unwrap();
    let output = demo.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        tree.path("stopped-shakespeare-1").exists(),
        "the demo ended before its run"
    );
    assert!(
        text(&output.stderr).contains("training ended with exit status: 3"),
        "{}",
        text(&output.stderr)
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
fn without_an_mpi_its_trainer_is_left_out_and_that_is_said() {
    let tree = Tree::new();
    let without = tree.xtask(&["test", "build"], &[("LOCKSTEP_WITHOUT_MPI", "1")]);
    let said = text(&without.stdout);
    assert!(without.status.success(), "{said}{}", text(&without.stderr));
    assert!(said.contains("lockstep-trainer-mpi is left out"), "{said}");
    assert!(said.contains("--exclude lockstep-trainer-mpi"), "{said}");
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

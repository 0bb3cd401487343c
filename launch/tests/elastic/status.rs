//! At every moment of a recovery `lockstep status` says what is waited for, on whom and since when.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;

use super::stage::{Running, Stage, send};
use super::{SETS, pid_of, reach};

/// What `lockstep status` says now: phase and reason; none while nobody answers.
fn status(stage: &Stage) -> Option<(String, String)> {
    let output = stage.lockstep("status");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = |name: &str| {
        let of = text.lines().find_map(|line| line.strip_prefix(name));
        of.map(|value| value.trim().to_owned())
    };
    Some((line("phase ")?, line("reason ")?))
}

/// Asks until the run has come out of what was done to it, and keeps one sentence of each phase.
fn watch(
    stage: &Stage,
    run: &mut Running,
    is_over: &dyn Fn(&BTreeMap<String, String>, &str) -> bool,
) -> BTreeMap<String, String> {
    let mut said = BTreeMap::new();
    for _ in 0..3000 {
        assert!(run.is_running(), "{}{}", run.out(), run.err());
        let Some((phase, reason)) = status(stage) else { continue };
        let is_training = phase == "training";
        let names_somebody = ["rank ", "member ", "trainer"].iter().any(|word| reason.contains(word));
        assert!(
            is_training || names_somebody && reason.contains("(for "),
            "{phase}: {reason}"
        );
        match is_training {
            true if reason.contains("; waiting for ") => drop(said.insert("stalled".to_owned(), reason.clone())),
            true => {}
            false => drop(said.insert(phase.clone(), reason.clone())),
        }
        if is_over(&said, &phase) {
            return said;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the run did not come out of it; it said {said:#?}");
}

#[test]
fn at_every_moment_of_a_recovery_it_is_said_what_is_waited_for_on_whom_and_since_when() {
    let stage = Stage::new();
    // Two ranks must be there, and nobody starts another one.
    let words = format!(
        "run run.toml {SETS} --set run.steps=100000 --set run.name=stalled -n 3 --json --set fault.lease_seconds=4 \
         --set fault.max_restarts=0 --set fault.min_ranks=2 --set collective.deadline_seconds=60"
    );
    let mut run = stage.start(&mut stage.command(&words));
    reach(&stage, &mut run, "stalled", 20);
    let stopped = pid_of(&run, 2);
    send(stopped, Signal::STOP);
    let said = watch(&stage, &mut run, &|said, phase| {
        said.contains_key("regrouping") && phase == "training"
    });
    let stalled = &said["stalled"];
    assert!(
        stalled.contains(&format!("waiting for rank 2 (pid {stopped}, "))
            && stalled.contains("nothing was heard of it for "),
        "{stalled}"
    );
    let regrouping = &said["regrouping"];
    assert!(
        regrouping.contains("to leave the collectives, because rank 2 (pid ") && regrouping.contains("does not go on"),
        "{regrouping}"
    );
    send(stopped, Signal::KILL);

    send(pid_of(&run, 1), Signal::KILL);
    let said = watch(&stage, &mut run, &|_, phase| phase == "waiting-for-members");
    let waiting = &said["waiting-for-members"];
    assert!(waiting.contains("1 of at least 2 are there"), "{waiting}");
    send(run.pid(), Signal::INT);
    assert_eq!(run.wait(), 3, "{}{}", run.out(), run.err());
    stage.nothing_runs();
}

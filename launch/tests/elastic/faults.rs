//! Losses that are no numbers and bits that change by themselves, in real processes: what is skipped is skipped alike on any
//! number of ranks, a run goes back alike, and what has changed is named, healed and part of no step.

use std::path::Path;

use serde_json::Value;

use super::stage::{Running, Stage, real_trainer, said};
use super::{SETS, calm, hashes, lines};

const BAD_SAMPLE: &str = "nan@7.3";

/// The ledger of a run proves that every sample was trained once, and every decision comes out again.
fn is_proven(stage: &Stage, name: &str) {
    for proof in ["audit", "replay"] {
        let output = stage.lockstep(&format!("ledger {proof} runs/{name}"));
        assert_eq!(output.status.code(), Some(0), "{proof}: {}", said(&output));
    }
}

fn drilled(stage: &Stage, name: &str, ranks: u32, policy: &str) -> std::process::Output {
    let words = format!(
        "run run.toml {SETS} --set run.steps=12 --set run.name={name} --set fault.on_not_finite={policy} -n {ranks}"
    );
    stage
        .command(&words)
        .env("LOCKSTEP_DRILL", BAD_SAMPLE)
        .output()
        .unwrap()
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_with_its_last_good_step() {
    let stage = Stage::new();
    for ranks in [1, 2, 3] {
        let name = format!("stopped-{ranks}");
        let output = drilled(&stage, &name, ranks, "stop");
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        let told = said(&output);
        assert!(
            told.contains("step 7: ") && told.contains("fault.on_not_finite"),
            "{told}"
        );
        assert_eq!(hashes(&stage, &name).len(), 6, "{told}");
    }
    stage.nothing_runs();
}

#[test]
fn a_loss_that_is_no_number_is_skipped_alike_on_any_number_of_ranks() {
    let stage = Stage::new();
    let mut first = None;
    for ranks in [1, 2, 3] {
        let name = format!("skipped-{ranks}");
        let output = drilled(&stage, &name, ranks, "skip");
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert!(said(&output).contains("skipped: step 7: "), "{}", said(&output));
        let steps = lines(&stage, &name);
        assert!(steps[6]["loss"].is_null(), "{}", steps[6]);
        assert!(steps[6]["skipped"].as_str().unwrap().contains("NaN"), "{}", steps[6]);
        assert!(steps[7].get("skipped").is_none(), "{}", steps[7]);
        let made = hashes(&stage, &name);
        assert_eq!(made[6], made[5], "nothing has changed");
        assert_ne!(made[7], made[6]);
        let summary: Value = serde_json::from_str(&stage.read(&format!("runs/{name}/summary.json"))).unwrap();
        assert_eq!(summary["skipped_steps"], 1);
        is_proven(&stage, &name);
        assert!(
            *first.get_or_insert_with(|| made.clone()) == made,
            "{ranks} ranks made other bits"
        );
    }
    stage.nothing_runs();
}

/// A run of thirty steps of 64 samples each with an order for every trainer, which goes back at least four steps.
fn rewinding(stage: &Stage, name: &str, ranks: u32, drill: &str, sets: &str) -> Running {
    let words = format!(
        "run run.toml {SETS} --set run.steps=30 --set run.name={name} --set fault.rewind_steps=4 {sets} -n {ranks} --json"
    );
    stage.start(stage.command(&words).env("LOCKSTEP_DRILL", drill))
}

/// The steps of a run in the order in which they were committed.
fn order(stage: &Stage, name: &str) -> Vec<u64> {
    let steps = lines(stage, name);
    steps.iter().map(|line| line["step"].as_u64().unwrap()).collect()
}

#[test]
fn a_bad_sample_makes_the_run_go_back_and_leave_it_out_with_the_same_bits_on_any_world_and_through_a_death() {
    let stage = Stage::new();
    let mut first: Option<Vec<String>> = None;
    let expected: Vec<u64> = (1..=12).chain(9..=30).collect();
    for (policy, drill) in [
        ("fault.on_not_finite=rewind", "nan-sample@800"),
        // Before 16 steps are accepted nothing is a spike.
        ("fault.on_spike=rewind", "spike-sample@1600*5000"),
    ] {
        let expected: Vec<u64> = match policy.contains("spike") {
            true => (1..=25).chain(22..=30).collect(),
            false => expected.clone(),
        };
        let sets = format!("--set {policy} --set fault.rewind_factor=0.5");
        for (ranks, kills) in [(1, false), (2, false), (3, false), (3, true)] {
            let name = format!(
                "{}-{ranks}-{kills}",
                if policy.contains("spike") { "spike" } else { "nan" }
            );
            let mut run = rewinding(&stage, &name, ranks, drill, &sets);
            if kills {
                // Whatever it is doing then: making steps again, meeting, or making new ones.
                super::reach(
                    &stage,
                    &mut run,
                    &name,
                    expected.iter().position(|step| *step == 30).unwrap() / 2,
                );
                super::send(super::pid_of(&run, 2), super::Signal::KILL);
            }
            assert_eq!(run.wait(), 0, "{}{}", run.out(), run.err());
            assert_eq!(order(&stage, &name), expected, "{name}");
            let made = hashes(&stage, &name);
            let first = first.get_or_insert_with(|| made.clone());
            assert!(*first == made, "{name} made other bits");
            let summary: Value = serde_json::from_str(&stage.read(&format!("runs/{name}/summary.json"))).unwrap();
            assert_eq!(
                (&summary["rewinds"], &summary["samples"]),
                (&1.into(), &(30 * 64).into())
            );
            assert!(run.out().contains("The run goes back to step"), "{}", run.out());
            is_proven(&stage, &name);
            let rate = |line: &Value| line["lr"].as_f64().unwrap();
            let steps = lines(&stage, &name);
            let last = expected.len() - 1;
            assert!(rate(&steps[last]) < 0.6 * rate(&steps[0]), "{}", steps[last]);
        }
        first = None;
    }
    stage.nothing_runs();
}

#[test]
fn a_run_that_comes_to_the_same_step_again_and_again_ends_after_its_last_rewind() {
    let stage = Stage::new();
    let sets = "--set fault.on_not_finite=rewind --set fault.rewind_skip=false --set fault.rewind_factor=0.5 --set fault.max_rewinds=2";
    let mut run = rewinding(&stage, "again", 2, "nan-sample@800", sets);
    assert_eq!(run.wait(), 1, "{}{}", run.out(), run.err());
    let expected: Vec<u64> = (1..=12).chain(9..=12).chain(9..=12).collect();
    assert_eq!(order(&stage, "again"), expected);
    let told = run.err();
    assert!(
        told.contains("has gone back 2 times, and fault.max_rewinds allows no more"),
        "{told}"
    );
    is_proven(&stage, "again");
    stage.nothing_runs();
}

/// A run of `ranks` in which the memory of rank 1 changes, in its first process only.
fn with_a_flip(stage: &Stage, name: &str, ranks: u32, flip: &str) -> Running {
    let marker = stage.path(&format!("{name}-has-begun"));
    let is_first = |path: &Path| format!("[ ! -e {0} ] && : > {0}", path.display());
    let trainer = stage.stand_in(&format!(
        "case \"$*\" in *trainer-1*) if {}; then export LOCKSTEP_DRILL={flip}; fi;; esac\nexec {} \"$@\"",
        is_first(&marker),
        real_trainer().display()
    ));
    let words = format!("run run.toml {SETS} --set run.steps=60 --set run.name={name} -n {ranks} --json");
    stage.start(stage.command(&words).env("LOCKSTEP_TRAINER", trainer))
}

#[test]
fn a_changed_bit_is_named_and_healed_and_no_hash_is_another_one() {
    let stage = Stage::new();
    let expected = calm(&stage, 60);
    for ranks in [2, 3] {
        for (array, in_words) in [
            ("working", "the working copy of "),
            ("master", "the master of "),
            ("momentum", "the momentum of "),
        ] {
            let name = format!("{array}-{ranks}");
            let mut run = with_a_flip(&stage, &name, ranks, &format!("flip-{array}@13:any"));
            assert_eq!(run.wait(), 0, "{}{}", run.out(), run.err());
            for rank in 0..ranks {
                let log = stage.read(&format!("runs/{name}/logs/rank-{rank}.log"));
                assert!(
                    log.contains(in_words) && log.contains(" in the memory of rank 1 is not what was written there"),
                    "{log}"
                );
            }
            let told = run.out();
            assert!(
                told.contains("exit code 4: a bit of its memory had changed; it is started again"),
                "{told}"
            );
            assert!(hashes(&stage, &name) == expected, "{name} made other bits");
            is_proven(&stage, &name);
            let worlds: Vec<u64> = lines(&stage, &name)
                .iter()
                .map(|line| line["ranks"].as_u64().unwrap())
                .collect();
            assert_eq!(worlds[11], u64::from(ranks), "{worlds:?}");
        }
    }
    stage.nothing_runs();
}

#[test]
fn a_device_thread_that_hangs_is_named_and_the_others_go_on_without_it() {
    let stage = Stage::new();
    let expected = calm(&stage, 60);
    let trainer = stage.stand_in(&format!(
        "case \"$*\" in *trainer-1*) export LOCKSTEP_DRILL=hang@13;; esac\nexec {} \"$@\"",
        real_trainer().display()
    ));
    let words = format!(
        "run run.toml {SETS} --set run.steps=60 --set run.name=hangs --set fault.lease_seconds=2 --set fault.max_restarts=0 -n 3 --json"
    );
    let mut run = stage.start(stage.command(&words).env("LOCKSTEP_TRAINER", trainer));
    assert_eq!(run.wait(), 0, "{}{}", run.out(), run.err());
    let told = run.out();
    assert!(
        told.contains("does not go on: its device thread has been in data of step 13 for 2."),
        "{told}"
    );
    assert!(hashes(&stage, "hangs") == expected, "other bits");
    is_proven(&stage, "hangs");
    let worlds: Vec<u64> = lines(&stage, "hangs")
        .iter()
        .map(|line| line["ranks"].as_u64().unwrap())
        .collect();
    assert_eq!((worlds[11], worlds[59]), (3, 2), "{worlds:?}");
    stage.nothing_runs();
}

#[test]
fn where_too_few_would_be_left_the_same_ranks_go_on() {
    let stage = Stage::new();
    let expected = calm(&stage, 30);
    let words = format!("run run.toml {SETS} --set run.steps=30 --set run.name=few -n 1 --json");
    let mut run = stage.start(stage.command(&words).env("LOCKSTEP_DRILL", "flip-momentum@8:any"));
    assert_eq!(run.wait(), 0, "{}{}", run.out(), run.err());
    let log = stage.read("runs/few/logs/rank-0.log");
    assert!(log.contains("the momentum of "), "{log}");
    assert!(!run.out().contains("it is started again"), "{}", run.out());
    assert!(hashes(&stage, "few") == expected, "the run made other bits");
    stage.nothing_runs();
}

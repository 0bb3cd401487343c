//! `check-gpu`: what the GPU path believes of NVIDIA's libraries, checked on a machine that has no GPU.
//!
//! Each [`Check`] has a name, the promise that it checks, and a function that says what it saw or why it failed. All of
//! [`CHECKS`] run, whatever fails on the way, and a table says what came of each. What they need of NVIDIA is fetched once
//! into `third_party`, as [`crate::setup`] fetches libtorch. To add a check, write it beside [`nccl`] and name it in
//! [`CHECKS`].

mod nccl;

use std::time::Instant;

use crate::failure::Failure;
use crate::workspace::Workspace;

/// One thing to look at.
struct Check {
    name: &'static str,
    promise: &'static str,
    /// What was seen, in a few words.
    run: fn(&Workspace) -> Result<String, Failure>,
}

const CHECKS: &[Check] = &[
    Check {
        name: "nccl files",
        promise: "NCCL and CUDA's headers come from the pinned wheels",
        run: nccl::files,
    },
    Check {
        name: "nccl layout",
        promise: "sizes, offsets, values and signatures of nccl.h are those that nccl-rs was written by",
        run: nccl::layout,
    },
    Check {
        name: "nccl library",
        promise: "the real libnccl loads, has every function, and refuses as nccl-rs expects",
        run: nccl::library,
    },
];

/// What came of a check.
struct Outcome {
    name: &'static str,
    promise: &'static str,
    seen: Result<String, Failure>,
    seconds: f64,
}

/// Runs every check and prints a table of them.
pub(crate) fn check_gpu(workspace: &Workspace) -> Result<(), Failure> {
    let mut outcomes = Vec::new();
    for check in CHECKS {
        println!("\n== {}: {}", check.name, check.promise);
        let started = Instant::now();
        let seen = (check.run)(workspace);
        outcomes.push(Outcome {
            name: check.name,
            promise: check.promise,
            seen,
            seconds: started.elapsed().as_secs_f64(),
        });
    }
    println!("\n{}", table(&outcomes));
    verdict(&outcomes)
}

fn table(outcomes: &[Outcome]) -> String {
    let rows = outcomes.iter().map(|outcome| {
        let (word, seen) = match &outcome.seen {
            Ok(seen) => ("ok", seen.clone()),
            Err(failure) => ("FAILED", failure.to_string()),
        };
        format!(
            "| {} | {} | {word} | {:.1} s | {seen} |\n",
            outcome.name, outcome.promise, outcome.seconds
        )
    });
    format!(
        "| check | promise | result | time | seen |\n| --- | --- | --- | --- | --- |\n{}",
        rows.collect::<String>()
    )
}

fn verdict(outcomes: &[Outcome]) -> Result<(), Failure> {
    let failed: Vec<&str> = outcomes
        .iter()
        .filter(|outcome| outcome.seen.is_err())
        .map(|outcome| outcome.name)
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::work(format!(
        "{} of {} checks failed: {}; the table above says why",
        failed.len(),
        outcomes.len(),
        failed.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &'static str, seen: Result<String, Failure>) -> Outcome {
        Outcome {
            name,
            promise: "a promise",
            seen,
            seconds: 1.25,
        }
    }

    #[test]
    fn every_check_is_in_the_table_and_a_failed_one_is_named() {
        let outcomes = [
            outcome("one", Ok("three things".into())),
            outcome("two", Err(Failure::work("it was not so"))),
        ];
        let table = table(&outcomes);
        assert!(
            table.contains("| one | a promise | ok | 1.2 s | three things |"),
            "{table}"
        );
        assert!(
            table.contains("| two | a promise | FAILED | 1.2 s | it was not so |"),
            "{table}"
        );
        let sentence = verdict(&outcomes).unwrap_err().to_string();
        assert!(sentence.contains("1 of 2 checks failed: two"), "{sentence}");
        assert!(verdict(&outcomes[..1]).is_ok());
    }

    #[test]
    fn names_of_checks_are_their_own() {
        for (at, check) in CHECKS.iter().enumerate() {
            assert!(
                CHECKS[..at].iter().all(|other| other.name != check.name),
                "{}",
                check.name
            );
        }
    }
}

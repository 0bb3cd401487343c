//! `check-gpu`: the GPU path, checked on a machine that has no GPU.
//!
//! Each [`Check`] has a name, the promise that it checks, and a function that says what it saw or why it failed. All of
//! [`CHECKS`] run, whatever fails on the way, and a table says what came of each. NVIDIA's libraries are fetched once, as
//! `setup --cuda` does ([`files`]); checks that do not need them run without, and their tests are among those of
//! `cargo xtask test` too. [`suites`] runs tests of packages and counts what passed. To add a check, write it beside
//! [`nccl`] and name it in [`CHECKS`].

mod binary;
mod files;
mod nccl;
mod programs;
mod suites;

use std::process::Command;
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
        name: "cuda-files",
        promise: "the CUDA build of libtorch and its libraries are the pinned ones, and each finds all that it loads",
        run: files::files,
    },
    Check {
        name: "nccl-layout",
        promise: "sizes, offsets, values and signatures of nccl.h are those that nccl-rs was written by",
        run: nccl::layout,
    },
    Check {
        name: "nccl-library",
        promise: "the real libnccl loads, has every function, and refuses as nccl-rs expects",
        run: nccl::library,
    },
    Check {
        name: "same-binary",
        promise: "the trainer links nothing of CUDA, opens all of it when told to, and says what the machine lacks",
        run: binary::same_binary,
    },
    Check {
        name: "kernels",
        promise: "our kernels compile for every architecture without contraction or flushing, and give the CPU's bits",
        run: programs::kernels,
    },
    Check {
        name: "recorder",
        promise: "every read and write of device memory in a step is ordered by an event",
        run: programs::recorder,
    },
    Check {
        name: "nccl-double",
        promise: "bindings and backend keep NCCL's protocol, and every world gives the bits of one process",
        run: programs::nccl_double,
    },
    Check {
        name: "settings-and-hooks",
        promise: "deterministic settings are read back, gradients land where they should, a step over tensors is the host's",
        run: programs::settings_and_hooks,
    },
];

/// The names of all checks.
pub(crate) fn names() -> Vec<&'static str> {
    CHECKS.iter().map(|check| check.name).collect()
}

/// A command of the C compiler, `CC` or `cc`, that takes warnings for errors.
fn c_compiler() -> Command {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut words = compiler.split_whitespace();
    let mut compile = Command::new(words.next().unwrap_or("cc"));
    compile.args(words).args(["-std=c11", "-Wall", "-Werror"]);
    compile
}

/// What came of a check.
struct Outcome {
    name: &'static str,
    promise: &'static str,
    seen: Result<String, Failure>,
    seconds: f64,
}

/// Runs the checks with these names, or every check if there is none, and prints a table of them.
pub(crate) fn check_gpu(workspace: &Workspace, only: &[String]) -> Result<(), Failure> {
    let mut outcomes = Vec::new();
    for check in CHECKS
        .iter()
        .filter(|check| only.is_empty() || only.iter().any(|name| name == check.name))
    {
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

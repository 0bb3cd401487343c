//! Tests of packages as parts of a check: they are run by name and counted, and none may have been left out.
//!
//! A test that has something to tell prints a line that begins with `seen: `; it becomes part of the table.

use std::ffi::OsString;

use crate::failure::Failure;
use crate::process;
use crate::workspace::Workspace;

/// Tests of one package.
pub(super) struct Suite<'a> {
    /// The package.
    pub(super) package: &'a str,
    /// Its files under `tests/`, by name; `lib` for the tests inside the crate.
    pub(super) targets: &'a [&'a str],
    /// What the tests' own program is told.
    pub(super) arguments: &'a [&'a str],
    /// What is set for them.
    pub(super) environment: &'a [(&'a str, OsString)],
}

/// What tests said.
#[derive(Debug, PartialEq)]
pub(super) struct Told {
    /// How many passed.
    pub(super) passed: u32,
    /// What they saw.
    pub(super) seen: Vec<String>,
}

impl Told {
    /// As a cell of the table.
    pub(super) fn summary(&self) -> String {
        let mut parts = vec![format!("{} tests passed", self.passed)];
        parts.extend(self.seen.iter().cloned());
        parts.join("; ")
    }

    /// Refuses where a test that says something did not: it has passed without looking.
    pub(super) fn must_have_seen(&self, words: &str) -> Result<(), Failure> {
        if self.seen.iter().any(|seen| seen.contains(words)) {
            return Ok(());
        }
        Err(Failure::work(format!(
            "the tests passed, but none of them saw {words:?}, so one has not looked: {}",
            self.seen.join("; ")
        )))
    }
}

/// Runs all suites, one after the other.
pub(super) fn run(workspace: &Workspace, suites: &[Suite<'_>]) -> Result<Told, Failure> {
    let mut all = Told {
        passed: 0,
        seen: Vec::new(),
    };
    for suite in suites {
        let mut cargo = workspace.cargo();
        cargo.args(["test", "--release", "--package", suite.package]);
        for target in suite.targets {
            match *target {
                "lib" => cargo.arg("--lib"),
                name => cargo.args(["--test", name]),
            };
        }
        cargo.args(["--", "--nocapture"]).args(suite.arguments);
        cargo.envs(suite.environment.iter().map(|(name, value)| (name, value)));
        let output = process::captured(&format!("the tests of {}", suite.package), &mut cargo)?;
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        if !output.status.success() {
            return Err(Failure::work(format!(
                "the tests of {} ended with {}; the lines above say why",
                suite.package, output.status
            )));
        }
        let told = read(suite, &text)?;
        all.passed += told.passed;
        all.seen.extend(told.seen);
    }
    Ok(all)
}

/// What the programs of a suite said, one after the other. Each must have had a test that passed.
fn read(suite: &Suite<'_>, text: &str) -> Result<Told, Failure> {
    let passed: Vec<u32> = text
        .lines()
        .filter_map(|line| line.strip_prefix("test result: ok. "))
        .filter_map(|rest| rest.split_once(" passed")?.0.parse().ok())
        .collect();
    if passed.len() != suite.targets.len() || passed.contains(&0) {
        return Err(Failure::work(format!(
            "{} of {} should have run tests, and these numbers of tests passed: {passed:?}; a test has been renamed or left out",
            suite.targets.join(", "),
            suite.package
        )));
    }
    Ok(Told {
        passed: passed.iter().sum(),
        seen: text
            .lines()
            .filter_map(|line| Some(line.split_once("seen: ")?.1.trim().to_owned()))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUITE: Suite<'_> = Suite {
        package: "a-package",
        targets: &["lib", "world"],
        arguments: &[],
        environment: &[],
    };

    #[test]
    fn tests_of_all_targets_are_counted_with_what_they_saw() {
        let text = "running 2 tests\ntest a ... ok\ntest result: ok. 2 passed; 0 failed\n\n\
                    running 3 tests\ntest b ... seen: three things\nok\ntest result: ok. 3 passed; 0 failed\n";
        let told = read(&SUITE, text).unwrap();
        assert_eq!(told.summary(), "5 tests passed; three things");
        assert!(told.must_have_seen("three").is_ok());
        let sentence = told.must_have_seen("four things").unwrap_err().to_string();
        assert!(sentence.contains("has not looked: three things"), "{sentence}");
    }

    #[test]
    fn a_target_without_a_test_that_ran_fails() {
        for text in [
            "test result: ok. 2 passed; 0 failed\ntest result: ok. 0 passed; 0 failed; 4 ignored\n",
            "test result: ok. 2 passed; 0 failed\n",
            "",
        ] {
            let sentence = read(&SUITE, text).unwrap_err().to_string();
            assert!(
                sentence.contains("a-package") && sentence.contains("world"),
                "{sentence}"
            );
        }
    }
}

//! What nccl-rs believes of NCCL: the header's layout, against the golden text of its test, and the real library.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use super::suites::{Suite, run};
use super::{c_compiler, files};
use crate::failure::{Failure, on_path};
use crate::process;
use crate::setup::cuda::NCCL_LIBRARY;
use crate::workspace::Workspace;

/// Compiles the program of nccl-rs's layout test with the real header, and compares what it prints with the golden text.
pub(super) fn layout(workspace: &Workspace) -> Result<String, Failure> {
    let folder = files::root(workspace)?;
    let sources = workspace.root.join("trainer/nccl-rs/tests/layout");
    let program = files::scratch(workspace)?.join("layout");
    let mut compile = c_compiler();
    for include in ["nvidia/nccl/include", "nvidia/cu13/include"] {
        compile.arg("-isystem").arg(folder.join(include));
    }
    compile.arg("-o").arg(&program).arg(sources.join("layout.c"));
    process::run("the C compiler", &mut compile)?;
    let printed = process::text_of("the layout program", &mut Command::new(&program))?;

    let golden_file = sources.join("layout-2.29.7.txt");
    let golden = fs::read_to_string(&golden_file).map_err(on_path("read", &golden_file))?;
    compare(&golden, &printed)
}

fn compare(golden: &str, printed: &str) -> Result<String, Failure> {
    if golden == printed {
        return Ok(format!("{} facts agree", golden.lines().count()));
    }
    let (expected, found): (BTreeSet<&str>, BTreeSet<&str>) = (golden.lines().collect(), printed.lines().collect());
    let missing = expected.difference(&found).map(|line| format!("-{line}"));
    let new = found.difference(&expected).map(|line| format!("+{line}"));
    let differences: Vec<String> = missing.chain(new).collect();
    Err(Failure::work(format!(
        "nccl.h differs from the golden text ({}); nccl-rs must follow it",
        if differences.is_empty() {
            "in the order of its lines".into()
        } else {
            differences.join(", ")
        }
    )))
}

/// Runs nccl-rs's test of the real library.
pub(super) fn library(workspace: &Workspace) -> Result<String, Failure> {
    let file = files::root(workspace)?.join(NCCL_LIBRARY);
    let suite = Suite {
        package: "nccl-rs",
        targets: &["real"],
        arguments: &["--ignored"],
        environment: &[("LOCKSTEP_NCCL_LIBRARY", file.into_os_string())],
    };
    Ok(run(workspace, &[suite])?.summary())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_has_changed_is_told_line_by_line() {
        let golden = "size a 8\nvalue b 1\n";
        assert_eq!(compare(golden, golden).unwrap(), "2 facts agree");
        let sentence = compare(golden, "size a 8\nvalue b 2\n").unwrap_err().to_string();
        assert!(sentence.contains("(-value b 1, +value b 2)"), "{sentence}");
        let sentence = compare(golden, "value b 1\nsize a 8\n").unwrap_err().to_string();
        assert!(sentence.contains("order"), "{sentence}");
    }
}

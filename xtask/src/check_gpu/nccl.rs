//! What nccl-rs believes of NCCL: the header's layout, against the golden text of its test, and the real library.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::failure::{Failure, on_path};
use crate::process;
use crate::setup::{Selection, Wheel, install};
use crate::workspace::Workspace;

const LIBRARY: &str = "nvidia/nccl/lib/libnccl.so.2";
const HEADER: &str = "nvidia/nccl/include/nccl.h";

/// NCCL, and the headers that its own needs: those of the CUDA runtime, of its compiler and of its C++ library.
const NCCL: Selection = Selection {
    chore: "check-gpu",
    title: "NCCL 2.29.7",
    folder: "check-gpu",
    wheels: &[
        Wheel {
            name: "nvidia-nccl-cu13",
            version: "2.29.7",
            platform: "manylinux_2_18_x86_64",
            sha256: "edd81538446786ec3b73972543e53bb43bcaf0bfc8ef76cb679fcc390ffe136d",
            bytes: 205_976_000,
        },
        Wheel {
            name: "nvidia-cuda-runtime",
            version: "13.0.96",
            platform: "manylinux2014_x86_64",
            sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
            bytes: 2_243_632,
        },
        Wheel {
            name: "nvidia-cuda-crt",
            version: "13.0.88",
            platform: "manylinux2014_x86_64",
            sha256: "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
            bytes: 134_086,
        },
        Wheel {
            name: "nvidia-cuda-cccl",
            version: "13.0.85",
            platform: "manylinux2014_x86_64",
            sha256: "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649",
            bytes: 3_120_526,
        },
    ],
    wanted: |name| name == LIBRARY || name.contains("/include/"),
    essential: &[LIBRARY, HEADER, "nvidia/cu13/include/cuda_runtime.h"],
    unpacked_bytes: 300 << 20,
    finish: |_| Ok(()),
};

fn folder(workspace: &Workspace) -> Result<PathBuf, Failure> {
    let third_party = workspace.third_party();
    fs::create_dir_all(&third_party).map_err(on_path("create", &third_party))?;
    install(&NCCL, &third_party)
}

/// Fetches what the others need.
pub(super) fn files(workspace: &Workspace) -> Result<String, Failure> {
    let folder = folder(workspace)?;
    let shown = folder
        .strip_prefix(&workspace.root)
        .unwrap_or(&folder)
        .display()
        .to_string();
    Ok(format!("{} in {shown}", NCCL.title))
}

/// Compiles the program of nccl-rs's layout test with the real header, and compares what it prints with the golden text.
pub(super) fn layout(workspace: &Workspace) -> Result<String, Failure> {
    let folder = folder(workspace)?;
    let sources = workspace.root.join("trainer/nccl-rs/tests/layout");
    let program = folder.join("layout");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut words = compiler.split_whitespace();
    let mut compile = Command::new(words.next().unwrap_or("cc"));
    compile.args(words).args(["-std=c11", "-Wall", "-Werror"]);
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
    let file = folder(workspace)?.join(LIBRARY);
    let mut cargo = workspace.cargo();
    cargo
        .args(["test", "--release", "--package", "nccl-rs", "--test", "real"])
        .args(["--", "--ignored", "--nocapture"])
        .env("LOCKSTEP_NCCL_LIBRARY", &file);
    let output = process::captured("the test of the real NCCL", &mut cargo)?;
    let told = String::from_utf8_lossy(&output.stdout);
    print!("{told}");
    match passed(&told) {
        Some(count) if output.status.success() && count > 0 => Ok(format!("{count} tests passed")),
        _ => Err(Failure::work(format!(
            "the test of the real NCCL ended with {} and did not pass; the lines above say why",
            output.status
        ))),
    }
}

/// How many tests passed, as cargo's last line says it.
fn passed(told: &str) -> Option<u32> {
    let line = told
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("test result: ok. "))?;
    line.split_once(" passed")?.0.parse().ok()
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

    #[test]
    fn the_number_of_tests_is_read_from_the_last_line() {
        let told = "running 7 tests\ntest a ... ok\n\ntest result: ok. 7 passed; 0 failed; 0 ignored\n";
        assert_eq!(passed(told), Some(7));
        assert_eq!(passed("test result: FAILED. 6 passed; 1 failed\n"), None);
        assert_eq!(passed(""), None);
    }

    #[test]
    fn only_the_library_and_headers_are_taken() {
        let wanted = NCCL.wanted;
        assert!(wanted(LIBRARY) && wanted(HEADER) && wanted("nvidia/cu13/include/crt/host_config.h"));
        assert!(!wanted("nvidia/cu13/lib/libcudart_static.a") && !wanted("nvidia_nccl_cu13-2.29.7.dist-info/RECORD"));
        assert!(NCCL.essential.iter().all(|name| wanted(name)));
    }
}

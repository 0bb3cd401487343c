//! `sanitize`: the tests of the communication on the host under the address and the thread sanitizer.
//!
//! Each has a target folder of its own, for the standard library is built along: without that the thread sanitizer does not
//! see what orders two threads, and cries wolf. rustix calls the kernel by itself where it may; here it has to go through
//! libc, where the sanitizers look on.

use std::path::PathBuf;
use std::process::Command;

use clap::ValueEnum;

use crate::failure::Failure;
use crate::process;
use crate::workspace::Workspace;

/// What is tested: memory that processes share, sockets, and the threads around them.
const PACKAGES: [&str; 2] = ["nccl-host", "lockstep-collective"];

/// A sanitizer of LLVM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sanitizer {
    /// Memory that is used after its end, or beyond it, or never freed.
    Address,
    /// Two threads at one place, one of them writing, in no order.
    Thread,
}

impl Sanitizer {
    fn name(self) -> &'static str {
        match self {
            Sanitizer::Address => "address",
            Sanitizer::Thread => "thread",
        }
    }

    /// The command that tests under it, for machines of this `host` triple.
    fn tests(self, workspace: &Workspace, host: &str) -> Command {
        let mut cargo = workspace.cargo();
        // Flags of the compiler that are not stable yet.
        cargo.env("RUSTC_BOOTSTRAP", "1");
        // The double of NCCL is a library that finds the sanitizer in the program that opens it.
        let flags = format!(
            "-Zsanitizer={} --cfg=rustix_use_libc -Clink-arg=-Wl,--export-dynamic",
            self.name()
        );
        cargo.env("RUSTFLAGS", flags);
        // Examples in documents are built without the flags.
        cargo.args(["test", "--lib", "--tests", "-Zbuild-std", "--release", "--no-fail-fast"]);
        cargo.args(["--target", host]);
        let folder = format!("sanitize-{}", self.name());
        cargo.arg("--target-dir").arg(workspace.programs.with_file_name(folder));
        cargo.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
        cargo
    }
}

/// Tests under `chosen`, or under both if none is chosen.
pub(crate) fn sanitize(workspace: &Workspace, chosen: &[Sanitizer]) -> Result<(), Failure> {
    let sources = rustc(&["--print", "sysroot"])?;
    let sources = PathBuf::from(sources.trim()).join("lib/rustlib/src/rust/library/Cargo.lock");
    if !sources.is_file() {
        return Err(Failure::input(format!(
            "the sanitizers need the source of Rust's standard library, and {} is not there; run `rustup component add \
             rust-src` and the same command again",
            sources.display()
        )));
    }
    let about = rustc(&["-vV"])?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or_else(|| Failure::work("rustc -vV does not say for which machine it is"))?;
    let all = if chosen.is_empty() {
        Sanitizer::value_variants()
    } else {
        chosen
    };
    for sanitizer in all {
        println!("\n== {}", sanitizer.name());
        let what = format!("testing under the {} sanitizer", sanitizer.name());
        process::run(&what, &mut sanitizer.tests(workspace, host))?;
    }
    println!("\nno sanitizer found anything");
    Ok(())
}

fn rustc(arguments: &[&str]) -> Result<String, Failure> {
    let program = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    process::text_of("asking the compiler", Command::new(program).args(arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sanitizer_has_its_flags_and_a_folder_of_its_own() {
        let workspace = Workspace {
            root: "/repository".into(),
            programs: "/target/release".into(),
        };
        for sanitizer in Sanitizer::value_variants() {
            let command = sanitizer.tests(&workspace, "x86_64-unknown-linux-gnu");
            let name = sanitizer.name();
            let flags = command.get_envs().find(|(key, _)| *key == "RUSTFLAGS");
            let flags = flags.unwrap().1.unwrap().to_str().unwrap();
            assert!(flags.starts_with(&format!("-Zsanitizer={name} ")), "{flags}");
            let arguments: Vec<_> = command.get_args().map(|word| word.to_str().unwrap()).collect();
            assert!(
                arguments.contains(&format!("/target/sanitize-{name}").as_str()),
                "{arguments:?}"
            );
            assert!(
                PACKAGES.iter().all(|package| arguments.contains(package)),
                "{arguments:?}"
            );
        }
    }
}

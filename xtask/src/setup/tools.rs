//! The programs that building and fetching need: a C++ compiler, and Python with pip. Where this process may, it
//! installs what is missing; else the exact command is in the sentence.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::failure::{Failure, on_path};
use crate::process;

/// What libtorch's headers and torch-sys need: C++20 and GNU OpenMP.
const PROBE: &str = "#include <concepts>\n#include <version>\n#include <omp.h>\n\
template <std::integral T> T twice(T x) { return x + x; }\nint main() { return twice(omp_get_max_threads()) < 0; }\n";

/// Compiles and links a small program with the compiler that the build scripts will use; `folder` is for its files.
pub(crate) fn check_compiler(folder: &Path) -> Result<(), Failure> {
    if compiles(folder)? {
        return Ok(());
    }
    // A compiler that the user has named is the user's to mend.
    if std::env::var_os("CXX").is_none() && may_install() {
        install(&["build-essential"])?;
        if compiles(folder)? {
            return Ok(());
        }
    }
    Err(Failure::input(format!(
        "the C++ compiler `{}` is missing or does not compile C++20 with OpenMP, and g++ 11 or newer is needed; run `{}` (or set CXX to such a compiler) and then `cargo xtask setup` again",
        compiler(),
        install_command(&["build-essential"])
    )))
}

fn compiler() -> String {
    std::env::var("CXX")
        .ok()
        .filter(|name| !name.trim().is_empty())
        .unwrap_or_else(|| "c++".into())
}

fn compiles(folder: &Path) -> Result<bool, Failure> {
    let source = folder.join(".probe.cpp");
    let program = folder.join(".probe");
    std::fs::write(&source, PROBE).map_err(on_path("write", &source))?;
    let name = compiler();
    let mut words = name.split_whitespace();
    let status = Command::new(words.next().unwrap_or("c++"))
        .args(words)
        .args(["-std=c++20", "-o"])
        .arg(&program)
        .arg(&source)
        .arg("-lgomp")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    for path in [&source, &program] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(on_path("remove", path)(error)),
            _ => {}
        }
    }
    Ok(status.is_ok_and(|status| status.success()))
}

/// Makes sure of `python3 -m pip`.
pub(crate) fn check_pip(chore: &str) -> Result<(), Failure> {
    if has_pip() {
        return Ok(());
    }
    if may_install() {
        install(&["python3-pip"])?;
        if has_pip() {
            return Ok(());
        }
    }
    Err(Failure::input(format!(
        "`python3 -m pip` is needed to fetch what `cargo xtask {chore}` needs and does not work here; run `{}` and then the same command again (a LIBTORCH of your own spares you the setup's)",
        install_command(&["python3-pip"])
    )))
}

fn has_pip() -> bool {
    Command::new("python3")
        .args(["-m", "pip", "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn has_apt() -> bool {
    Path::new("/usr/bin/apt-get").exists()
}

/// Whether system packages can be installed without asking anybody.
pub(crate) fn may_install() -> bool {
    rustix::process::geteuid().is_root() && has_apt()
}

/// Installs system packages; only where [`may_install`] says so.
pub(crate) fn install(packages: &[&str]) -> Result<(), Failure> {
    let names = packages.join(" ");
    println!("setup: installing the system packages {names}");
    let apt = |what: &str, arguments: &[&str]| {
        process::run(
            what,
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(arguments),
        )
    };
    let arguments = ["-qq", "install", "--yes", "--no-install-recommends"];
    let done = apt("apt-get update", &["-qq", "update"])
        .and_then(|()| apt("apt-get install", &[arguments.as_slice(), packages].concat()));
    done.map_err(|failure| {
        Failure::work(format!(
            "the system packages {names} could not be installed ({failure}); install them by hand with `{}` and run `cargo xtask setup` again",
            install_command(packages)
        ))
    })
}

/// What a person types to install them.
pub(crate) fn install_command(packages: &[&str]) -> String {
    if has_apt() {
        return format!("sudo apt-get install {}", packages.join(" "));
    }
    let elsewhere = packages.iter().map(|package| match *package {
        "build-essential" => "gcc-c++",
        "openmpi-bin" => "openmpi",
        "libopenmpi-dev" => "openmpi-devel",
        "libclang-dev" => "clang-devel",
        "chromium-headless-shell" => "chromium-headless",
        "slurm-wlm" => "slurm slurm-slurmctld slurm-slurmd",
        package => package,
    });
    format!("sudo dnf install {}", elsewhere.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_of_this_machine_passes_and_the_probe_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(compiles(folder.path()).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

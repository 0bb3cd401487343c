//! An MPI with what building against it needs. It is optional: where there is none, `lockstep-trainer-mpi` is left out, and
//! that is said.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::setup::tools;

/// The package of the workspace that needs an MPI.
const MEMBER: &str = "lockstep-trainer-mpi";
/// Set to leave MPI out even where it is; tests look at it too.
pub(crate) const WITHOUT: &str = "LOCKSTEP_WITHOUT_MPI";
/// What Debian and Ubuntu call mpirun, mpi.h with mpicc, and the library that reads mpi.h for Rust.
const PACKAGES: [&str; 3] = ["openmpi-bin", "libopenmpi-dev", "libclang-dev"];

/// Installs an MPI where that is allowed and none is there. Says what to install where it is not.
pub(crate) fn prepare() {
    if is_left_out() {
        return;
    }
    let Some(missing) = missing() else {
        return;
    };
    if tools::may_install() {
        match tools::install(&PACKAGES) {
            Ok(()) if self::missing().is_none() => return,
            Ok(()) => {}
            Err(failure) => println!("setup: {failure}"),
        }
    }
    println!(
        "setup: {missing} is not there, so {MEMBER} is left out; for runs over MPI, run `{}` and then `cargo xtask setup` again",
        tools::install_command(&PACKAGES)
    );
}

/// What a command of cargo is told to take: every member of the workspace that can be built here. Says what is left out.
pub(crate) fn members() -> Vec<&'static str> {
    if is_there() {
        return vec!["--workspace"];
    }
    println!("{MEMBER} is left out: there is no MPI here (`cargo xtask setup` says how to get one)");
    vec!["--workspace", "--exclude", MEMBER]
}

/// Whether `lockstep-trainer-mpi` can be built and run here.
pub(crate) fn is_there() -> bool {
    !is_left_out() && missing().is_none()
}

fn is_left_out() -> bool {
    std::env::var_os(WITHOUT).is_some()
}

/// What is missing.
fn missing() -> Option<&'static str> {
    // The compiler is found as the bindings' build script finds it.
    let compiler = std::env::var("MPICC").unwrap_or_else(|_| "mpicc".to_owned());
    if !answers(&compiler, "-show") {
        Some("mpicc")
    } else if !answers("mpirun", "--version") {
        Some("mpirun")
    } else if !has_libclang() {
        Some("libclang")
    } else {
        None
    }
}

fn answers(program: &str, argument: &str) -> bool {
    Command::new(program)
        .arg(argument)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether the bindings' build script will find libclang: at `LIBCLANG_PATH`, or where systems put it.
fn has_libclang() -> bool {
    let mut folders: Vec<PathBuf> = std::env::var_os("LIBCLANG_PATH")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    folders.extend(["/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/lib/x86_64-linux-gnu"].map(PathBuf::from));
    folders.extend(
        entries(Path::new("/usr/lib"))
            .filter(|path| name(path).starts_with("llvm"))
            .map(|path| path.join("lib")),
    );
    folders
        .iter()
        .flat_map(|folder| entries(folder))
        .any(|path| name(&path).starts_with("libclang.so") || name(&path).starts_with("libclang-"))
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

//! The CUDA libraries that other checks use: where they are, and that each finds all that it loads.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Failure, on_path};
use crate::process;
use crate::setup::cuda::{CUDA, LIBRARIES};
use crate::setup::{in_place, install};
use crate::workspace::Workspace;

/// The machine's driver, which is never shipped with libtorch. Without a GPU nothing else may be missing.
const DRIVER: &str = "libcuda.so.1";

/// Fetches what is not there, and looks for libraries that miss another one.
pub(super) fn files(workspace: &Workspace) -> Result<String, Failure> {
    let third_party = workspace.third_party();
    fs::create_dir_all(&third_party).map_err(on_path("create", &third_party))?;
    let root = install(&CUDA, &third_party)?;
    let mut bytes = 0;
    let mut missing = Vec::new();
    for library in LIBRARIES {
        let path = root.join(library);
        bytes += fs::metadata(&path).map_err(on_path("read", &path))?.len();
        missing.extend(missing_of(&path)?.into_iter().map(|name| format!("{library}: {name}")));
    }
    if !missing.is_empty() {
        return Err(Failure::work(format!(
            "libraries do not find what they load ({}); the list in xtask/src/setup/cuda.rs must name it",
            missing.join(", ")
        )));
    }
    let shown = root.strip_prefix(&workspace.root).unwrap_or(&root).display();
    Ok(format!(
        "{} libraries, {} MiB, in {shown}",
        LIBRARIES.len(),
        bytes >> 20
    ))
}

/// What the dynamic linker does not find for a library, the driver left out.
fn missing_of(library: &Path) -> Result<Vec<String>, Failure> {
    let mut ldd = Command::new("ldd");
    // Its own run paths must do.
    ldd.arg(library).env_remove("LD_LIBRARY_PATH");
    Ok(missing_in(&process::text_of("ldd", &mut ldd)?))
}

/// The names that ldd's text has as not found.
fn missing_in(told: &str) -> Vec<String> {
    told.lines()
        .filter_map(|line| line.trim().strip_suffix(" => not found"))
        .filter(|name| *name != DRIVER)
        .map(str::to_owned)
        .collect()
}

/// The folder with `torch/lib` and `nvidia/*/lib`.
pub(super) fn root(workspace: &Workspace) -> Result<PathBuf, Failure> {
    in_place(&CUDA, &workspace.third_party()).ok_or_else(|| {
        Failure::input(
            "the CUDA libraries are not in third_party/cuda; `cargo xtask setup --cuda` or the check cuda-files fetches them",
        )
    })
}

/// A folder for what checks compile.
pub(super) fn scratch(workspace: &Workspace) -> Result<PathBuf, Failure> {
    let folder = workspace.third_party().join("check-gpu");
    fs::create_dir_all(&folder).map_err(on_path("create", &folder))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_library_does_not_find_is_named_and_the_driver_may_be_missing() {
        let told = "\tlibcuda.so.1 => not found\n\tlibcudart.so.13 => not found\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n";
        assert_eq!(missing_in(told), ["libcudart.so.13"]);
        assert_eq!(missing_in("\tstatically linked\n"), Vec::<String>::new());
    }

    #[test]
    fn a_check_that_needs_the_libraries_says_how_to_get_them() {
        let tree = tempfile::tempdir().unwrap();
        let workspace = Workspace {
            root: tree.path().to_path_buf(),
            programs: tree.path().to_path_buf(),
        };
        let sentence = root(&workspace).unwrap_err().to_string();
        assert!(sentence.contains("cargo xtask setup --cuda"), "{sentence}");
    }
}

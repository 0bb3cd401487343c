//! One binary for CPU and GPU: what it links, what it opens, and what it says on a machine that cannot compute on a GPU.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::ffi::OsString;
use std::fs;

use super::suites::{Suite, run};
use super::{c_compiler, files};
use crate::failure::{Failure, on_path};
use crate::process;
use crate::workspace::Workspace;

/// Runs the trainer's tests of its own binary with the real libraries, without a driver and with one that is too old.
pub(super) fn same_binary(workspace: &Workspace) -> Result<String, Failure> {
    let libraries: OsString = files::root(workspace)?.join("torch/lib").into();
    let old_driver: OsString = old_driver(workspace)?;
    let trainer = Suite {
        package: "lockstep-trainer",
        targets: &["linking", "missing_gpu"],
        arguments: &["--include-ignored"],
        environment: &[
            ("LOCKSTEP_CUDA_LIBTORCH", libraries.clone()),
            ("LOCKSTEP_OLD_DRIVER", old_driver),
        ],
    };
    // A process of its own, whose first call of libtorch is the right one.
    let loading = Suite {
        package: "lockstep-autograd",
        targets: &["loading"],
        arguments: &[],
        environment: &[("LD_LIBRARY_PATH", libraries)],
    };
    let told = run(workspace, &[trainer, loading])?;
    for words in [
        "22907",
        "no NVIDIA driver",
        "found version 12080",
        "CUDA libraries are loaded",
    ] {
        told.must_have_seen(words)?;
    }
    Ok(told.summary())
}

/// Compiles the driver that is too old, and gives its folder.
fn old_driver(workspace: &Workspace) -> Result<OsString, Failure> {
    let folder = files::scratch(workspace)?.join("old-driver");
    fs::create_dir_all(&folder).map_err(on_path("create", &folder))?;
    let library = folder.join(format!("{DLL_PREFIX}cuda{DLL_SUFFIX}.1"));
    let source = workspace.root.join("xtask/src/check_gpu/old_driver.c");
    let mut compile = c_compiler();
    compile.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source);
    process::run("the C compiler", &mut compile)?;
    Ok(folder.into())
}

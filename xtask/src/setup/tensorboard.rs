//! The package `tensorboard`, for the test in which its own reader opens the files of a run. It is optional: where it cannot be
//! fetched, that test is left out, and says so.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;

/// Names the folder for the test.
pub(crate) const PACKAGES: &str = "LOCKSTEP_TENSORBOARD";
const PACKAGE: &str = "tensorboard==2.20.0";

/// The folder with the package, fetched if it is not there.
pub(crate) fn prepare(third_party: &Path) -> Option<PathBuf> {
    let folder = third_party.join(PACKAGE.replace("==", "-"));
    if folder.is_dir() {
        return Some(folder);
    }
    let unfinished = third_party.join(".tensorboard.partial");
    let fetched = process::run(
        "`pip install tensorboard`",
        Command::new("python3")
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--target",
            ])
            .args([unfinished.as_os_str(), PACKAGE.as_ref()]),
    );
    if let Err(failure) = fetched {
        println!("the test of TensorBoard's files is left out: {failure}");
        return None;
    }
    std::fs::rename(&unfinished, &folder).ok()?;
    Some(folder)
}

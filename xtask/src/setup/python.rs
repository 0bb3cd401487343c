//! Packages of Python, for the tests in which TensorBoard's own reader opens the files of a run, the program of
//! `docs/steering.md` steers one, and the objects of Kubernetes are held against its schemas. They are optional: where they
//! cannot be fetched, these tests are left out, and say so.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;

/// Names the folder for the tests.
pub(crate) const PACKAGES: &str = "LOCKSTEP_PYTHON_PACKAGES";
const WANTED: [&str; 3] = [
    "tensorboard==2.20.0",
    "grpcio-tools==1.76.0",
    "kubernetes-validate==1.34.1",
];

/// The folder with the packages, fetched if it is not there.
pub(crate) fn prepare(third_party: &Path) -> Option<PathBuf> {
    let folder = third_party.join(format!("python-{}", WANTED.join("-").replace("==", "-")));
    if folder.is_dir() {
        return Some(folder);
    }
    let unfinished = third_party.join(".python.partial");
    let fetched = process::run(
        "`pip install` of the packages of Python",
        Command::new("python3")
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--target",
            ])
            .arg(&unfinished)
            .args(WANTED),
    );
    if let Err(failure) = fetched {
        println!("the tests in Python are left out: {failure}");
        return None;
    }
    std::fs::rename(&unfinished, &folder).ok()?;
    Some(folder)
}

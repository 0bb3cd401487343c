//! `lockstep page`: the page of a run as one file.

use std::path::{Path, PathBuf};

use lockstep_coordinator::ExportError;

use crate::ending::Ending;
use crate::ledger::folder_of;

/// Writes the page of the run in `run_dir` into a file.
pub(crate) fn page(run_dir: &Path, out: Option<&Path>) -> Result<(), Ending> {
    let folder = folder_of(run_dir);
    let out = match out {
        Some(out) => out.to_owned(),
        None => {
            let name = folder.file_name().unwrap_or("run".as_ref());
            PathBuf::from(format!("{}.html", name.display()))
        }
    };
    lockstep_coordinator::export(&folder, &out).map_err(|error| match error {
        ExportError::Ledger(_) => Ending::bad_input(error),
        ExportError::Write { .. } => Ending::failed(error),
    })?;
    println!("{}", out.display());
    Ok(())
}

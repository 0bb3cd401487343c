//! A libtorch that the user has chosen with `LIBTORCH`: used as it is, once it is known to fit.

use std::fs;
use std::path::Path;

use super::wheels::TORCH;
use crate::failure::Failure;

/// Refuses a folder that is no libtorch, or one of another version.
pub(crate) fn check(libtorch: &Path) -> Result<(), Failure> {
    for part in ["include", "lib/libtorch_cpu.so"] {
        if !libtorch.join(part).exists() {
            return Err(Failure::input(format!(
                "LIBTORCH is set to {}, which has no {part}; set it to a folder of libtorch {TORCH}, or unset it to let `cargo xtask setup` fetch one",
                libtorch.display()
            )));
        }
    }
    let found = version(libtorch).ok_or_else(|| {
        Failure::input(format!(
            "LIBTORCH is set to {}, which tells its version neither in build-version nor in its headers; use libtorch {TORCH}, or unset LIBTORCH to let `cargo xtask setup` fetch it",
            libtorch.display()
        ))
    })?;
    if found == TORCH {
        return Ok(());
    }
    Err(Failure::input(format!(
        "LIBTORCH is set to {}, which is libtorch {found}, and Lockstep needs {TORCH}; install that one, or unset LIBTORCH to let `cargo xtask setup` fetch it",
        libtorch.display()
    )))
}

/// The version without the part that names the build, such as `+cpu`.
fn version(libtorch: &Path) -> Option<String> {
    if let Ok(text) = fs::read_to_string(libtorch.join("build-version")) {
        return Some(text.trim().split('+').next()?.to_owned());
    }
    [
        "include/torch/headeronly/version.h",
        "include/torch/csrc/api/include/torch/version.h",
    ]
    .iter()
    .filter_map(|header| fs::read_to_string(libtorch.join(header)).ok())
    .find_map(|text| version_in_header(&text))
}

fn version_in_header(text: &str) -> Option<String> {
    let number = |part: &str| {
        let (_, rest) = text.split_once(&format!("#define TORCH_VERSION_{part} "))?;
        rest.split_whitespace().next().map(str::to_owned)
    };
    Some(format!(
        "{}.{}.{}",
        number("MAJOR")?,
        number("MINOR")?,
        number("PATCH")?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("include/torch/headeronly")).unwrap();
        fs::create_dir_all(folder.path().join("lib")).unwrap();
        fs::write(folder.path().join("lib/libtorch_cpu.so"), "").unwrap();
        folder
    }

    #[test]
    fn the_version_is_read_from_either_place() {
        let folder = folder();
        let refused = check(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("tells its version neither"), "{refused}");
        let header = folder.path().join("include/torch/headeronly/version.h");
        let text = "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 13\n#define TORCH_VERSION_PATCH 0\n";
        fs::write(&header, text).unwrap();
        check(folder.path()).unwrap();
        fs::write(folder.path().join("build-version"), "2.13.0+cpu\n").unwrap();
        check(folder.path()).unwrap();
    }

    #[test]
    fn another_version_is_refused_with_both_numbers() {
        let folder = folder();
        fs::write(folder.path().join("build-version"), "2.9.1+cu130\n").unwrap();
        let refused = check(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("2.9.1") && refused.contains(TORCH), "{refused}");
    }

    #[test]
    fn a_folder_that_is_no_libtorch_is_refused_naming_what_is_missing() {
        let folder = folder();
        fs::remove_file(folder.path().join("lib/libtorch_cpu.so")).unwrap();
        let refused = check(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("lib/libtorch_cpu.so"), "{refused}");
    }
}

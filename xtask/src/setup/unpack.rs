//! Taking out of a wheel what a chore needs; the rest of libtorch's wheel is three times as large.

use std::fs::{self, File};
use std::io::{self, BufReader, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zip::ZipArchive;

use super::wheels::Selection;
use crate::failure::{Failure, on_path};

/// What the selection takes, and the licences that come with it.
fn wanted(selection: &Selection, name: &str) -> bool {
    let licence = name
        .split_once(".dist-info/")
        .is_some_and(|(_, rest)| rest.to_ascii_lowercase().contains("licen"));
    licence || (selection.wanted)(name)
}

/// Unpacks the wanted files of `wheel` into `folder`, with a line of progress.
pub(crate) fn unpack(selection: &Selection, wheel: &Path, folder: &Path) -> Result<(), Failure> {
    let broken = |error: zip::result::ZipError| match error {
        zip::result::ZipError::Io(error) => on_path("unpack", wheel)(error),
        other => Failure::work(format!(
            "{} cannot be unpacked: {other}; remove it and run `cargo xtask {}` again",
            wheel.display(),
            selection.chore
        )),
    };
    let file = File::open(wheel).map_err(on_path("read", wheel))?;
    let mut archive = ZipArchive::new(BufReader::with_capacity(1 << 20, file)).map_err(broken)?;
    let names: Vec<String> = archive
        .file_names()
        .filter(|name| wanted(selection, name))
        .map(str::to_owned)
        .collect();
    let shown = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    println!("{}: unpacking {} files of {shown}", selection.chore, names.len());
    let live = io::stdout().is_terminal();
    for (done, name) in names.iter().enumerate() {
        let mut entry = archive.by_name(name).map_err(broken)?;
        let Some(relative) = entry.enclosed_name().filter(|_| entry.is_file()) else {
            continue;
        };
        let path = folder.join(relative);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(on_path("create", parent))?;
        }
        let mut out = File::create(&path).map_err(on_path("create", &path))?;
        io::copy(&mut entry, &mut out).map_err(on_path("write", &path))?;
        if let Some(mode) = entry.unix_mode() {
            out.set_permissions(fs::Permissions::from_mode(mode & 0o777))
                .map_err(on_path("write", &path))?;
        }
        if live && (done % 64 == 0 || done + 1 == names.len()) {
            print!("\r  {} %", (done + 1) * 100 / names.len());
            io::stdout()
                .flush()
                .map_err(|error| Failure::work(format!("the terminal cannot be written: {error}")))?;
        }
    }
    if live {
        println!();
    }
    Ok(())
}

/// torch-sys links `libtorch.so`; the wheel's own would pull in the CUDA libraries, which a CPU build does not have.
pub(crate) fn link_libtorch(folder: &Path) -> Result<(), Failure> {
    let link = folder.join("torch/lib/libtorch.so");
    std::os::unix::fs::symlink("libtorch_cpu.so", &link).map_err(on_path("create", &link))
}

#[cfg(test)]
mod tests {
    use zip::write::SimpleFileOptions;

    use super::super::wheels::LIBTORCH;
    use super::*;

    #[test]
    fn only_what_a_build_needs_is_unpacked_and_nothing_leaves_the_folder() {
        let place = tempfile::tempdir().unwrap();
        let wheel = place.path().join("torch-2.13.0-x.whl");
        let mut archive = zip::ZipWriter::new(File::create(&wheel).unwrap());
        let inside = [
            "torch/include/ATen/ATen.h",
            "torch/lib/libc10.so",
            "torch-2.13.0.dist-info/licenses/LICENSE",
        ];
        let outside = [
            "torch/lib/libtorch_cuda.so",
            "torch/__init__.py",
            "torch/include/../../../escaped.h",
        ];
        for name in inside.iter().chain(&outside) {
            archive
                .start_file(*name, SimpleFileOptions::default().unix_permissions(0o755))
                .unwrap();
            archive.write_all(name.as_bytes()).unwrap();
        }
        archive.finish().unwrap();

        let folder = place.path().join("a/b/partial");
        unpack(&LIBTORCH, &wheel, &folder).unwrap();
        for name in inside {
            assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), name);
        }
        assert_eq!(
            fs::metadata(folder.join(inside[1])).unwrap().permissions().mode() & 0o777,
            0o755
        );
        for name in outside {
            assert!(!folder.join(name).exists(), "{name}");
        }
        assert!(!place.path().join("a/escaped.h").exists());
    }

    #[test]
    fn a_truncated_wheel_is_one_sentence() {
        let place = tempfile::tempdir().unwrap();
        let wheel = place.path().join("torch-2.13.0-x.whl");
        fs::write(&wheel, b"PK\x03\x04 and then nothing").unwrap();
        let sentence = unpack(&LIBTORCH, &wheel, &place.path().join("partial"))
            .unwrap_err()
            .to_string();
        assert!(
            sentence.contains("cannot be unpacked") && sentence.contains("cargo xtask setup"),
            "{sentence}"
        );
    }
}

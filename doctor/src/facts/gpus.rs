//! NVIDIA's devices and driver, by the files that they leave: nothing of CUDA is opened.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::facts::libraries::{Search, found_version};
use crate::facts::{Places, names_in, text_of};

/// NVIDIA's own helper, which belongs to root and is started by libcuda.
const HELPER: &str = "/usr/bin/nvidia-modprobe";

/// GPUs and what is needed to use them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gpus {
    /// Devices that the driver has.
    pub devices: u32,
    /// Their files in `/dev`.
    pub nodes: u32,
    /// Those that this machine, or container, may use, and `CUDA_VISIBLE_DEVICES` leaves.
    pub visible: u32,
    /// Whether the driver's helper is there, which loads the module and makes the files when CUDA first asks for them.
    pub made_when_asked: bool,
    /// The version of the kernel module.
    pub driver: Option<String>,
    /// Where that was read.
    pub driver_file: PathBuf,
    /// The driver's library and its version.
    pub libcuda: Option<(PathBuf, Option<String>)>,
    /// libtorch's CUDA library.
    pub libtorch_cuda: Option<PathBuf>,
    /// NCCL and its version.
    pub nccl: Option<(PathBuf, Option<String>)>,
    /// Installations of CUDA that `LD_LIBRARY_PATH` leads to.
    pub installations: Vec<PathBuf>,
    /// Variables that decide bits on a GPU and are not as they must be: what is there, and what must be.
    pub environment: Vec<(String, Option<String>, Option<String>)>,
}

impl Gpus {
    /// Looks. `folders`: where the trainer's libraries lie.
    pub fn look(
        places: &Places,
        search: &Search,
        folders: &[PathBuf],
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Gpus {
        let driver_file = places.proc.join("driver/nvidia/version");
        let (devices, nodes) = counts(places);
        let near: Vec<PathBuf> = folders
            .iter()
            .flat_map(|folder| [folder.clone(), folder.join("../../nvidia/nccl/lib")])
            .collect();
        let find = |name: &str| search.find_near(name, &near);
        let with_version = |path: PathBuf| {
            let version = found_version(&path);
            (path, version)
        };
        let wrong = lockstep_config::GPU_ENVIRONMENT.iter().filter_map(|(name, value)| {
            let (is, must) = (environment(name), value.map(str::to_owned));
            (is != must).then(|| ((*name).to_owned(), is, must))
        });
        Gpus {
            devices,
            nodes,
            visible: usable(places, environment),
            made_when_asked: Path::new(HELPER).is_file(),
            driver: text_of(&driver_file).and_then(|text| driver_version(&text)),
            driver_file,
            libcuda: find("libcuda.so.1").map(with_version),
            libtorch_cuda: find("libtorch_cuda.so"),
            nccl: find("libnccl.so.2").map(with_version),
            installations: installations(&search.first),
            environment: wrong.collect(),
        }
    }

    /// Whether this machine lets its processes have GPUs: a container beside some sees the driver, and no files.
    pub fn are_there(&self) -> bool {
        self.nodes > 0
    }
}

/// GPUs that the driver has, and their files.
fn counts(places: &Places) -> (u32, u32) {
    let is_node = |name: &String| {
        let number = name.strip_prefix("nvidia");
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let nodes = names_in(&places.dev).iter().filter(|name| is_node(name)).count();
    (
        count(names_in(&places.proc.join("driver/nvidia/gpus")).len()),
        count(nodes),
    )
}

/// GPUs that processes here may use: of a container that has files of some only these.
pub fn usable(places: &Places, environment: &dyn Fn(&str) -> Option<String>) -> u32 {
    let there = match counts(places) {
        (devices, 0) => devices,
        (devices, nodes) => devices.min(nodes),
    };
    visible(there, environment("CUDA_VISIBLE_DEVICES").as_deref())
}

/// How many of `there` GPUs a list of visible ones leaves. CUDA reads it up to the first word that names none.
fn visible(there: u32, list: Option<&str>) -> u32 {
    let is_one = |word: &&str| match word.trim().parse::<i64>() {
        Ok(number) => (0..i64::from(there)).contains(&number),
        Err(_) => ["GPU-", "MIG-"].iter().any(|start| word.trim().starts_with(start)),
    };
    let named = list.map(|list| count(list.split(',').take_while(is_one).count()));
    named.map_or(there, |named| named.min(there))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The version in the first line of the driver's file: the word behind `Module` that is made of numbers.
fn driver_version(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.contains("Module"))?;
    let behind = line.split("Module").nth(1)?;
    let is_version = |word: &&str| {
        word.contains('.')
            && word
                .split('.')
                .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    behind.split_whitespace().find(is_version).map(str::to_owned)
}

/// The roots of CUDA installations among folders: where a run-time library of CUDA lies.
fn installations(folders: &[PathBuf]) -> Vec<PathBuf> {
    let has_cuda = |folder: &&PathBuf| {
        let names = names_in(folder);
        let starts = ["libcudart.so", "libcublas.so", "libtorch_cuda.so"];
        names
            .iter()
            .any(|name| starts.iter().any(|start| name.starts_with(start)))
    };
    let root = |folder: &PathBuf| {
        let above = folder
            .ancestors()
            .find(|above| above.ends_with("torch") || above.ends_with("nvidia"));
        above.and_then(Path::parent).unwrap_or(folder).to_owned()
    };
    let mut roots: Vec<PathBuf> = folders.iter().filter(has_cuda).map(root).collect();
    roots.sort();
    roots.dedup();
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_visible_gpus_leaves_as_many_as_it_names() {
        for (there, list, left) in [
            (8, None, 8),
            (8, Some("0,3"), 2),
            (8, Some(""), 0),
            (8, Some("-1"), 0),
            (8, Some("NoDevFiles"), 0),
            (8, Some("0,-1,2"), 1),
            (8, Some("GPU-5f0e, GPU-7a11"), 2),
            (1, Some("0,1"), 1),
            (0, None, 0),
        ] {
            assert_eq!(visible(there, list), left, "{list:?} of {there}");
        }
    }

    #[test]
    fn a_container_that_has_files_of_some_gpus_may_use_these() {
        let root = tempfile::tempdir().unwrap();
        let places = Places {
            proc: root.path().join("proc"),
            dev: root.path().join("dev"),
            ..Places::default()
        };
        for number in 0..4 {
            std::fs::create_dir_all(places.proc.join(format!("driver/nvidia/gpus/0000:0{number}:00.0"))).unwrap();
        }
        assert_eq!(
            usable(&places, &|_| None),
            4,
            "files may be made when they are asked for"
        );
        std::fs::create_dir(&places.dev).unwrap();
        for name in ["nvidia3", "nvidiactl", "nvidia-uvm"] {
            std::fs::write(places.dev.join(name), "").unwrap();
        }
        assert_eq!(usable(&places, &|_| None), 1);
    }

    #[test]
    fn the_driver_s_version_is_found_in_both_forms_of_its_file() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version: gcc 12.2.0\n";
        assert_eq!(driver_version(closed).as_deref(), Some("535.183.01"));
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root@x)\n";
        assert_eq!(driver_version(open).as_deref(), Some("580.95.05"));
        assert_eq!(driver_version("something else"), None);
    }
}

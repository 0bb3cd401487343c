//! NVIDIA's devices and driver, by the files that they leave: nothing of CUDA is opened.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::facts::libraries::{Search, found_version};
use crate::facts::{Places, names_in, text_of};

/// GPUs and what is needed to use them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gpus {
    /// Devices that the driver has.
    pub devices: u32,
    /// Their files in `/dev`.
    pub nodes: u32,
    /// Those that `CUDA_VISIBLE_DEVICES` leaves.
    pub visible: u32,
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
        let devices = count(names_in(&places.proc.join("driver/nvidia/gpus")).len());
        let is_node = |name: &String| {
            let number = name.strip_prefix("nvidia");
            number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let nodes = count(names_in(&places.dev).iter().filter(|name| is_node(name)).count());
        let near: Vec<PathBuf> = folders
            .iter()
            .flat_map(|folder| [folder.clone(), folder.join("../../nvidia/nccl/lib")])
            .collect();
        let find = |name: &str| search.find_near(name, &near);
        let with_version = |path: PathBuf| {
            let version = found_version(&path);
            (path, version)
        };
        let asked = environment("CUDA_VISIBLE_DEVICES");
        let named = asked.map(|list| count(list.split(',').filter(|name| !name.trim().is_empty()).count()));
        let wrong = lockstep_config::GPU_ENVIRONMENT.iter().filter_map(|(name, value)| {
            let (is, must) = (environment(name), value.map(str::to_owned));
            (is != must).then(|| ((*name).to_owned(), is, must))
        });
        Gpus {
            devices,
            nodes,
            visible: named.map_or(devices, |named| named.min(devices)),
            driver: text_of(&driver_file).and_then(|text| driver_version(&text)),
            driver_file,
            libcuda: find("libcuda.so.1").map(with_version),
            libtorch_cuda: find("libtorch_cuda.so"),
            nccl: find("libnccl.so.2").map(with_version),
            installations: installations(&search.first),
            environment: wrong.collect(),
        }
    }

    /// Whether this machine has anything of a GPU.
    pub fn are_there(&self) -> bool {
        self.devices > 0 || self.nodes > 0 || self.driver.is_some()
    }
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
    fn the_driver_s_version_is_found_in_both_forms_of_its_file() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version: gcc 12.2.0\n";
        assert_eq!(driver_version(closed).as_deref(), Some("535.183.01"));
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root@x)\n";
        assert_eq!(driver_version(open).as_deref(), Some("580.95.05"));
        assert_eq!(driver_version("something else"), None);
    }
}

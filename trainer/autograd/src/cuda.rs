//! The CUDA libraries of libtorch: opened at run time, so that one binary serves CPU and GPU.
//!
//! What lives here: opening them ([`open_libraries`], before any other call of libtorch), and saying where the CUDA
//! libraries of this process came from ([`loaded_libraries`], [`roots`]). Nothing here links against CUDA: kernels,
//! hooks and the device guard register themselves when libtorch_cuda is opened.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Opened by soname: libtorch's own folder is found through the run path of the binary, or LD_LIBRARY_PATH.
const LIBRARY: &str = "libtorch_cuda.so";

/// What came of opening libtorch's CUDA libraries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CudaLibraries {
    /// They are there, and libtorch has taken notice. Whether there is a device is another question.
    Loaded,
    /// They could not be opened; this process computes on the CPU only.
    Absent {
        /// The dynamic linker's words.
        reason: String,
    },
    /// They were opened, but something had asked libtorch about CUDA before: libtorch never asks again.
    TooLate,
}

impl fmt::Display for CudaLibraries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CudaLibraries::Loaded => write!(f, "libtorch's CUDA libraries are loaded"),
            CudaLibraries::Absent { reason } => write!(
                f,
                "libtorch's CUDA libraries could not be loaded ({reason}); for GPUs, install the CUDA build of libtorch and its libraries"
            ),
            CudaLibraries::TooLate => write!(
                f,
                "libtorch's CUDA libraries were loaded too late: another call of libtorch came first and fixed the process to the CPU; this is a bug of the program, not of the installation"
            ),
        }
    }
}

/// Opens libtorch's CUDA libraries for the life of the process. The first statement of `main`: whatever asks libtorch
/// about CUDA earlier (a seed, a device count, even a backward on the CPU) fixes the process to the CPU.
///
/// The first call opens, later ones give the same answer. It takes up to a second and 0.3 GB where the libraries are
/// there, and nothing where they are not.
pub fn open_libraries() -> &'static CudaLibraries {
    static OPENED: OnceLock<CudaLibraries> = OnceLock::new();
    OPENED.get_or_init(|| {
        // SAFETY: the initialisers of libtorch_cuda register its kernels with libtorch, which is loaded already; they
        // ask nothing of their caller.
        match unsafe { Library::open(Some(LIBRARY), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                // Never closed: registered kernels would point into nothing.
                let _ = library.into_raw();
                if tch::utils::has_cudart() {
                    CudaLibraries::Loaded
                } else {
                    CudaLibraries::TooLate
                }
            }
            Err(error) => CudaLibraries::Absent {
                // The linker's words are the source; the error itself only says which call failed.
                reason: error.source().map_or(error.to_string(), |words| words.to_string()),
            },
        }
    })
}

/// How the file names of CUDA's libraries begin, and of libtorch's that use them.
const PREFIXES: &[&str] = &[
    "libtorch_cuda",
    "libc10_cuda",
    "libcaffe2_nvrtc",
    "libcuda.",
    "libcudart",
    "libcublas",
    "libcudnn",
    "libcufft",
    "libcufile",
    "libcupti",
    "libcurand",
    "libcusolver",
    "libcusparse",
    "libnccl",
    "libnvJitLink",
    "libnvidia-",
    "libnvrtc",
    "libnvshmem",
    "libnvToolsExt",
];

/// The driver's libraries: they come from the machine, never from libtorch's root.
const OF_THE_DRIVER: &[&str] = &["libcuda.", "libnvidia-"];

fn begins_with_one_of(name: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// The CUDA libraries that this process has loaded: file name and path, in the order of names. Empty where the kernel
/// does not tell.
pub fn loaded_libraries() -> Vec<(String, PathBuf)> {
    libraries_in(&std::fs::read_to_string("/proc/self/maps").unwrap_or_default())
}

/// The CUDA libraries in a text of the form of `/proc/PID/maps`.
fn libraries_in(maps: &str) -> Vec<(String, PathBuf)> {
    maps.lines()
        // address, permissions, offset, device, inode; then the path, which may hold blanks
        .filter_map(|line| line.find('/').map(|at| line[at..].trim_end()))
        .filter_map(|path| Some((Path::new(path).file_name()?.to_str()?.to_owned(), PathBuf::from(path))))
        .filter(|(name, _)| name.contains(".so") && begins_with_one_of(name, PREFIXES))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// The installations that the libraries came from, the driver's left out: `ROOT` of `ROOT/torch/lib/…` and of
/// `ROOT/nvidia/…/lib/…`, else the folder itself.
pub fn roots(libraries: &[(String, PathBuf)]) -> BTreeSet<PathBuf> {
    libraries
        .iter()
        .filter(|(name, _)| !begins_with_one_of(name, OF_THE_DRIVER))
        .filter_map(|(_, path)| {
            let folder = path.parent()?;
            let root = folder
                .ancestors()
                .find(|above| above.ends_with("torch") || above.ends_with("nvidia"))
                .and_then(Path::parent);
            Some(root.unwrap_or(folder).to_path_buf())
        })
        .collect()
}

/// A sentence of warning where CUDA libraries come from more than one installation, which mixes versions that were
/// never tested together.
pub fn mixed_roots(libraries: &[(String, PathBuf)]) -> Option<String> {
    let roots = roots(libraries);
    (roots.len() > 1).then(|| {
        let list: Vec<_> = roots.iter().map(|root| root.display().to_string()).collect();
        format!(
            "CUDA libraries are loaded from {} places ({}); clear LD_LIBRARY_PATH of other CUDA installations",
            roots.len(),
            list.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
7f10-7f20 r-xp 00000000 08:01 11 /opt/site packages/torch/lib/libtorch_cuda.so
7f20-7f30 rw-p 00000000 08:01 11 /opt/site packages/torch/lib/libtorch_cuda.so
7f30-7f40 r-xp 00000000 08:01 12 /opt/site packages/nvidia/nccl/lib/libnccl.so.2
7f40-7f50 r-xp 00000000 08:01 13 /usr/lib/x86_64-linux-gnu/libcuda.so.580.95
7f50-7f60 r-xp 00000000 08:01 14 /usr/lib/x86_64-linux-gnu/libc.so.6
7f60-7f70 rw-p 00000000 00:00 0
7f70-7f80 rw-p 00000000 00:00 0 [stack]
";

    #[test]
    fn the_cuda_libraries_of_a_process_are_listed_once_with_their_paths() {
        let found = libraries_in(MAPS);
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["libcuda.so.580.95", "libnccl.so.2", "libtorch_cuda.so"]);
        assert_eq!(
            found[1].1,
            PathBuf::from("/opt/site packages/nvidia/nccl/lib/libnccl.so.2")
        );
    }

    #[test]
    fn one_installation_and_the_driver_are_one_root_and_a_foreign_library_is_a_second() {
        let one = libraries_in(MAPS);
        assert_eq!(roots(&one), BTreeSet::from([PathBuf::from("/opt/site packages")]));
        assert_eq!(mixed_roots(&one), None);
        let two =
            libraries_in(&(MAPS.to_owned() + "7f-80 r-xp 0 08:01 15 /usr/local/cuda-12/lib64/libnvJitLink.so.12\n"));
        let warning = mixed_roots(&two).unwrap_or_default();
        assert!(warning.contains("/usr/local/cuda-12/lib64"), "{warning}");
        assert!(warning.contains("LD_LIBRARY_PATH"), "{warning}");
    }
}

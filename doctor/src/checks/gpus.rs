//! GPUs: device, driver, libraries, environment.

use std::path::Path;

use crate::catalogue::Id;
use crate::checks::counted;
use crate::facts::Facts;
use crate::facts::gpus::Gpus;
use crate::finding::Finding;
use crate::wanted::Wanted;

/// The oldest driver that CUDA 13 runs on.
const DRIVER: u32 = 580;
/// The oldest NCCL that the bindings are made for; see `nccl_rs::Version::check`.
const NCCL: [u32; 3] = [2, 29, 7];

pub(super) fn gpus(facts: &Facts, wanted: Option<&Wanted>) -> Vec<Finding> {
    let Some(gpus) = &facts.gpus else {
        return Vec::new();
    };
    match wanted {
        Some(wanted) if wanted.gpu => [driver(gpus, Some(wanted)), libraries(gpus), environment(gpus, wanted)].concat(),
        // What is there should work, even where nobody asks for it yet.
        None if gpus.are_there() => driver(gpus, None),
        _ => Vec::new(),
    }
}

fn driver(gpus: &Gpus, wanted: Option<&Wanted>) -> Vec<Finding> {
    let install = format!(
        "install NVIDIA's driver, version {DRIVER} or newer (in a container: start it with the container toolkit), or set run.device = \"cpu\""
    );
    let Some(version) = &gpus.driver else {
        if gpus.made_when_asked && gpus.libcuda.is_some() {
            return Vec::new();
        }
        let what = format!(
            "there is no {}: NVIDIA's driver is not loaded",
            gpus.driver_file.display()
        );
        return vec![Finding::new(
            Id::DriverMissing,
            gpus.driver_file.display(),
            what,
            install,
        )];
    };
    let mut findings = Vec::new();
    let place = gpus.driver_file.display();
    // NVIDIA's package for forward compatibility brings a newer library for an older module.
    let newer = gpus.libcuda.as_ref().filter(|(path, _)| is_for_compatibility(path));
    let newer = newer.and_then(|(_, version)| version.as_ref());
    let used = newer.unwrap_or(version);
    if numbers(used).first().is_some_and(|major| *major < DRIVER) {
        let what = format!("NVIDIA's driver is {used}, and CUDA 13 needs {DRIVER} or newer");
        findings.push(Finding::new(Id::DriverOld, &place, what, &install));
    }
    match &gpus.libcuda {
        Some(_) if newer.is_some() => {}
        None => {
            let what =
                format!("the driver's module {version} is loaded, and no folder of libraries has its libcuda.so.1");
            findings.push(Finding::new(Id::DriverMissing, "libcuda.so.1", what, &install));
        }
        Some((path, Some(library))) if library != version => {
            let what = format!("libcuda is {library}, and the driver's module is {version}");
            let remedy = "restart the machine after an update of the driver; in a container, let the container toolkit bring the library, and keep none in the image";
            findings.push(Finding::new(Id::DriverMixed, path.display(), what, remedy));
        }
        Some(_) => {}
    }
    if gpus.devices == 0 || gpus.nodes == 0 && !gpus.made_when_asked {
        let what = match gpus.devices {
            0 => "the driver has no GPU".to_owned(),
            devices => format!(
                "the driver has {}, and /dev has no file of them",
                counted(devices.into(), "GPU")
            ),
        };
        let remedy =
            "see `nvidia-smi` and the kernel's log; in a container, ask for GPUs (`--gpus all`, nvidia.com/gpu)";
        findings.push(Finding::new(Id::GpuNone, "/dev/nvidia*", what, remedy));
    } else if let Some(wanted) = wanted.filter(|wanted| wanted.ranks > gpus.visible) {
        let what = format!(
            "{} of this host want a GPU each, and {} are visible of {}",
            counted(wanted.ranks.into(), "rank"),
            gpus.visible,
            gpus.devices
        );
        let remedy = "ask for fewer ranks with -n, or check CUDA_VISIBLE_DEVICES";
        findings.push(Finding::new(Id::GpusFew, "CUDA_VISIBLE_DEVICES", what, remedy));
    }
    findings
}

fn libraries(gpus: &Gpus) -> Vec<Finding> {
    let mut findings = Vec::new();
    let setup = "install the CUDA build of libtorch and its libraries (`cargo xtask setup --cuda`), and name its folder `lib` in LD_LIBRARY_PATH";
    if gpus.libtorch_cuda.is_none() {
        let what = "no folder of libraries has libtorch_cuda.so";
        findings.push(Finding::new(Id::CudaLibrariesMissing, "LD_LIBRARY_PATH", what, setup));
    }
    match &gpus.nccl {
        None => {
            let what = "no folder of libraries has libnccl.so.2";
            findings.push(Finding::new(Id::NcclMissing, "LD_LIBRARY_PATH", what, setup));
        }
        Some((path, Some(version))) if is_old(version) => {
            let what = format!("NCCL is {version}, and 2.29.7 or a newer 2.x is needed");
            findings.push(Finding::new(Id::NcclOld, path.display(), what, setup));
        }
        Some(_) => {}
    }
    if gpus.installations.len() > 1 {
        let list: Vec<_> = gpus
            .installations
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let what = format!(
            "LD_LIBRARY_PATH leads to {} installations of CUDA ({})",
            list.len(),
            list.join(", ")
        );
        findings.push(Finding::new(
            Id::CudaMixed,
            "LD_LIBRARY_PATH",
            what,
            "leave the one of libtorch in it, and take the others out",
        ));
    }
    findings
}

fn environment(gpus: &Gpus, wanted: &Wanted) -> Vec<Finding> {
    if wanted.environment_is_set {
        return Vec::new();
    }
    let finding = |(name, is, must): &(String, Option<String>, Option<String>)| {
        let is = is.as_ref().map_or("not set".to_owned(), |is| format!("{is:?}"));
        let (must, remedy) = match must {
            Some(must) => (format!("{must:?}"), format!("start trainers with {name}={must}")),
            None => ("not to be set".to_owned(), format!("unset {name}")),
        };
        let what = format!("{name} is {is}, and has to be {must}").replace("has to be not", "has not");
        Finding::new(Id::GpuEnvironment, Path::new(name).display(), what, remedy)
    };
    gpus.environment.iter().map(finding).collect()
}

/// Whether a library lies where NVIDIA's package `cuda-compat` puts it.
fn is_for_compatibility(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "compat")
}

fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map_while(|part| part.parse().ok()).collect()
}

/// Another major version counts as too old: its functions may differ.
fn is_old(version: &str) -> bool {
    let numbers = numbers(version);
    numbers.as_slice() < NCCL.as_slice() || numbers.first() != Some(&NCCL[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_library_for_an_older_module_and_a_module_that_is_loaded_when_asked_for_are_fine() {
        let found = |gpus: &Gpus| -> Vec<Id> { driver(gpus, None).into_iter().map(|finding| finding.id).collect() };
        let library =
            |folder: &str, version: &str| Some((Path::new(folder).join("libcuda.so.1"), Some(version.to_owned())));
        let mut gpus = Gpus {
            devices: 1,
            nodes: 1,
            visible: 1,
            driver: Some("550.90.07".to_owned()),
            libcuda: library("/usr/local/cuda-13.0/compat", "580.95.05"),
            ..Gpus::default()
        };
        assert_eq!(found(&gpus), []);
        gpus.libcuda = library("/usr/lib", "580.95.05");
        assert_eq!(found(&gpus), [Id::DriverOld, Id::DriverMixed]);
        (gpus.driver, gpus.devices, gpus.nodes) = (None, 0, 0);
        assert_eq!(found(&gpus), [Id::DriverMissing]);
        gpus.made_when_asked = true;
        assert_eq!(found(&gpus), []);
    }

    #[test]
    fn versions_of_nccl_are_those_that_its_bindings_take() {
        assert!(is_old("2.29.6") && is_old("2.4.8") && is_old("3.0.0") && is_old("1.9"));
        assert!(!is_old("2.29.7") && !is_old("2.30.0"));
    }
}

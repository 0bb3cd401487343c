//! A machine with GPUs, as its files tell of it, and what can be wrong with one.

use std::fs;

use crate::ward::{Report, Ward};

/// What a driver, its devices and the libraries look like.
struct Machine {
    driver: &'static str,
    libcuda: &'static str,
    nccl: &'static str,
    /// Those of the driver, and their files.
    devices: usize,
    nodes: usize,
    without: &'static str,
}

const GOOD: Machine = Machine {
    driver: "580.95.05",
    libcuda: "580.95.05",
    nccl: "2.29.7",
    devices: 2,
    nodes: 2,
    without: "",
};

/// What a launcher sets for a trainer on a GPU.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
    ("CUBLASLT_WORKSPACE_SIZE", "32768"),
    ("NVIDIA_TF32_OVERRIDE", "0"),
];

fn examine(ward: &Ward, machine: &Machine, words: &str, environment: &[(&str, &str)]) -> Option<Report> {
    let lib = ward.path("cuda/torch/lib");
    let _ = fs::remove_dir_all(&lib);
    fs::create_dir_all(&lib).unwrap();
    let real = [
        ("libcuda.so.1", format!("libcuda.so.{}", machine.libcuda)),
        ("libnccl.so.2", format!("libnccl.so.{}", machine.nccl)),
        ("libtorch_cuda.so", "libtorch_cuda.so.real".to_owned()),
    ];
    for (name, file) in real.iter().filter(|(name, _)| *name != machine.without) {
        fs::write(lib.join(file), "").unwrap();
        std::os::unix::fs::symlink(file, lib.join(name)).unwrap();
    }
    let proc: String = match machine.driver {
        "" => String::new(),
        driver => format!(
            "mkdir -p /proc/driver/nvidia/gpus; echo 'NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Mon' > /proc/driver/nvidia/version; for n in $(seq {}); do mkdir /proc/driver/nvidia/gpus/0000:0$n:00.0; done; ",
            machine.devices
        ),
    };
    let script = format!(
        "mount -t tmpfs none /proc/driver; {proc}mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mkdir /dev/shm; mount -t tmpfs -o size=2g none /dev/shm; \
         for n in $(seq {}); do : > /dev/nvidia$((n - 1)); done; : > /dev/nvidiactl",
        machine.nodes
    );
    let environment = [&[("LD_LIBRARY_PATH", lib.to_str().unwrap())], environment].concat();
    let output = ward.inside(
        &script,
        &format!("doctor --json run.toml --set run.device=cuda {words}"),
        &environment,
    )?;
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", crate::stage::said(&output)));
    Some(Report {
        json,
        code: output.status.code().unwrap(),
        error: String::new(),
    })
}

#[test]
fn a_machine_as_it_should_be_has_no_finding() {
    let ward = Ward::new();
    if let Some(report) = examine(&ward, &GOOD, "-n 2", &ENVIRONMENT) {
        assert_eq!(report.ids(), [""; 0], "{report:?}");
    }
}

#[test]
fn drivers_that_are_missing_old_or_mixed() {
    let ward = Ward::new();
    for (machine, id, parts) in [
        (
            Machine { driver: "", ..GOOD },
            "driver-missing",
            ["/proc/driver/nvidia/version", "run.device"],
        ),
        (
            Machine {
                driver: "535.183.01",
                libcuda: "535.183.01",
                ..GOOD
            },
            "driver-old",
            ["535.183.01", "580"],
        ),
        (
            Machine {
                libcuda: "580.82.07",
                ..GOOD
            },
            "driver-mixed",
            ["580.82.07", "580.95.05"],
        ),
    ] {
        if let Some(report) = examine(&ward, &machine, "-n 2", &ENVIRONMENT) {
            report.found(id, &parts);
        }
    }
}

#[test]
fn gpus_that_are_not_there_hidden_or_too_few() {
    let ward = Ward::new();
    let none = Machine {
        devices: 0,
        nodes: 0,
        ..GOOD
    };
    if let Some(report) = examine(&ward, &none, "-n 1", &ENVIRONMENT) {
        report.found("gpu-none", &["the driver has no GPU"]);
    }
    let no_files = Machine { nodes: 0, ..GOOD };
    if let Some(report) = examine(&ward, &no_files, "-n 2", &ENVIRONMENT) {
        report.found("gpu-none", &["/dev has no file", "--gpus all"]);
    }
    let hidden = [&ENVIRONMENT[..], &[("CUDA_VISIBLE_DEVICES", "1")]].concat();
    if let Some(report) = examine(&ward, &GOOD, "-n 2", &hidden) {
        report.found("gpus-few", &["2 ranks", "1 are visible of 2", "CUDA_VISIBLE_DEVICES"]);
    }
}

#[test]
fn libraries_that_are_missing_or_old() {
    let ward = Ward::new();
    for (machine, id, part) in [
        (
            Machine {
                without: "libtorch_cuda.so",
                ..GOOD
            },
            "cuda-libraries-missing",
            "libtorch_cuda.so",
        ),
        (
            Machine {
                without: "libnccl.so.2",
                ..GOOD
            },
            "nccl-missing",
            "libnccl.so.2",
        ),
        (Machine { nccl: "2.21.5", ..GOOD }, "nccl-old", "2.21.5"),
        (
            Machine {
                without: "libcuda.so.1",
                ..GOOD
            },
            "driver-missing",
            "libcuda.so.1",
        ),
    ] {
        if let Some(report) = examine(&ward, &machine, "-n 2", &ENVIRONMENT) {
            report.found(id, &[part]);
        }
    }
}

#[test]
fn an_environment_with_which_a_trainer_would_refuse_to_start() {
    let ward = Ward::new();
    if let Some(report) = examine(&ward, &GOOD, "-n 2", &ENVIRONMENT[1..]) {
        report.found("gpu-environment", &["CUBLAS_WORKSPACE_CONFIG is not set", ":4096:8"]);
    }
    let wrong = [&ENVIRONMENT[..], &[("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")]].concat();
    if let Some(report) = examine(&ward, &GOOD, "-n 2", &wrong) {
        report.found("gpu-environment", &["has not to be set"]);
    }
}

#[test]
fn two_installations_of_cuda() {
    let ward = Ward::new();
    let other = ward.path("usr-local-cuda/lib64");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("libcublas.so.12"), "").unwrap();
    let own = ward.path("cuda/torch/lib");
    let both = format!("{}:{}", own.display(), other.display());
    let environment = [&ENVIRONMENT[..], &[("LD_LIBRARY_PATH", both.as_str())]].concat();
    if let Some(report) = examine(&ward, &GOOD, "-n 2", &environment) {
        report.found("cuda-mixed", &["2 installations", "usr-local-cuda"]);
    }
}

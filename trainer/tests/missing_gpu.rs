//! The real binary, told to train on a GPU where there is none, is refused with one sentence that says what is missing, and
//! the coordinator hears it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::{Command, Output};

use lockstep_config::{GPU_ENVIRONMENT, RunConfig, prepare_for_gpu};
use lockstep_coordinator::{BegunRun, Coordinator, CoordinatorOptions};

fn config() -> RunConfig {
    let text = "[run]\nname = \"gpu\"\nsteps = 1\ndevice = \"cuda\"\n[data]\npath = \"unused\"\nsequence_length = 16\n\
                [model]\nlayers = 1\nheads = 1\nwidth = 8\n[batch]\nmicro_batch = 2\nschedule = 8\n\
                [learning_rate]\nschedule = 0.5\n";
    RunConfig::parse(text, "missing_gpu.toml", &[]).unwrap()
}

/// The binary under a coordinator of its own, with what `prepare` does to it.
fn refused(prepare: impl FnOnce(&mut Command)) -> (Output, String) {
    let folder = tempfile::tempdir().unwrap();
    let running = Coordinator::start(CoordinatorOptions {
        begun: BegunRun::LeftAlone,
        vocabulary: 257,
        config: config(),
        run_dir: folder.path().join("run"),
        ranks: 1,
        training_samples: 100,
        data_hash: "data".to_owned(),
    })
    .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep-trainer"));
    command
        .args(["train", "--member", "trainer-0", "--coordinator"])
        .arg(format!("http://{}", running.address()));
    prepare(&mut command);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

/// The sentence in which the trainer ends.
fn last(said: &str) -> &str {
    let last = said.lines().rfind(|line| line.starts_with("lockstep-trainer: "));
    last.unwrap_or_else(|| panic!("no sentence in: {said}"))
}

/// Exit code 2, and a last line that begins with the key and holds `parts`.
fn says(output: &Output, said: &str, parts: &[&str]) {
    assert_eq!(output.status.code(), Some(2), "{said}");
    let last = last(said);
    for part in parts {
        assert!(last.contains(part), "{part:?} is missing in: {last}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// Whether this machine's libtorch has the libraries for GPUs.
fn has_libraries() -> bool {
    matches!(
        lockstep_autograd::cuda::open_libraries(),
        lockstep_autograd::cuda::CudaLibraries::Loaded
    )
}

#[test]
fn without_libtorch_s_libraries_for_gpus_they_are_named() {
    if has_libraries() {
        // A machine for GPUs: the tests below are for it.
        return;
    }
    let (output, said) = refused(|_| {});
    says(
        &output,
        &said,
        &[
            "run.device is \"cuda\"",
            "libtorch_cuda.so",
            "install the CUDA build of libtorch",
        ],
    );
}

/// The measurement between GPUs, with what `prepare` does to it.
fn measurement(prepare: impl FnOnce(&mut Command)) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep-trainer"));
    command.args(["bench", "collectives", "--backend", "nccl"]);
    prepare(&mut command);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[test]
fn a_measurement_between_gpus_is_refused_too_before_a_rank_is_started() {
    if has_libraries() {
        return;
    }
    let (output, said) = measurement(|_| {});
    let begin = "--backend nccl measures between GPUs, but libtorch's CUDA libraries could not be loaded";
    says(&output, &said, &[begin, "install the CUDA build of libtorch"]);
    assert_eq!(said.lines().count(), 1, "one sentence: {said}");
}

#[test]
#[ignore = "needs the CUDA build of libtorch and no GPU: LOCKSTEP_CUDA_LIBTORCH names its folder lib"]
fn with_the_libraries_the_environment_is_checked_and_then_the_driver() {
    let libraries = std::env::var_os("LOCKSTEP_CUDA_LIBTORCH").unwrap();
    let (output, said) = refused(|command| {
        command.env("LD_LIBRARY_PATH", &libraries);
        for (name, _) in GPU_ENVIRONMENT {
            command.env_remove(name);
        }
    });
    says(
        &output,
        &said,
        &["CUBLAS_WORKSPACE_CONFIG", ":4096:8", "NVIDIA_TF32_OVERRIDE=0"],
    );
    let (output, said) = refused(|command| prepare_for_gpu(command.env("LD_LIBRARY_PATH", &libraries)));
    says(&output, &said, &["device 0 cannot be opened", "no NVIDIA driver"]);
    println!("seen: \"no NVIDIA driver\"");
    // The NCCL that libtorch has loaded, and not one of the machine's.
    let root = Path::new(&libraries).ancestors().nth(2).unwrap().display().to_string();
    let loaded = said.lines().find(|line| line.contains("(code ")).unwrap();
    for part in ["(code 22907)", &format!("from {root}/nvidia/nccl/lib/libnccl.so.2")] {
        assert!(loaded.contains(part), "{part:?} is missing in: {loaded}");
    }
    println!("seen: NCCL 22907 from nvidia/nccl/lib");
    let (output, said) = measurement(|command| {
        command.env("LD_LIBRARY_PATH", &libraries);
    });
    says(&output, &said, &["--backend nccl", "no NVIDIA driver"]);
}

#[test]
#[ignore = "as the test above; LOCKSTEP_OLD_DRIVER names a folder with a libcuda.so.1 of version 12080"]
fn a_driver_that_is_too_old_is_told_apart_with_its_version() {
    let libraries = std::env::var_os("LOCKSTEP_CUDA_LIBTORCH").unwrap();
    let old = std::env::var_os("LOCKSTEP_OLD_DRIVER").unwrap();
    let folders = std::env::join_paths([&libraries, &old]).unwrap();
    let (output, said) = refused(|command| prepare_for_gpu(command.env("LD_LIBRARY_PATH", &folders)));
    says(
        &output,
        &said,
        &[
            "device 0 cannot be opened",
            "too old (found version 12080)",
            "needs driver 580 or newer",
        ],
    );
    println!("seen: \"too old (found version 12080)\"");
}

//! What the environment of a trainer on a GPU must say: who starts it sets it, the trainer checks it.

use std::process::Command;

/// The variables that decide bits on a GPU, with what each must be (`None`: it must not be set). CUDA's libraries read them
/// once, so they stand before the process begins.
pub const GPU_ENVIRONMENT: &[(&str, Option<&str>)] = &[
    ("CUBLAS_WORKSPACE_CONFIG", Some(":4096:8")),
    // KiB; what libtorch takes by default on the largest architectures, fixed for all.
    ("CUBLASLT_WORKSPACE_SIZE", Some("32768")),
    ("NVIDIA_TF32_OVERRIDE", Some("0")),
    ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", None),
];

/// What a launcher sets besides, where the user has not: these change no bit.
pub const GPU_DEFAULTS: &[(&str, &str)] = &[
    ("PYTORCH_ALLOC_CONF", "expandable_segments:True"),
    ("NCCL_DEBUG", "WARN"),
];

/// Gives a process that will use a GPU its environment: [`GPU_ENVIRONMENT`], and [`GPU_DEFAULTS`] where this process's own
/// has nothing else.
pub fn prepare_for_gpu(command: &mut Command) {
    for (name, value) in GPU_ENVIRONMENT {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    for (name, value) in GPU_DEFAULTS {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
}

/// Says which of a host's GPUs is a rank's: its number among the ranks of the host.
pub const LOCAL_RANK: &str = "LOCKSTEP_LOCAL_RANK";

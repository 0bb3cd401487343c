//! What the environment of a trainer on a GPU must say: the launcher sets it, the trainer checks it.

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

/// Says which of a host's GPUs is a rank's: its number among the ranks of the host.
pub const LOCAL_RANK: &str = "LOCKSTEP_LOCAL_RANK";

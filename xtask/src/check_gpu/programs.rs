//! Checks that are tests of our own packages: kernels, the order of streams, NCCL's protocol, settings and hooks. Only the
//! first needs something of NVIDIA's.

use super::files;
use super::suites::{Suite, run};
use crate::failure::Failure;
use crate::workspace::Workspace;

/// Our kernels: compiled by NVIDIA's own run-time compiler, and run as C++ against slow, obvious references.
pub(super) fn kernels(workspace: &Workspace) -> Result<String, Failure> {
    let compiler = files::root(workspace)?.join("nvidia/cu13/lib");
    let suite = Suite {
        package: "lockstep-gpu-kernels",
        targets: &["lib", "bits", "nvrtc"],
        arguments: &[],
        environment: &[("LOCKSTEP_NVRTC_LIBRARY", compiler.into_os_string())],
    };
    let told = run(workspace, &[suite])?;
    told.must_have_seen("for 6 architectures")?;
    Ok(told.summary())
}

/// Tests that need nothing of NVIDIA's.
fn ordinary<'a>(package: &'a str, targets: &'a [&'a str]) -> Suite<'a> {
    Suite {
        package,
        targets,
        arguments: &[],
        environment: &[],
    }
}

/// The happens-before check over what the shim and the communication tell a guard that records.
pub(super) fn recorder(workspace: &Workspace) -> Result<String, Failure> {
    let suite = ordinary("lockstep-device-recorder", &["order", "shim", "protocol"]);
    Ok(run(workspace, &[suite])?.summary())
}

/// Bindings and backend over a double of NCCL that knows its rules.
pub(super) fn nccl_double(workspace: &Workspace) -> Result<String, Failure> {
    let suites = [
        ordinary("nccl-double", &["lib", "beside", "rules"]),
        ordinary("accelerator-double", &["early"]),
        ordinary(
            "nccl-rs",
            &["lib", "endings", "environment", "layout", "operations", "protocol"],
        ),
        ordinary(
            "lockstep-collective",
            &[
                "lib",
                "nccl_worlds",
                "nccl_failures",
                "nccl_differences",
                "nccl_communication",
            ],
        ),
    ];
    Ok(run(workspace, &suites)?.summary())
}

/// What libtorch is told and what it tells, and steps whose memory is a device's.
pub(super) fn settings_and_hooks(workspace: &Workspace) -> Result<String, Failure> {
    let suites = [
        ordinary(
            "lockstep-autograd",
            &["lib", "device_buffers", "loading", "settings", "slots_and_hooks"],
        ),
        ordinary("lockstep-trainer", &["device", "device_worlds"]),
    ];
    Ok(run(workspace, &suites)?.summary())
}

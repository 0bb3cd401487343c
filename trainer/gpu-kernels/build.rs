//! Builds the fake driver of the tests: the kernels' own source, compiled as C++. Nothing of it is linked.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=fake-driver/driver.cpp");
    println!("cargo:rerun-if-changed=src/kernels");
    let out = std::env::var("OUT_DIR").expect("cargo says where outputs go");
    let library = Path::new(&out).join("libfake_driver.so");
    let mut compiler = cc::Build::new().cpp(true).std("c++17").get_compiler().to_command();
    // No contraction: the source says which operations there are, as NVRTC is told too.
    let status = compiler
        .args([
            "-O2",
            "-fPIC",
            "-shared",
            "-ffp-contract=off",
            "fake-driver/driver.cpp",
            "-o",
        ])
        .arg(&library)
        .status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "the C++ compiler could not build the kernels for tests: {status:?}"
    );
    println!("cargo:rustc-env=LOCKSTEP_FAKE_DRIVER={}", library.display());
}

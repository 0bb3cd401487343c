//! Compiles the `.proto` files with a compiler written in Rust (no system `protoc`) into the generated code and
//! the file descriptor set that the reflection service serves.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "proto/lockstep/v1/training.proto",
        "proto/lockstep/v1/control.proto",
        "proto/lockstep/v1/parts.proto",
    ];
    for file in files.iter().chain(&["proto/lockstep/v1/shared.proto"]) {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("lockstep_descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}

//! Compiles the C++ against the very headers that torch-sys was built with, and tells the linker where libtorch
//! is, so that this crate's tests start without LD_LIBRARY_PATH.

fn main() {
    for file in ["src/shim.cpp", "src/device.cpp", "src/guarded.h"] {
        println!("cargo:rerun-if-changed={file}");
    }
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is");
    let include = std::path::Path::new(&lib).join("../include");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .warnings(false)
        .flag_if_supported("-fvisibility=hidden")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("src/shim.cpp")
        .file("src/device.cpp")
        .compile("lockstep_autograd_shim");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
}

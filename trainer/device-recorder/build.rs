//! Compiles the recording guard and the observer of operators against the headers that torch-sys was built with, and tells the linker where libtorch
//! is, so that the tests start without LD_LIBRARY_PATH.

fn main() {
    println!("cargo:rerun-if-changed=src/guard.cpp");
    println!("cargo:rerun-if-changed=src/operators.cpp");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .warnings(false)
        .flag_if_supported("-fvisibility=hidden")
        // As libtorch was built: its headers' checks for debugging expect a libtorch for debugging.
        .define("NDEBUG", None)
        .include(std::path::Path::new(&lib).join("../include"))
        .file("src/guard.cpp")
        .file("src/operators.cpp")
        .compile("lockstep_device_recorder");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
}

//! Tells the linker where libtorch is, so that the binary and its tests start without LD_LIBRARY_PATH.

fn main() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
}

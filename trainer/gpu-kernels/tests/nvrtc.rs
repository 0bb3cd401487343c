//! With NVIDIA's run-time compiler at hand (LOCKSTEP_NVRTC_LIBRARY: its file or folder, with its builtins beside it), the
//! kernels compile for every architecture, without contraction and without flushing of subnormals.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::PathBuf;

use lockstep_gpu_kernels::{Architecture, KernelError, Nvrtc, SOURCES, Source};

fn at_hand() -> Option<Nvrtc> {
    let path = std::env::var_os("LOCKSTEP_NVRTC_LIBRARY").map(PathBuf::from);
    if path.is_none() {
        println!("not checked: LOCKSTEP_NVRTC_LIBRARY does not say where libnvrtc.so.13 is");
    }
    path.map(|path| Nvrtc::load_from(&path).unwrap())
}

#[test]
fn every_kernel_compiles_for_every_architecture_to_plain_operations() {
    let Some(nvrtc) = at_hand() else { return };
    assert_eq!(nvrtc.version().0, 13);
    for source in &SOURCES {
        for architecture in Architecture::ALL {
            let code = nvrtc.compile(source, architecture).unwrap();
            assert!(code.starts_with(b"\x7fELF"), "{} for {architecture:?}", source.name);
            for function in source.functions {
                let name = function.name.as_bytes();
                assert!(code.windows(name.len()).any(|part| part == name), "{}", function.name);
            }
            let ptx = nvrtc.compile_to_ptx(source, architecture).unwrap();
            for function in source.functions {
                assert!(ptx.contains(&format!(".entry {}(", function.name)), "{}", function.name);
            }
            // The very operations of the source are there, so the next check does not look at nothing.
            let operations: &[&str] = match source.name {
                "tree_add.cu" => &["add.rn.f32"],
                "block_sums.cu" => &["mul.rn.f64", "add.rn.f64"],
                "block_hash.cu" => &["add.s64"],
                _ => &["shr.u32"],
            };
            for operation in operations {
                assert!(ptx.contains(operation), "{} lacks {operation}:\n{ptx}", source.name);
            }
            for word in ["fma.", ".ftz", ".approx"] {
                assert!(
                    !ptx.contains(word),
                    "{} for {architecture:?} holds {word}:\n{ptx}",
                    source.name
                );
            }
        }
    }
    println!(
        "seen: {} sources compiled to code and PTX for {} architectures",
        SOURCES.len(),
        Architecture::ALL.len()
    );
}

#[test]
fn source_that_does_not_compile_is_an_error_with_the_compilers_words() {
    let Some(nvrtc) = at_hand() else { return };
    let source = Source {
        name: "wrong.cu",
        text: "KERNEL wrong(float* out) { out[0] = nothing; }",
        functions: &[],
    };
    let error = nvrtc.compile(&source, Architecture::ALL[0]).unwrap_err();
    let KernelError::Compiler { log, .. } = &error else {
        panic!("{error}")
    };
    assert!(
        log.contains("wrong.cu(1)") && log.contains("\"nothing\" is undefined"),
        "{log}"
    );
}

#[test]
fn a_folder_without_the_compiler_is_a_typed_error_that_names_it() {
    let error = Nvrtc::load_from(&PathBuf::from(env!("CARGO_MANIFEST_DIR")))
        .err()
        .unwrap();
    assert!(matches!(error, KernelError::NoLibrary { .. }), "{error}");
    assert!(error.to_string().contains("libnvrtc"), "{error}");
}

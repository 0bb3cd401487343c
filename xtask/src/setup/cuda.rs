//! libtorch for GPUs: the CUDA build and the libraries of NVIDIA's that its own package pins, in the places where its run
//! paths look for them. Nothing is linked with any of it: a binary that was built for the CPU opens it at run time.
//!
//! Each library is named, so that the folder holds no more than what a run loads: no Python, no static libraries, no
//! second copy of the run-time compiler. With them come the headers of NCCL and of the CUDA runtime, for the check of
//! NCCL's layout.

use super::wheels::{CUPTI, RUNTIME, Selection, TORCH_WHEEL, Wheel};

/// What a run on GPUs loads, all in one folder: `torch/lib` and `nvidia/*/lib`.
pub(crate) const CUDA: Selection = Selection {
    chore: "setup --cuda",
    title: "libtorch 2.13.0 for CUDA 13",
    folder: "cuda",
    wheels: WHEELS,
    wanted: |name| LIBRARIES.contains(&name) || HEADERS.iter().any(|folder| name.starts_with(folder)),
    essential: LIBRARIES,
    unpacked_bytes: 3600 << 20,
    finish: |_| Ok(()),
};

/// The real NCCL.
pub(crate) const NCCL_LIBRARY: &str = "nvidia/nccl/lib/libnccl.so.2";

const HEADERS: &[&str] = &["nvidia/nccl/include/", "nvidia/cu13/include/"];

const WHEELS: &[Wheel] = &[
    TORCH_WHEEL,
    CUPTI,
    RUNTIME,
    Wheel {
        name: "nvidia-cublas",
        version: "13.1.1.3",
        platform: "manylinux_2_27_x86_64",
        sha256: "37936a16db8fe4ac1f065c2139360608a543a09275cb1a1af612e08cfa065436",
        bytes: 423_138_758,
    },
    Wheel {
        name: "nvidia-cuda-nvrtc",
        version: "13.0.88",
        platform: "manylinux2010_x86_64",
        sha256: "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
        bytes: 90_215_200,
    },
    Wheel {
        name: "nvidia-cufft",
        version: "12.0.0.61",
        platform: "manylinux2014_x86_64",
        sha256: "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
        bytes: 214_085_489,
    },
    Wheel {
        name: "nvidia-cufile",
        version: "1.15.1.6",
        platform: "manylinux2014_x86_64",
        sha256: "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44",
        bytes: 1_223_672,
    },
    Wheel {
        name: "nvidia-curand",
        version: "10.4.0.35",
        platform: "manylinux_2_27_x86_64",
        sha256: "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
        bytes: 59_544_258,
    },
    Wheel {
        name: "nvidia-cusolver",
        version: "12.0.4.66",
        platform: "manylinux_2_27_x86_64",
        sha256: "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112",
        bytes: 200_941_980,
    },
    Wheel {
        name: "nvidia-cusparse",
        version: "12.6.3.3",
        platform: "manylinux2014_x86_64",
        sha256: "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b",
        bytes: 145_942_937,
    },
    Wheel {
        name: "nvidia-nvjitlink",
        version: "13.0.88",
        platform: "manylinux2010_x86_64",
        sha256: "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b",
        bytes: 40_713_933,
    },
    Wheel {
        name: "nvidia-cudnn-cu13",
        version: "9.20.0.48",
        platform: "manylinux_2_27_x86_64",
        sha256: "0c45dd8eeb50b603f07995b1b300c62ffe6a1980482b82b3bcf94a4ca9d49304",
        bytes: 366_173_588,
    },
    Wheel {
        name: "nvidia-cusparselt-cu13",
        version: "0.8.1",
        platform: "manylinux2014_x86_64",
        sha256: "786ce87568c303fadb5afcc7102d454cd3040d75f6f8626f5db460d1871f4dd0",
        bytes: 170_148_586,
    },
    Wheel {
        name: "nvidia-nccl-cu13",
        version: "2.29.7",
        platform: "manylinux_2_18_x86_64",
        sha256: "edd81538446786ec3b73972543e53bb43bcaf0bfc8ef76cb679fcc390ffe136d",
        bytes: 205_976_000,
    },
    Wheel {
        name: "nvidia-nvshmem-cu13",
        version: "3.4.5",
        platform: "manylinux2014_x86_64",
        sha256: "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80",
        bytes: 60_412_546,
    },
    // The headers that the runtime's and NCCL's own need.
    Wheel {
        name: "nvidia-cuda-crt",
        version: "13.0.88",
        platform: "manylinux2014_x86_64",
        sha256: "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
        bytes: 134_086,
    },
    Wheel {
        name: "nvidia-cuda-cccl",
        version: "13.0.85",
        platform: "manylinux2014_x86_64",
        sha256: "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649",
        bytes: 3_120_526,
    },
];

/// What `libtorch_cuda.so` loads, at once or when it is first needed.
pub(crate) const LIBRARIES: &[&str] = &[
    "torch/lib/libc10.so",
    "torch/lib/libc10_cuda.so",
    "torch/lib/libcaffe2_nvrtc.so",
    "torch/lib/libgomp.so.1",
    "torch/lib/libtorch.so",
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libtorch_cuda.so",
    "torch/lib/libtorch_cuda_linalg.so",
    "torch/lib/libtorch_nvshmem.so",
    "nvidia/cu13/lib/libcublas.so.13",
    "nvidia/cu13/lib/libcublasLt.so.13",
    "nvidia/cu13/lib/libcudart.so.13",
    "nvidia/cu13/lib/libcufft.so.12",
    "nvidia/cu13/lib/libcufile.so.0",
    "nvidia/cu13/lib/libcupti.so.13",
    "nvidia/cu13/lib/libcurand.so.10",
    "nvidia/cu13/lib/libcusolver.so.12",
    "nvidia/cu13/lib/libcusparse.so.12",
    "nvidia/cu13/lib/libnvJitLink.so.13",
    "nvidia/cu13/lib/libnvrtc-builtins.so.13.0",
    "nvidia/cu13/lib/libnvrtc.so.13",
    "nvidia/cudnn/lib/libcudnn.so.9",
    "nvidia/cudnn/lib/libcudnn_adv.so.9",
    "nvidia/cudnn/lib/libcudnn_cnn.so.9",
    "nvidia/cudnn/lib/libcudnn_engines_precompiled.so.9",
    "nvidia/cudnn/lib/libcudnn_engines_runtime_compiled.so.9",
    "nvidia/cudnn/lib/libcudnn_graph.so.9",
    "nvidia/cudnn/lib/libcudnn_heuristic.so.9",
    "nvidia/cudnn/lib/libcudnn_ops.so.9",
    "nvidia/cusparselt/lib/libcusparseLt.so.0",
    NCCL_LIBRARY,
    "nvidia/nvshmem/lib/libnvshmem_host.so.3",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_headers_are_taken_and_nothing_that_a_run_does_not_load() {
        let wanted = CUDA.wanted;
        assert!(LIBRARIES.iter().all(|name| wanted(name)));
        assert!(wanted("nvidia/nccl/include/nccl.h") && wanted("nvidia/cu13/include/crt/host_config.h"));
        for name in [
            "torch/lib/libtorch_python.so",
            "torch/include/ATen/ATen.h",
            "nvidia/cu13/lib/libcudart_static.a",
            "nvidia/cu13/lib/libnvrtc.alt.so.13",
            "nvidia_nccl_cu13-2.29.7.dist-info/RECORD",
        ] {
            assert!(!wanted(name), "{name}");
        }
    }

    #[test]
    fn every_wheel_is_named_once_with_a_whole_hash() {
        for (at, wheel) in WHEELS.iter().enumerate() {
            assert!(WHEELS[..at].iter().all(|other| other.name != wheel.name), "{wheel:?}");
            assert!(
                wheel.sha256.len() == 64 && wheel.sha256.bytes().all(|b| b.is_ascii_hexdigit()),
                "{wheel:?}"
            );
        }
    }
}

//! Opening libtorch's CUDA libraries before anything else: one test in a binary of its own, since the first question to
//! libtorch decides for the process. It says more where the libraries are there (LD_LIBRARY_PATH=ROOT/torch/lib), and
//! does not need a GPU.
#![allow(clippy::unwrap_used, missing_docs)]

use lockstep_autograd::cuda::{CudaLibraries, loaded_libraries, mixed_roots, open_libraries};
use lockstep_autograd::device::settings::{Attention, Products, Settings};
use lockstep_autograd::device::{Cuda, DeviceError};

#[test]
fn libraries_are_opened_once_and_in_time_or_the_reason_is_kept() {
    let opened = open_libraries();
    println!("{opened}");
    assert_eq!(open_libraries(), opened);
    let libraries = loaded_libraries();
    let is_there = |prefix: &str| libraries.iter().any(|(name, _)| name.starts_with(prefix));
    match opened {
        CudaLibraries::Loaded => {
            for prefix in ["libtorch_cuda.so", "libcudart.so", "libnccl.so", "libnvrtc.so"] {
                assert!(is_there(prefix), "{prefix} is not among {libraries:?}");
            }
            assert_eq!(mixed_roots(&libraries), None);
            let settings = Settings {
                products: Products::CublasLt,
                attention: Attention::Flash,
            };
            settings.apply().unwrap();
            let count = Cuda::count().unwrap();
            println!(
                "seen: libtorch's CUDA libraries are loaded, {} in all; {count} devices",
                libraries.len()
            );
            let error = Cuda::open(count).unwrap_err();
            println!("{error}");
            assert!(matches!(error, DeviceError::NoDevice(_)), "{error:?}");
            let why = if count == 0 {
                "NVIDIA driver"
            } else {
                "devices are visible"
            };
            assert!(error.to_string().contains(why), "{error}");
        }
        CudaLibraries::Absent { reason } => {
            assert!(reason.contains("libtorch_cuda.so"), "{reason}");
            assert!(!is_there("libtorch_cuda"), "{libraries:?}");
        }
        CudaLibraries::TooLate => panic!("nothing came before"),
    }
}

//! The settings that decide bits: made, and read back. One test in a binary of its own: they are the whole
//! process's.
#![allow(clippy::unwrap_used, missing_docs)]

use lockstep_autograd::device::DeviceError;
use lockstep_autograd::device::settings::{Attention, Products, Settings, read};

#[test]
fn every_setting_is_read_back_as_it_was_set_and_one_that_cannot_be_kept_is_an_error() {
    let before = read().unwrap();
    for attention in [Attention::Math, Attention::MemoryEfficient, Attention::Flash] {
        let settings = Settings {
            products: Products::Cublas,
            attention,
        };
        settings.apply().unwrap();
        let after = read().unwrap();
        for (name, value) in &after {
            println!("{name} = {value}");
        }
        let expected: Vec<_> = settings
            .expected()
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect();
        assert_eq!(after, expected);
        assert_ne!(after, before, "the defaults of libtorch are not deterministic");
        let kernels = after
            .iter()
            .filter(|(n, v)| n.starts_with("attention_") && v == "true")
            .count();
        assert_eq!(kernels, 1, "one kernel of attention");
    }
    // cuBLASLt exists in the CUDA build only: a setting that libtorch cannot keep is an error.
    if lockstep_autograd::device::Cuda::count().unwrap() == 0 {
        let settings = Settings {
            products: Products::CublasLt,
            attention: Attention::Math,
        };
        let error = settings.apply().unwrap_err();
        assert!(
            matches!(error, DeviceError::Torch { .. } | DeviceError::Settings(_)),
            "{error}"
        );
    }
}

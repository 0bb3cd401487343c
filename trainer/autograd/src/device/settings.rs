//! The settings that decide bits on a GPU: made, read back, and compared with what was asked for.
//!
//! Order: the launcher sets the environment, which [`environment_faults`] checks → `open_libraries` → [`Settings::apply`] →
//! `Cuda::open`. What libtorch reports afterwards ([`read`]) goes into the fingerprint and to `doctor`.

use std::ffi::CStr;

use super::DeviceError;
use super::error::check;
use super::ffi::{lockstep_settings_apply, lockstep_settings_read};

/// The library that makes matrix products. Fixed by the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Products {
    /// cuBLAS.
    Cublas,
    /// cuBLASLt.
    CublasLt,
}

/// The one kernel that attention may use. Fixed by the run; backward of each is deterministic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// Flash attention: bf16 only.
    Flash,
    /// The memory-efficient kernel.
    MemoryEfficient,
    /// Plain products and a softmax.
    Math,
}

/// What a run chooses; all else is fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Who makes products.
    pub products: Products,
    /// Who makes attention.
    pub attention: Attention,
}

impl Settings {
    /// Makes libtorch deterministic for the whole process, and reads every setting back.
    ///
    /// An operation without a deterministic kernel then fails; it never warns.
    pub fn apply(&self) -> Result<(), DeviceError> {
        let attention = match self.attention {
            Attention::Flash => 0,
            Attention::MemoryEfficient => 1,
            Attention::Math => 2,
        };
        // SAFETY: takes two numbers.
        check("Settings::apply", unsafe {
            lockstep_settings_apply(i32::from(self.products == Products::CublasLt), attention)
        })?;
        let found = read()?;
        for (name, wanted) in self.expected() {
            let value = found.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
            if value != Some(wanted) {
                return Err(DeviceError::Settings(format!(
                    "libtorch reports {name} = {}, not {wanted}, after it was set; this libtorch is not one that the run can trust",
                    value.unwrap_or("nothing")
                )));
            }
        }
        Ok(())
    }

    /// What [`read`] gives after [`apply`](Self::apply), in its order.
    pub fn expected(&self) -> Vec<(&'static str, &'static str)> {
        let flag = |value| if value { "true" } else { "false" };
        vec![
            ("deterministic_algorithms", "true"),
            ("deterministic_algorithms_warn_only", "false"),
            ("deterministic_fill_uninitialized_memory", "false"),
            ("deterministic_cudnn", "true"),
            ("benchmark_cudnn", "false"),
            ("tf32_cublas", "false"),
            ("tf32_cudnn", "false"),
            ("float32_precision_cuda_matmul", "ieee"),
            ("fp16_reduction_cublas", "full, split-k"),
            ("bf16_reduction_cublas", "full, split-k"),
            ("fp16_accumulation_cublas", "false"),
            ("fp16_bf16_reduction_math_attention", "false"),
            ("attention_flash", flag(self.attention == Attention::Flash)),
            (
                "attention_memory_efficient",
                flag(self.attention == Attention::MemoryEfficient),
            ),
            ("attention_math", flag(self.attention == Attention::Math)),
            ("attention_cudnn", "false"),
            ("attention_flash_3", "false"),
            (
                "products",
                match self.products {
                    Products::Cublas => "cublas",
                    Products::CublasLt => "cublaslt",
                },
            ),
        ]
    }
}

/// Every setting as (name, value), as libtorch reports it now.
pub fn read() -> Result<Vec<(String, String)>, DeviceError> {
    let mut text = std::ptr::null();
    // SAFETY: the out pointer is valid.
    check("settings::read", unsafe { lockstep_settings_read(&mut text) })?;
    // SAFETY: on success a NUL-terminated string that lives until the next call on this thread.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    Ok(text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

/// A sentence for each variable of `wanted` that `get` does not give as it must be (`None`: it must not be set).
pub fn environment_faults(wanted: &[(&str, Option<&str>)], get: impl Fn(&str) -> Option<String>) -> Vec<String> {
    wanted
        .iter()
        .filter_map(|(name, wanted)| match (get(name).as_deref(), wanted) {
            (found, wanted) if found == *wanted => None,
            (found, Some(wanted)) => Some(format!(
                "the environment has {name} {}; start the process with {name}={wanted}",
                found.map_or("not set".to_owned(), |value| format!("= {value}"))
            )),
            (found, None) => Some(format!(
                "the environment has {name} = {}, which changes results; start the process without it",
                found.unwrap_or_default()
            )),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_missing_or_must_not_be_set_is_named_with_what_to_do() {
        const WANTED: &[(&str, Option<&str>)] = &[("SIZE", Some(":4096:8")), ("OVERRIDE", None)];
        let good = |name: &str| (name == "SIZE").then(|| ":4096:8".to_owned());
        assert_eq!(environment_faults(WANTED, good), Vec::<String>::new());
        let faults = environment_faults(WANTED, |name| (name == "OVERRIDE").then(|| "1".to_owned()));
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].ends_with("SIZE=:4096:8"), "{faults:?}");
        assert!(faults[1].ends_with("without it"), "{faults:?}");
    }
}

//! What tensors of a thread take of the host's memory, counted by libtorch itself, for whoever predicts what a run will take.
//!
//! Way of data: libtorch tells the shim's counter of each piece that the thread takes and gives back → [`TensorBytes::most`].

use std::ffi::c_void;

use crate::AutogradError;
use crate::shim::{check, lockstep_count_tensor_bytes, lockstep_most_tensor_bytes, lockstep_stop_counting};

/// Counts what tensors of this thread take of the host's memory, those of its backward passes among them, while it lives. Tensors
/// over memory that Rust owns take none. It makes each allocation a little slower.
#[derive(Debug)]
pub struct TensorBytes {
    /// The guard of the shim, which belongs to this thread: a raw pointer is not sent to another.
    guard: *mut c_void,
}

impl TensorBytes {
    /// Counts from now on. What was there before is not counted, and better gone: libtorch says so once when it is freed.
    ///
    /// # Errors
    /// libtorch cannot.
    pub fn count() -> Result<TensorBytes, AutogradError> {
        let mut guard = std::ptr::null_mut();
        // SAFETY: the place outlives the call.
        let code = unsafe { lockstep_count_tensor_bytes(&mut guard) };
        check("counting the memory of tensors", code)?;
        Ok(TensorBytes { guard })
    }

    /// The most bytes that were taken at once, since the last call or the beginning.
    pub fn most(&self) -> u64 {
        // SAFETY: reads a number of this thread's counter.
        let most = unsafe { lockstep_most_tensor_bytes() };
        u64::try_from(most).unwrap_or(0)
    }
}

impl Drop for TensorBytes {
    fn drop(&mut self) {
        // SAFETY: the guard is of `count`, on this thread, and is given back once.
        unsafe { lockstep_stop_counting(self.guard) }
    }
}

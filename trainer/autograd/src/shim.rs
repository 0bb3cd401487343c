//! The C functions of `shim.cpp`, and the two callbacks' contexts: boxes of closures that C++ calls and drops. What needs no
//! tensor has its safe face here: the libraries' versions, and subnormal numbers.

use std::ffi::{CStr, c_char, c_int, c_void};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::AutogradError;

pub(crate) type Call = extern "C" fn(*mut c_void) -> c_int;
pub(crate) type Ready = extern "C" fn(*mut c_void, *mut *const c_char) -> c_int;
pub(crate) type Drop = extern "C" fn(*mut c_void);
pub(crate) type Backward = extern "C" fn(*mut c_void, *mut *mut C_tensor, *mut *mut C_tensor) -> c_int;

unsafe extern "C" {
    pub(crate) fn lockstep_last_error() -> *const c_char;
    pub(crate) fn lockstep_last_accelerator_code() -> c_int;
    fn lockstep_library_versions() -> *const c_char;
    fn lockstep_subnormals_are_zero(zero: c_int) -> c_int;
    pub(crate) fn lockstep_count_tensor_bytes(out: *mut *mut c_void) -> c_int;
    pub(crate) fn lockstep_stop_counting(guard: *mut c_void);
    pub(crate) fn lockstep_most_tensor_bytes() -> i64;
    pub(crate) fn lockstep_set_gradient(leaf: *mut C_tensor, slot: *mut C_tensor) -> c_int;
    pub(crate) fn lockstep_set_hook(leaf: *mut C_tensor, call: Ready, drop: Drop, context: *mut c_void) -> c_int;
    pub(crate) fn lockstep_set_gradient_kind_float(leaf: *mut C_tensor) -> c_int;
    pub(crate) fn lockstep_over_memory(
        data: *mut c_void,
        sizes: *const i64,
        dimensions: i64,
        kind: i8,
        device: i8,
        drop: Drop,
        context: *mut c_void,
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn lockstep_custom(
        label: *const c_char,
        inputs: *mut *mut C_tensor,
        n_in: i64,
        outputs: *mut *mut C_tensor,
        n_out: i64,
        backward: Backward,
        drop: Drop,
        context: *mut c_void,
    ) -> c_int;
}

/// The C++ tensor behind a tch tensor; the shim does not take ownership of it.
pub(crate) fn raw(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr().cast_mut()
}

/// The versions of libtorch and of the libraries that make its products, as they name themselves.
pub fn library_versions() -> String {
    // SAFETY: the shim returns a NUL-terminated string of static lifetime, made once.
    unsafe { CStr::from_ptr(lockstep_library_versions()) }
        .to_string_lossy()
        .into_owned()
}

/// Whether this thread, and all that it starts from now on, take subnormal float32 numbers (those below 1.2e-38) for zero, as operands
/// and as results. Returns whether the processor can.
///
/// For the thread that computes, before it starts others that add. Softmax and its gradient are full of such numbers as soon as
/// attention is sharp, processors take some hundred cycles for each, and hardly a sum that holds anything else notices them: a
/// step's backward took ten times as long, for losses that agree to 1e-5 after 900 steps.
///
/// Compilers may take subnormals for what IEEE 754 says, so a constant that is folded could differ from one that is computed. That
/// is the same on all ranks, which run the same program; and nothing here reads subnormals for anything but numbers.
pub fn take_subnormals_for_zero(zero: bool) -> bool {
    // SAFETY: sets two bits of this thread's own floating-point control register.
    unsafe { lockstep_subnormals_are_zero(c_int::from(zero)) == 0 }
}

/// Turns a code of the shim into a result.
pub(crate) fn check(what: &'static str, code: c_int) -> Result<(), AutogradError> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: the shim returns a pointer to a NUL-terminated thread-local string, set by the call that just failed.
    let text = unsafe { CStr::from_ptr(lockstep_last_error()) }
        .to_string_lossy()
        .into_owned();
    Err(AutogradError::Torch { what, text })
}

//! Gradient slots and gradient-ready hooks of leaf tensors.

use std::any::Any;
use std::ffi::{CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use tch::{Kind, Tensor};

use crate::AutogradError;
use crate::shim::{check, lockstep_set_gradient, lockstep_set_gradient_kind_float, lockstep_set_hook, raw};

/// Makes `slot` (float32, the leaf's shape, contiguous) the gradient of `leaf`.
///
/// libtorch then adds each gradient into it in place (AccumulateGrad, case 2.3), also when the leaf is bf16.
pub fn set_gradient_slot(leaf: &Tensor, slot: &Tensor) -> Result<(), AutogradError> {
    if slot.kind() != Kind::Float || slot.size() != leaf.size() || !slot.is_contiguous() || !leaf.is_contiguous() {
        return Err(AutogradError::Shape(format!(
            "a gradient slot must be contiguous float32 of its leaf's shape {:?}, not {:?} of shape {:?}",
            leaf.size(),
            slot.kind(),
            slot.size()
        )));
    }
    // SAFETY: both pointers are live tensors for the length of the call; the shim copies the slot's handle.
    check("set_gradient_slot", unsafe {
        lockstep_set_gradient(raw(leaf), raw(slot))
    })
}

/// Casts each contribution to a bf16 leaf's gradient to float32 before several of them are added.
///
/// Without it libtorch adds the contributions of several uses of one leaf in bf16, where 256 + 1 is 256.
pub fn accumulate_in_float32(leaf: &Tensor) -> Result<(), AutogradError> {
    // SAFETY: the pointer is a live tensor for the length of the call.
    check("accumulate_in_float32", unsafe {
        lockstep_set_gradient_kind_float(raw(leaf))
    })
}

type Ready = Box<dyn Fn() + Send + Sync>;

/// A hook's closure, and why it failed last: no thread-local, since the error comes out of `backward` on another thread
/// than the one that ran the hook.
struct Hook {
    ready: Ready,
    why: Mutex<CString>,
}

extern "C" fn call(context: *mut c_void, why: *mut *const c_char) -> c_int {
    // SAFETY: the context is the `Hook` that `on_gradient_ready` boxed, alive until `drop_ready`.
    let hook = unsafe { &*context.cast::<Hook>() };
    // A panic must not unwind into C++, which would end the process.
    let Err(panic) = catch_unwind(AssertUnwindSafe(&hook.ready)) else {
        return 0;
    };
    let mut text = hook.why.lock().unwrap_or_else(PoisonError::into_inner);
    *text = CString::new(panic_text(panic.as_ref()).replace('\0', " ")).unwrap_or_default();
    // SAFETY: the shim passes a valid place, and copies the text before the hook can run again.
    unsafe { *why = text.as_ptr() };
    1
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic".to_owned())
}

extern "C" fn drop_ready(context: *mut c_void) {
    // SAFETY: called once by the hook's destructor with the box that `on_gradient_ready` leaked to it.
    drop(unsafe { Box::from_raw(context.cast::<Hook>()) });
}

/// Calls `ready` once per backward, when the gradient of `leaf` has been accumulated; also when it was undefined.
///
/// It runs on the thread that runs backward's node: the caller's on CPU, libtorch's autograd thread on GPUs. A panic in
/// it becomes an error of `backward` with its text. It replaces an earlier hook of the leaf.
pub fn on_gradient_ready(leaf: &Tensor, ready: impl Fn() + Send + Sync + 'static) -> Result<(), AutogradError> {
    let hook = Box::new(Hook {
        ready: Box::new(ready),
        why: Mutex::default(),
    });
    // SAFETY: the leaf is live; the context is owned by the C++ hook from here on, which drops it with `drop_ready`.
    check("on_gradient_ready", unsafe {
        lockstep_set_hook(raw(leaf), call, drop_ready, Box::into_raw(hook).cast())
    })
}

//! Custom autograd functions: tensors computed by Rust become outputs of a node whose backward is a Rust closure.

use std::cell::RefCell;
use std::ffi::{CString, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::AutogradError;
use crate::hooks::panic_text;
use crate::shim::{check, lockstep_custom, raw};

type Closure = Box<dyn FnOnce(Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>, TchError>>;

struct Context {
    closure: RefCell<Option<Closure>>,
    /// Where the thread that made the function finds why it failed: backward may run on another one.
    failure: Failure,
    outputs: usize,
    inputs: usize,
}

/// Why the last closure failed: libtorch only carries a fixed text out of backward.
type Failure = Arc<Mutex<Option<String>>>;

thread_local! {
    static FAILURE: Failure = Failure::default();
}

fn held(failure: &Failure) -> MutexGuard<'_, Option<String>> {
    failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Takes the reason of the last failed backward of a function that this thread has made, if there is one.
pub(crate) fn take_failure() -> Option<String> {
    FAILURE.with(|failure| held(failure).take())
}

extern "C" fn backward(context: *mut c_void, gradients: *mut *mut C_tensor, inputs: *mut *mut C_tensor) -> c_int {
    // SAFETY: the context is the one that `custom` boxed, alive until `drop_context`.
    let context = unsafe { &*context.cast::<Context>() };
    let run = || -> Result<Vec<Option<Tensor>>, String> {
        let closure = context
            .closure
            .borrow_mut()
            .take()
            .ok_or("backward ran twice through one node")?;
        let given = (0..context.outputs)
            .map(|i| {
                // SAFETY: the shim passes an array of `outputs` pointers, null or live; a shallow clone is taken.
                unsafe {
                    let at = *gradients.add(i);
                    (!at.is_null()).then(|| Tensor::clone_from_ptr(at))
                }
            })
            .collect();
        let result = closure(given).map_err(|e| e.to_string())?;
        if result.len() != context.inputs {
            return Err(format!("{} gradients for {} inputs", result.len(), context.inputs));
        }
        Ok(result)
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(result)) => {
            for (i, mut tensor) in result.into_iter().enumerate() {
                if let Some(tensor) = &mut tensor {
                    // SAFETY: the shim passes `inputs` places, moves the tensor out and deletes it: the Rust handle
                    // must not free it again, hence the forget below.
                    unsafe { *inputs.add(i) = tensor.as_mut_ptr() };
                }
                std::mem::forget(tensor);
            }
            0
        }
        Ok(Err(text)) => {
            *held(&context.failure) = Some(text);
            1
        }
        Err(panic) => {
            *held(&context.failure) = Some(panic_text(panic.as_ref()));
            1
        }
    }
}

extern "C" fn drop_context(context: *mut c_void) {
    // SAFETY: called once, by the node, with the box that `custom` leaked to it.
    drop(unsafe { Box::from_raw(context.cast::<Context>()) });
}

/// Makes `outputs` (freshly computed without a graph) the results of a function of `inputs`.
///
/// In backward, `closure` gets the gradient of each output (`None` where none flows) and returns one for each input;
/// `None` for an input means "nothing to add": the closure may have written into the gradient slot itself, and the
/// leaf's ready hook still fires. `label` names the function in errors. Runs once; what it captures is freed with the
/// graph. The closure runs with grad mode off.
pub fn custom(
    label: &str,
    inputs: &[&Tensor],
    outputs: &[&Tensor],
    closure: impl FnOnce(Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>, TchError> + 'static,
) -> Result<(), AutogradError> {
    let label = CString::new(label).map_err(|_| AutogradError::Shape("a label holds a NUL byte".to_owned()))?;
    let mut ins: Vec<_> = inputs.iter().map(|t| raw(t)).collect();
    let mut outs: Vec<_> = outputs.iter().map(|t| raw(t)).collect();
    let context = Box::new(Context {
        closure: RefCell::new(Some(Box::new(closure))),
        failure: FAILURE.with(Arc::clone),
        outputs: outs.len(),
        inputs: ins.len(),
    });
    // SAFETY: all tensors are live for the call; the node owns the context from here on, also when the call fails.
    check("custom", unsafe {
        lockstep_custom(
            label.as_ptr(),
            ins.as_mut_ptr(),
            ins.len() as i64,
            outs.as_mut_ptr(),
            outs.len() as i64,
            backward,
            drop_context,
            Box::into_raw(context).cast(),
        )
    })
}

/// Runs backward from a scalar; the error carries what a failed closure said.
pub fn run_backward(loss: &Tensor) -> Result<(), AutogradError> {
    take_failure();
    loss.f_backward().map_err(|e| AutogradError::Torch {
        what: "backward",
        text: match take_failure() {
            Some(text) => text,
            None => e
                .to_string()
                .split("\nException raised from")
                .next()
                .unwrap_or_default()
                .to_owned(),
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tch::Kind;

    use super::*;

    #[test]
    fn the_thread_that_made_a_function_learns_why_its_backward_failed_on_another() {
        let x = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
        let y = tch::no_grad(|| &x * 1.0);
        custom("bad", &[&x], &[&y], |_| {
            Err(TchError::Kind("the very reason".to_owned()))
        })
        .unwrap();
        let loss = y.sum(Kind::Float);
        let elsewhere = std::thread::spawn(move || (loss.f_backward().is_err(), take_failure()));
        assert_eq!(elsewhere.join().unwrap(), (true, None));
        assert!(take_failure().unwrap().contains("the very reason"));
    }
}

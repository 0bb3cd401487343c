//! What can go wrong with a device, by the kind of exception that libtorch threw.

use std::ffi::{CStr, c_int};

use tch::TchError;

use crate::shim::{lockstep_last_accelerator_code, lockstep_last_error};

/// What went wrong with an accelerator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The device, or pinned memory, has no room left. The process can go on.
    #[error("no memory left, in {what}: {text}; see the memory account of the run, and lower what it names")]
    OutOfMemory {
        /// What was being done.
        what: &'static str,
        /// libtorch's words.
        text: String,
    },
    /// The accelerator failed, with its own number.
    #[error("the device failed with code {code}, in {what}: {text}")]
    Accelerator {
        /// What was being done.
        what: &'static str,
        /// The number of the accelerator's interface (for CUDA: cudaError).
        code: i32,
        /// libtorch's words.
        text: String,
    },
    /// libtorch refused.
    #[error("libtorch, in {what}: {text}")]
    Torch {
        /// What was being done.
        what: &'static str,
        /// libtorch's words.
        text: String,
    },
    /// An exception of another library.
    #[error("an exception, in {what}: {text}")]
    Exception {
        /// What was being done.
        what: &'static str,
        /// Its words.
        text: String,
    },
    /// There is no such device.
    #[error("{0}")]
    NoDevice(String),
    /// A token of a record was used after its event had been recorded again.
    #[error(
        "the token of {event} at step {step} is out of date: the event has since been recorded at step {now}, so a wait would mean another moment; a token must be used before its event is recorded again"
    )]
    OutOfDate {
        /// The event's name.
        event: String,
        /// The step of the token.
        step: u64,
        /// The step of the event's last record.
        now: u64,
    },
    /// A mark of the compute stream was asked for by a thread that gives its work to another one.
    #[error(
        "work that the compute stream should have was given to another stream: a stream was left current in the forward pass, so a mark would not hold what it is for"
    )]
    NotCompute,
    /// A mark of another device.
    #[error("a mark of another device was to be waited for; ranks of one process must not share marks")]
    ForeignMark,
    /// A tensor does not fit.
    #[error("{0}")]
    Shape(String),
    /// A setting did not take.
    #[error("{0}")]
    Settings(String),
}

impl DeviceError {
    /// The error of a call of tch: memory that ran out is told apart, and the C++ backtrace is cut off.
    pub fn of_tch(what: &'static str, error: &TchError) -> DeviceError {
        let whole = error.to_string();
        let text = whole
            .split("\nException raised from")
            .next()
            .unwrap_or_default()
            .to_owned();
        if text.contains("out of memory") {
            DeviceError::OutOfMemory { what, text }
        } else {
            DeviceError::Torch { what, text }
        }
    }

    /// Whether the device's context is lost for this process (illegal address 700, assertion 710, launch failure 719):
    /// then report, and leave the process at once.
    pub fn context_is_lost(&self) -> bool {
        matches!(
            self,
            DeviceError::Accelerator {
                code: 700 | 710 | 719,
                ..
            }
        )
    }
}

/// Turns a code of the C++ side into a result.
pub(crate) fn check(what: &'static str, code: c_int) -> Result<(), DeviceError> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: a pointer to a NUL-terminated thread-local string, set by the call that just failed on this thread.
    let text = unsafe { CStr::from_ptr(lockstep_last_error()) }
        .to_string_lossy()
        .into_owned();
    Err(match code {
        2 => DeviceError::OutOfMemory { what, text },
        3 => DeviceError::Accelerator {
            what,
            // SAFETY: reads a thread-local number.
            code: unsafe { lockstep_last_accelerator_code() },
            text,
        },
        4 => DeviceError::Torch { what, text },
        _ => DeviceError::Exception { what, text },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_ran_out_in_tch_is_told_apart_and_the_backtrace_is_cut() {
        let long = "CUDA out of memory. Tried to allocate 2.00 GiB.\nException raised from malloc at x.cpp:1\nframe #0";
        let error = DeviceError::of_tch("forward", &TchError::Torch(long.to_owned()));
        let DeviceError::OutOfMemory { what, text } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(*what, "forward");
        assert!(
            text.contains("2.00 GiB") && !text.contains("Exception raised"),
            "{text}"
        );
        let error = DeviceError::of_tch("forward", &TchError::Torch("shapes differ".to_owned()));
        assert!(matches!(error, DeviceError::Torch { .. }), "{error:?}");
    }

    #[test]
    fn only_errors_that_lose_the_context_end_the_process() {
        let of = |code| DeviceError::Accelerator {
            what: "a test",
            code,
            text: String::new(),
        };
        assert!(of(700).context_is_lost() && of(719).context_is_lost());
        assert!(!of(2).context_is_lost());
    }
}

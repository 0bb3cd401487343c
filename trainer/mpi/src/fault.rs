//! Return codes of MPI, as errors in MPI's own words.

use std::ffi::c_int;

use lockstep_collective::CollectiveError;
use mpi::ffi;

/// An error unless `code` says success; `peer` is the rank that the call was about.
pub(crate) fn check(call: &'static str, code: c_int, peer: Option<u32>) -> Result<(), CollectiveError> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let words = words_of(code);
    Err(failed(
        call,
        match peer {
            Some(rank) => format!("{words} (with rank {rank})"),
            None => words,
        },
    ))
}

/// MPI could not do `call`.
pub(crate) fn failed(call: &'static str, why: impl Into<String>) -> CollectiveError {
    CollectiveError::Library {
        library: "MPI",
        call,
        why: why.into(),
    }
}

fn words_of(code: c_int) -> String {
    let mut text = [0u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length = 0;
    // SAFETY: the buffer has the length that MPI promises to keep to.
    let result = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut length) };
    if result != ffi::MPI_SUCCESS as c_int {
        return format!("error {code}, for which MPI has no words");
    }
    let length = usize::try_from(length).unwrap_or(0).min(text.len());
    String::from_utf8_lossy(&text[..length]).trim().to_owned()
}

//! What can go wrong, in sentences for people and in types for programs.
//!
//! Two kinds: what the library answered ([`Error::Nccl`], with its code and its own words), and what this crate refused
//! before the library was called. After an error of a communicator's call only `abort` is left to do with it.

use std::ffi::c_int;
use std::path::PathBuf;

use crate::raw;

/// The failures of `ncclResult_t`, by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// 1: a call of CUDA failed, or there is no driver.
    UnhandledCuda,
    /// 2: a call of the operating system failed.
    System,
    /// 3: a fault inside NCCL, or damaged memory.
    Internal,
    /// 4: a bad argument, or a communicator used before it was ready.
    InvalidArgument,
    /// 5: calls that do not go together, or a machine that is set up wrongly.
    InvalidUsage,
    /// 6: another rank has failed, or the network to it.
    Remote,
    /// A value that this version of the binding does not know.
    Unknown(c_int),
}

impl Code {
    /// The failure with this number; `None` for success and "in progress", which are none.
    pub(crate) fn of(code: raw::ResultCode) -> Option<Code> {
        Some(match code {
            raw::SUCCESS | raw::IN_PROGRESS => return None,
            raw::UNHANDLED_CUDA_ERROR => Code::UnhandledCuda,
            raw::SYSTEM_ERROR => Code::System,
            raw::INTERNAL_ERROR => Code::Internal,
            raw::INVALID_ARGUMENT => Code::InvalidArgument,
            raw::INVALID_USAGE => Code::InvalidUsage,
            raw::REMOTE_ERROR => Code::Remote,
            other => Code::Unknown(other),
        })
    }

    /// Its number in `ncclResult_t`.
    ///
    /// ```
    /// assert_eq!(nccl_rs::Code::InvalidUsage.number(), 5);
    /// ```
    pub fn number(self) -> c_int {
        match self {
            Code::UnhandledCuda => raw::UNHANDLED_CUDA_ERROR,
            Code::System => raw::SYSTEM_ERROR,
            Code::Internal => raw::INTERNAL_ERROR,
            Code::InvalidArgument => raw::INVALID_ARGUMENT,
            Code::InvalidUsage => raw::INVALID_USAGE,
            Code::Remote => raw::REMOTE_ERROR,
            Code::Unknown(code) => code,
        }
    }
}

/// An error of this crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The library could not be opened.
    #[error("NCCL cannot be opened as {}: {reason}; the CUDA build of libtorch brings libnccl.so.2 with it", path.display())]
    NoLibrary {
        /// The file or soname that was tried.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// The library has not all that this binding calls.
    #[error("{} has no {symbol}, so it is not NCCL 2.29 or newer: {reason}", path.display())]
    NoSymbol {
        /// The file or soname that was opened.
        path: PathBuf,
        /// The first C function that is missing.
        symbol: &'static str,
        /// What the loader said.
        reason: String,
    },
    /// The library is too old, or of another major version.
    #[error("NCCL {found} was loaded, and 2.29.7 or a newer 2.x is needed")]
    Version {
        /// What was found.
        found: crate::Version,
    },
    /// The library answered with a failure.
    #[error("{call} failed: {text} ({}){}", code.number(), if detail.is_empty() { String::new() } else { format!(": {detail}") })]
    Nccl {
        /// What kind of failure.
        code: Code,
        /// The C function.
        call: &'static str,
        /// `ncclGetErrorString`.
        text: String,
        /// `ncclGetLastError`, which may be about an earlier failure of this process; empty where there is none.
        detail: String,
    },
    /// The communicator was aborted or destroyed.
    #[error("{call} was asked of a communicator that is gone: it was {how}; make a new one")]
    Gone {
        /// The C function that was not called.
        call: &'static str,
        /// "aborted" or "destroyed".
        how: &'static str,
    },
    /// An earlier call failed, so the communicator can only be aborted.
    #[error(
        "{call} was asked of a communicator that has failed and can only be aborted; the first failure was: {reason}"
    )]
    Failed {
        /// The C function that was not called.
        call: &'static str,
        /// The first failure, in words.
        reason: String,
    },
    /// The previous operation is not through yet.
    #[error("{call} came before the previous operation was through; poll `async_state` until it says `Ready`")]
    InProgress {
        /// The C function that was not called.
        call: &'static str,
    },
    /// The communicator was finalized and takes no more work.
    #[error("{call} was asked of a communicator that is finalized; it can only be destroyed")]
    Finalized {
        /// The C function that was not called.
        call: &'static str,
    },
    /// A call that must stand outside of a group came within one of this thread.
    #[error("{call} cannot be called inside of a group; call it after the group's end")]
    InsideGroup {
        /// The C function that was not called.
        call: &'static str,
    },
    /// More bytes than an address space has.
    #[error("{call}: {count} elements of {bytes} bytes for {blocks} ranks are more than an address space holds")]
    CountOverflow {
        /// The C function that was not called.
        call: &'static str,
        /// Elements of one block.
        count: usize,
        /// Bytes of one element.
        bytes: usize,
        /// Blocks, one a rank.
        blocks: usize,
    },
    /// The memory is smaller than the operation needs.
    #[error("{call}: the {which} buffer has {has} bytes and {needs} are needed")]
    BufferTooSmall {
        /// The C function that was not called.
        call: &'static str,
        /// "send" or "receive".
        which: &'static str,
        /// Its length, in bytes.
        has: usize,
        /// What the operation reads or writes, in bytes.
        needs: usize,
    },
    /// A rank outside of the communicator.
    #[error("{call}: rank {rank} is not one of the {ranks} ranks, 0 to {}", ranks.saturating_sub(1))]
    NoSuchRank {
        /// The C function that was not called.
        call: &'static str,
        /// The rank that was named.
        rank: u32,
        /// Ranks there are.
        ranks: u32,
    },
    /// An id of the wrong length.
    #[error("the communicator id has {found} bytes where NCCL's has 128; every rank needs the same build")]
    IdLength {
        /// Bytes given.
        found: usize,
    },
    /// A text of the configuration that C cannot carry.
    #[error("{setting} of the communicator contains a zero byte: {text:?}")]
    ConfigText {
        /// The setting.
        setting: &'static str,
        /// The text.
        text: String,
    },
    /// The environment overrides what the communicator is made for.
    #[error(
        "NCCL_COMM_BLOCKING is set to {value:?} in the environment and would override the non-blocking communicator; unset it"
    )]
    BlockingFromEnvironment {
        /// Its value.
        value: String,
    },
    /// A registration or a library of another communicator.
    #[error("{call}: {what} belongs to another communicator or library")]
    Foreign {
        /// The C function that was not called.
        call: &'static str,
        /// What does not belong.
        what: &'static str,
    },
    /// There is no split to take.
    #[error("there is no finished split to take; call `split` and poll `async_state` until it says `Ready`")]
    NoSplit,
}

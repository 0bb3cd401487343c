//! The C side as nccl.h of 2.29.7 has it: types, constants, and nothing else. For the binding itself, for test doubles
//! and for programs that check a library; ordinary callers need none of it.
//!
//! `tests/layout.rs` holds every size, offset and value against what a C compiler printed with the real header.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// `struct ncclComm`: only its address means something.
#[repr(C)]
pub struct Comm {
    _opaque: [u8; 0],
}

/// `ncclComm_t`.
pub type CommHandle = *mut Comm;

/// `cudaStream_t`: an address that only CUDA looks behind.
pub type StreamHandle = *mut c_void;

/// `ncclResult_t` as it crosses the border: any value of a C `int` may come back.
pub type ResultCode = c_int;

/// `ncclUniqueId`, passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId {
    /// The address of a listener in the process that made it, and a random number.
    pub internal: [c_char; UNIQUE_ID_BYTES],
}

/// `ncclConfig_t` (`struct ncclConfig_v22800`).
#[repr(C)]
#[derive(Clone, Copy)]
#[expect(
    non_snake_case,
    reason = "the header's own field names, which its documentation uses"
)]
#[expect(
    missing_docs,
    reason = "the names of nccl.h; `crate::Config` says what each one does"
)]
pub struct Config {
    pub size: usize,
    pub magic: c_uint,
    pub version: c_uint,
    pub blocking: c_int,
    pub cgaClusterSize: c_int,
    pub minCTAs: c_int,
    pub maxCTAs: c_int,
    pub netName: *const c_char,
    pub splitShare: c_int,
    pub trafficClass: c_int,
    pub commName: *const c_char,
    pub collnetEnable: c_int,
    pub CTAPolicy: c_int,
    pub shrinkShare: c_int,
    pub nvlsCTAs: c_int,
    pub nChannelsPerNetPeer: c_int,
    pub nvlinkCentricSched: c_int,
    pub graphUsageMode: c_int,
    pub numRmaCtx: c_int,
}

/// `NCCL_VERSION_CODE` of the header that this binding follows. The library resets what is newer than the version that
/// a configuration names, so a newer library is used with this layout too.
pub const VERSION_CODE: c_int = 22907;
/// `NCCL_UNIQUE_ID_BYTES`.
pub const UNIQUE_ID_BYTES: usize = 128;
/// `NCCL_API_MAGIC`.
pub const API_MAGIC: c_uint = 0xcafe_beef;
/// `NCCL_CONFIG_UNDEF_INT`.
pub const UNDEFINED: c_int = c_int::MIN;
/// `NCCL_SPLIT_NOCOLOR`.
pub const NO_COLOUR: c_int = -1;

/// `ncclSuccess`.
pub const SUCCESS: ResultCode = 0;
/// `ncclUnhandledCudaError`.
pub const UNHANDLED_CUDA_ERROR: ResultCode = 1;
/// `ncclSystemError`.
pub const SYSTEM_ERROR: ResultCode = 2;
/// `ncclInternalError`.
pub const INTERNAL_ERROR: ResultCode = 3;
/// `ncclInvalidArgument`.
pub const INVALID_ARGUMENT: ResultCode = 4;
/// `ncclInvalidUsage`.
pub const INVALID_USAGE: ResultCode = 5;
/// `ncclRemoteError`.
pub const REMOTE_ERROR: ResultCode = 6;
/// `ncclInProgress`.
pub const IN_PROGRESS: ResultCode = 7;

impl Config {
    /// `NCCL_CONFIG_INITIALIZER`: every setting left to the library.
    pub const fn unset() -> Config {
        Config {
            size: size_of::<Config>(),
            magic: API_MAGIC,
            version: VERSION_CODE as c_uint,
            blocking: UNDEFINED,
            cgaClusterSize: UNDEFINED,
            minCTAs: UNDEFINED,
            maxCTAs: UNDEFINED,
            netName: std::ptr::null(),
            splitShare: UNDEFINED,
            trafficClass: UNDEFINED,
            commName: std::ptr::null(),
            collnetEnable: UNDEFINED,
            CTAPolicy: UNDEFINED,
            shrinkShare: UNDEFINED,
            nvlsCTAs: UNDEFINED,
            nChannelsPerNetPeer: UNDEFINED,
            nvlinkCentricSched: UNDEFINED,
            graphUsageMode: UNDEFINED,
            numRmaCtx: UNDEFINED,
        }
    }
}

//! The C functions, resolved when the library is opened: a missing one is an error with its name, never a surprise later.

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;

use libloading::os::unix::Library;

use crate::error::Error;
use crate::raw::{CommHandle, Config, ResultCode, StreamHandle, UniqueId};

macro_rules! functions {
    ($($field:ident = $symbol:ident($($argument:ty),*) -> $answer:ty;)*) => {
        /// The functions of one opened library, which stays open for the rest of the process.
        pub(crate) struct Api {
            $(pub(crate) $field: unsafe extern "C" fn($($argument),*) -> $answer,)*
        }

        /// Name, arguments and answer of every function, as they stand here.
        #[cfg(test)]
        const DECLARED: &[(&str, &[&str], &str)] = &[
            $((stringify!($symbol), &[$(stringify!($argument)),*], stringify!($answer)),)*
        ];

        impl Api {
            /// Finds every function in `library`; `path` is what it was opened as.
            pub(crate) fn resolve(library: &Library, path: &Path) -> Result<Api, Error> {
                Ok(Api {
                    $($field: {
                        let name = concat!(stringify!($symbol), "\0");
                        // SAFETY: the type is the one that nccl.h declares for this name; the caller never closes
                        // the library, so the address stays good.
                        let found = unsafe {
                            library.get::<unsafe extern "C" fn($($argument),*) -> $answer>(name.as_bytes())
                        };
                        *found.map_err(|error| Error::NoSymbol {
                            path: path.to_path_buf(),
                            symbol: stringify!($symbol),
                            reason: crate::library::whole_reason(&error),
                        })?
                    },)*
                })
            }
        }
    };
}

functions! {
    get_unique_id = ncclGetUniqueId(*mut UniqueId) -> ResultCode;
    error_string = ncclGetErrorString(ResultCode) -> *const c_char;
    last_error = ncclGetLastError(CommHandle) -> *const c_char;
    mem_alloc = ncclMemAlloc(*mut *mut c_void, usize) -> ResultCode;
    mem_free = ncclMemFree(*mut c_void) -> ResultCode;

    init = ncclCommInitRankConfig(*mut CommHandle, c_int, UniqueId, c_int, *mut Config) -> ResultCode;
    split = ncclCommSplit(CommHandle, c_int, c_int, *mut CommHandle, *mut Config) -> ResultCode;
    finalize = ncclCommFinalize(CommHandle) -> ResultCode;
    destroy = ncclCommDestroy(CommHandle) -> ResultCode;
    abort = ncclCommAbort(CommHandle) -> ResultCode;
    async_error = ncclCommGetAsyncError(CommHandle, *mut ResultCode) -> ResultCode;
    count = ncclCommCount(CommHandle, *mut c_int) -> ResultCode;
    device = ncclCommCuDevice(CommHandle, *mut c_int) -> ResultCode;
    user_rank = ncclCommUserRank(CommHandle, *mut c_int) -> ResultCode;
    mem_stats = ncclCommMemStats(CommHandle, c_int, *mut u64) -> ResultCode;
    register = ncclCommRegister(CommHandle, *mut c_void, usize, *mut *mut c_void) -> ResultCode;
    deregister = ncclCommDeregister(CommHandle, *mut c_void) -> ResultCode;

    group_start = ncclGroupStart() -> ResultCode;
    group_end = ncclGroupEnd() -> ResultCode;
    send = ncclSend(*const c_void, usize, c_int, c_int, CommHandle, StreamHandle) -> ResultCode;
    recv = ncclRecv(*mut c_void, usize, c_int, c_int, CommHandle, StreamHandle) -> ResultCode;
    broadcast = ncclBroadcast(*const c_void, *mut c_void, usize, c_int, c_int, CommHandle, StreamHandle) -> ResultCode;
    reduce = ncclReduce(*const c_void, *mut c_void, usize, c_int, c_int, c_int, CommHandle, StreamHandle) -> ResultCode;
    all_reduce = ncclAllReduce(*const c_void, *mut c_void, usize, c_int, c_int, CommHandle, StreamHandle) -> ResultCode;
    reduce_scatter = ncclReduceScatter(*const c_void, *mut c_void, usize, c_int, c_int, CommHandle, StreamHandle) -> ResultCode;
    all_gather = ncclAllGather(*const c_void, *mut c_void, usize, c_int, CommHandle, StreamHandle) -> ResultCode;
    all_to_all = ncclAlltoAll(*const c_void, *mut c_void, usize, c_int, CommHandle, StreamHandle) -> ResultCode;
    gather = ncclGather(*const c_void, *mut c_void, usize, c_int, c_int, CommHandle, StreamHandle) -> ResultCode;
    scatter = ncclScatter(*const c_void, *mut c_void, usize, c_int, c_int, CommHandle, StreamHandle) -> ResultCode;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A type as the golden text writes it. Enums are C ints there and here.
    fn in_c(rust: &str) -> String {
        let (stars, name) = match rust {
            _ if rust.starts_with("*mut *mut ") => (" **", &rust[10..]),
            _ if rust.starts_with("*mut ") => (" *", &rust[5..]),
            _ if rust.starts_with("*const ") => (" *", &rust[7..]),
            _ => ("", rust),
        };
        let name = match name {
            "c_void" => "void",
            "c_char" => "char",
            "c_int" | "ResultCode" => "int",
            "usize" => "size_t",
            "u64" => "uint64_t",
            "CommHandle" => "ncclComm_t",
            "StreamHandle" => "cudaStream_t",
            "UniqueId" => "ncclUniqueId",
            "Config" => "ncclConfig_t",
            other => panic!("{other} has no name in C here"),
        };
        let constant = if rust.starts_with("*const ") { "const " } else { "" };
        format!("{constant}{name}{stars}")
    }

    #[test]
    fn every_function_is_declared_as_in_the_header() {
        let golden: BTreeSet<String> = include_str!("../tests/layout/layout-2.29.7.txt")
            .lines()
            .filter_map(|line| line.strip_prefix("function "))
            .map(|line| {
                let declared = line.strip_suffix(" 1").expect("the header declares it so");
                ["ncclDataType_t", "ncclRedOp_t", "ncclCommMemStat_t", "ncclResult_t"]
                    .iter()
                    .fold(declared.to_owned(), |line, name| line.replace(name, "int"))
            })
            .collect();
        let mut believed: BTreeSet<String> = DECLARED
            .iter()
            .map(|(name, arguments, answer)| {
                assert!(matches!(*answer, "ResultCode" | "*const c_char"), "{name}");
                let arguments: Vec<String> = arguments.iter().map(|argument| in_c(argument)).collect();
                match arguments.as_slice() {
                    [] => format!("{name}(void)"),
                    arguments => format!("{name}({})", arguments.join(", ")),
                }
            })
            .collect();
        // Asked for before the others, in `library`.
        believed.insert("ncclGetVersion(int *)".into());
        assert_eq!(believed, golden);
    }
}

//! The real libnccl, as far as it runs without a GPU: loading, versions, ids, and how it refuses. `cargo xtask check-gpu`
//! fetches it and runs these; by hand: `LOCKSTEP_NCCL_LIBRARY=FILE cargo test -p nccl-rs --test real -- --ignored`.
#![allow(clippy::unwrap_used)]

use std::ffi::{c_int, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use libloading::os::unix::Library;
use nccl_rs::raw::{self, CommHandle, ResultCode, StreamHandle};
use nccl_rs::{Code, Communicator, Config, DataType, Error, Nccl};

const FILE: &str = "LOCKSTEP_NCCL_LIBRARY";

/// The library has one last error for the whole process.
static LAST_ERROR: Mutex<()> = Mutex::new(());

fn file() -> PathBuf {
    std::env::var_os(FILE).map_or_else(|| panic!("{FILE} names no file"), PathBuf::from)
}

fn nccl() -> Nccl {
    Nccl::open(file()).unwrap()
}

/// The same library again, for what the binding's types make impossible.
fn library() -> Library {
    // SAFETY: the file is NCCL, which `nccl` has opened already and for good.
    unsafe { Library::open(Some(file()), libloading::os::unix::RTLD_NOW) }.unwrap()
}

#[test]
#[ignore = "needs LOCKSTEP_NCCL_LIBRARY, the file of a real libnccl.so.2"]
fn it_has_every_function_and_a_version_that_is_taken() {
    let nccl = nccl();
    assert_eq!(nccl.version().parts().0, 2);
    assert!(nccl.version().code() >= raw::VERSION_CODE, "{}", nccl.version());
    println!("NCCL {} from {}", nccl.version(), file().display());
}

#[test]
#[ignore = "needs LOCKSTEP_NCCL_LIBRARY, the file of a real libnccl.so.2"]
fn two_ids_differ() {
    let nccl = nccl();
    let (first, second) = (nccl.unique_id().unwrap(), nccl.unique_id().unwrap());
    assert_ne!(first, second);
    assert_ne!(first.to_bytes(), [0; 128]);
}

#[test]
#[ignore = "needs LOCKSTEP_NCCL_LIBRARY, the file of a real libnccl.so.2"]
fn without_a_driver_a_beginning_is_an_error_of_cuda_and_leaves_no_handle() {
    if std::path::Path::new("/proc/driver/nvidia").exists() {
        println!("this machine has a driver, so this says nothing");
        return;
    }
    let _alone = LAST_ERROR.lock();
    let nccl = nccl();
    let id = nccl.unique_id().unwrap();
    let config = Config::new().non_blocking().name("real").unwrap();
    let error = Communicator::init(&nccl, 1, &id, 0, &config).unwrap_err();
    let Error::Nccl {
        code,
        call,
        text,
        detail,
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!((*code, *call), (Code::UnhandledCuda, "ncclCommInitRankConfig"));
    assert!(text.contains("unhandled cuda error"), "{error}");
    assert!(detail.contains("CUDA driver version is insufficient"), "{error}");
    println!("{error}");

    // The handle, which the binding does not show.
    type Init = unsafe extern "C" fn(*mut CommHandle, c_int, raw::UniqueId, c_int, *mut raw::Config) -> ResultCode;
    let library = library();
    let mut handle: CommHandle = std::ptr::null_mut();
    let mut config = raw::Config::unset();
    config.blocking = 0;
    let id = raw::UniqueId {
        internal: id.to_bytes().map(u8::cast_signed),
    };
    // SAFETY: the type that nccl.h declares; handle and configuration live for the call.
    let answer = unsafe {
        let init = library.get::<Init>(b"ncclCommInitRankConfig\0").unwrap();
        init(&raw mut handle, 1, id, 0, &raw mut config)
    };
    assert_eq!((answer, handle.is_null()), (raw::UNHANDLED_CUDA_ERROR, true));
}

#[test]
#[ignore = "needs LOCKSTEP_NCCL_LIBRARY, the file of a real libnccl.so.2"]
fn a_send_on_null_is_refused_with_its_reason() {
    type Send = unsafe extern "C" fn(*const c_void, usize, c_int, c_int, CommHandle, StreamHandle) -> ResultCode;
    let _alone = LAST_ERROR.lock();
    let (nccl, library) = (nccl(), library());
    let memory = [0u8; 4];
    // SAFETY: the type that nccl.h declares; it refuses before it reads anything.
    let answer = unsafe {
        let send = library.get::<Send>(b"ncclSend\0").unwrap();
        let (null, kind) = (std::ptr::null_mut(), DataType::Uint8 as c_int);
        send(memory.as_ptr().cast(), 4, kind, 0, null, std::ptr::null_mut())
    };
    assert_eq!(answer, raw::INVALID_ARGUMENT);
    let reason = nccl.last_error();
    assert!(reason.contains("Send : comm argument is NULL"), "{reason}");
}

#[test]
#[ignore = "needs LOCKSTEP_NCCL_LIBRARY, the file of a real libnccl.so.2"]
fn null_and_empty_groups_are_harmless() {
    type OfHandle = unsafe extern "C" fn(CommHandle) -> ResultCode;
    type OfNothing = unsafe extern "C" fn() -> ResultCode;
    let library = library();
    // SAFETY: the types that nccl.h declares; null is allowed to abort and destroy.
    let answers = unsafe {
        let abort = library.get::<OfHandle>(b"ncclCommAbort\0").unwrap();
        let destroy = library.get::<OfHandle>(b"ncclCommDestroy\0").unwrap();
        let start = library.get::<OfNothing>(b"ncclGroupStart\0").unwrap();
        let end = library.get::<OfNothing>(b"ncclGroupEnd\0").unwrap();
        let null = std::ptr::null_mut();
        [abort(null), destroy(null), start(), end()]
    };
    assert_eq!(answers, [raw::SUCCESS; 4]);
    Communicator::abort_all(&mut []).unwrap();
}

#[test]
#[ignore = "needs LOCKSTEP_NCCL_LIBRARY, the file of a real libnccl.so.2"]
fn every_failure_has_words() {
    let nccl = nccl();
    for code in [
        Code::UnhandledCuda,
        Code::System,
        Code::Internal,
        Code::InvalidArgument,
        Code::InvalidUsage,
        Code::Remote,
    ] {
        let words = nccl.error_string(code);
        assert!(
            !words.is_empty() && words != nccl.error_string(Code::Unknown(99)),
            "{code:?}: {words}"
        );
    }
}

/// NCCL looks for its network once in a process, so each environment needs its own.
#[test]
#[ignore = "needs LOCKSTEP_NCCL_LIBRARY, the file of a real libnccl.so.2"]
fn without_a_network_interface_an_id_is_invalid_usage() {
    const CHILD: &str = "LOCKSTEP_NCCL_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let error = nccl().unique_id().unwrap_err();
        assert!(
            matches!(
                &error,
                Error::Nccl {
                    code: Code::InvalidUsage,
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains("no socket interface found"), "{error}");
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "without_a_network_interface_an_id_is_invalid_usage",
        ])
        .env(CHILD, "1")
        .env("NCCL_SOCKET_IFNAME", "none0")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && told.contains("1 passed"), "{told}");
}

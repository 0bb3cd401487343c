//! NCCL's functions, under its names. `nccl.h` of 2.29.7 says what each one takes; what cannot be here is refused with
//! NCCL's own codes.
#![expect(
    clippy::missing_safety_doc,
    missing_docs,
    reason = "the contract of each is that of the function of NCCL whose name it has"
)]

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};

use nccl_rs::raw::{self, CommHandle, Config, ResultCode, StreamHandle, UniqueId};
use nccl_rs::{DataType, Reduction};

use crate::operation::{Call, Operation};
use crate::state::lock;
use crate::{group, life, split};

thread_local! {
    /// The device that is current on this thread.
    pub(crate) static DEVICE: Cell<c_int> = const { Cell::new(0) };
}

/// What each communicator is said to hold of the device, in bytes.
const HELD: u64 = 1 << 20;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> ResultCode {
    // SAFETY: the caller gives a place for one int.
    unsafe { version.write(raw::VERSION_CODE) };
    raw::SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> ResultCode {
    let made = lock().new_id();
    let made = UniqueId {
        internal: made.map(u8::cast_signed),
    };
    // SAFETY: the caller gives a place for one id.
    unsafe { id.write(made) };
    raw::SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(result: ResultCode) -> *const c_char {
    let text = match result {
        raw::SUCCESS => c"no error",
        raw::UNHANDLED_CUDA_ERROR => c"unhandled cuda error (the double)",
        raw::SYSTEM_ERROR => c"unhandled system error (the double)",
        raw::INTERNAL_ERROR => c"internal error (the double)",
        raw::INVALID_ARGUMENT => c"invalid argument (the double)",
        raw::INVALID_USAGE => c"invalid usage (the double)",
        raw::REMOTE_ERROR => c"remote process exited or there was a network error (the double)",
        raw::IN_PROGRESS => c"NCCL operation in progress",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_communicator: CommHandle) -> *const c_char {
    // The text stays, also when the next failure has replaced it. Failures are few.
    lock().last_errors.last().map_or(c"".as_ptr(), |text| text.as_ptr())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclMemAlloc(address: *mut *mut c_void, bytes: usize) -> ResultCode {
    let Ok(layout) = std::alloc::Layout::from_size_align(bytes.max(1), 4096) else {
        return lock().refuse(raw::UNHANDLED_CUDA_ERROR, "out of memory");
    };
    // SAFETY: the layout is not of size zero.
    let made = unsafe { std::alloc::alloc_zeroed(layout) };
    if made.is_null() {
        return lock().refuse(raw::UNHANDLED_CUDA_ERROR, "out of memory");
    }
    lock().allocations.insert(made.expose_provenance(), layout);
    // SAFETY: the caller gives a place for one pointer.
    unsafe { address.write(made.cast()) };
    raw::SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclMemFree(address: *mut c_void) -> ResultCode {
    let mut state = lock();
    let Some(layout) = state.allocations.remove(&address.addr()) else {
        state.strangers += 1;
        return state.refuse(raw::INVALID_ARGUMENT, "ncclMemFree : not from ncclMemAlloc");
    };
    // SAFETY: allocated above with this layout, and taken out of the table, so freed once.
    unsafe { std::alloc::dealloc(address.cast(), layout) };
    raw::SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    communicator: *mut CommHandle,
    ranks: c_int,
    id: UniqueId,
    rank: c_int,
    config: *mut Config,
) -> ResultCode {
    let unset = Config::unset();
    // SAFETY: the caller gives a configuration or null.
    let config = unsafe { config.as_ref() }.unwrap_or(&unset);
    let id = id.internal.map(c_char::cast_unsigned);
    let (handle, code) = life::init(&id, ranks, rank, DEVICE.get(), config);
    // SAFETY: the caller gives a place for one handle.
    unsafe { communicator.write(std::ptr::without_provenance_mut(handle)) };
    code
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommSplit(
    communicator: CommHandle,
    colour: c_int,
    key: c_int,
    child: *mut CommHandle,
    config: *mut Config,
) -> ResultCode {
    // SAFETY: the caller gives a configuration or null, and a place for one handle that stays until the split is through.
    let config = unsafe {
        child.write(std::ptr::null_mut());
        config.as_ref()
    };
    split::split(communicator.addr(), colour, key, child, config)
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommFinalize(communicator: CommHandle) -> ResultCode {
    if communicator.is_null() {
        return raw::SUCCESS;
    }
    life::finalize(communicator.addr())
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommDestroy(communicator: CommHandle) -> ResultCode {
    life::destroy(communicator.addr())
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommAbort(communicator: CommHandle) -> ResultCode {
    if communicator.is_null() {
        return raw::SUCCESS;
    }
    group::abort(communicator.addr())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(communicator: CommHandle, result: *mut ResultCode) -> ResultCode {
    let (answer, said) = life::poll(communicator.addr());
    // SAFETY: the caller gives a place for one number.
    unsafe { result.write(said) };
    answer
}

/// Writes one fact of a communicator that is ready.
fn fact<T>(
    communicator: CommHandle,
    call: &str,
    place: *mut T,
    of: impl FnOnce(&crate::state::Communicator, u32) -> T,
) -> ResultCode {
    let mut state = lock();
    let world = match state.ready(communicator.addr(), call) {
        Ok(found) => found.world,
        Err(code) => return code,
    };
    let ranks = state.worlds[world].ranks;
    match state.ready(communicator.addr(), call) {
        Ok(found) => {
            // SAFETY: the callers of the functions below give a place for one value.
            unsafe { place.write(of(found, ranks)) };
            raw::SUCCESS
        }
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCount(communicator: CommHandle, count: *mut c_int) -> ResultCode {
    fact(communicator, "CommCount", count, |_, ranks| ranks.cast_signed())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCuDevice(communicator: CommHandle, device: *mut c_int) -> ResultCode {
    fact(communicator, "CommCuDevice", device, |found, _| found.device)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommUserRank(communicator: CommHandle, rank: *mut c_int) -> ResultCode {
    fact(communicator, "CommUserRank", rank, |found, _| found.rank.cast_signed())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommMemStats(communicator: CommHandle, statistic: c_int, value: *mut u64) -> ResultCode {
    let bytes = match statistic {
        0 | 1 => 0,
        2 | 3 => HELD,
        _ => return lock().refuse(raw::INVALID_ARGUMENT, "CommMemStats : invalid statistic"),
    };
    fact(communicator, "CommMemStats", value, |_, _| bytes)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommRegister(
    communicator: CommHandle,
    buffer: *mut c_void,
    _bytes: usize,
    handle: *mut *mut c_void,
) -> ResultCode {
    let mut state = lock();
    match state.ready(communicator.addr(), "CommRegister") {
        Ok(found) => {
            found.registrations.push(buffer.addr());
            // SAFETY: the caller gives a place for one pointer.
            unsafe { handle.write(buffer) };
            raw::SUCCESS
        }
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommDeregister(communicator: CommHandle, handle: *mut c_void) -> ResultCode {
    let mut state = lock();
    match state.ready(communicator.addr(), "CommDeregister") {
        Ok(found) => {
            let Some(place) = found.registrations.iter().position(|known| *known == handle.addr()) else {
                return state.refuse(raw::INVALID_USAGE, "Deregister: Could not find handle");
            };
            found.registrations.swap_remove(place);
            raw::SUCCESS
        }
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupStart() -> ResultCode {
    group::start()
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupEnd() -> ResultCode {
    group::end()
}

/// What an operation's arguments say, before anything is checked.
struct Asked {
    call: Call,
    name: &'static str,
    send: *const c_void,
    receive: *mut c_void,
    count: usize,
    kind: c_int,
    reduction: c_int,
    other: c_int,
}

fn ask(asked: &Asked, communicator: CommHandle, stream: StreamHandle) -> ResultCode {
    let (Some(kind), Some(reduction), Ok(other)) = (
        DataType::from_number(asked.kind),
        Reduction::from_number(asked.reduction),
        u32::try_from(asked.other),
    ) else {
        let words = format!("{} : invalid type, reduction or root", asked.name);
        return lock().refuse(raw::INVALID_ARGUMENT, words);
    };
    let operation = Operation {
        call: asked.call,
        send: asked.send.expose_provenance(),
        receive: asked.receive.expose_provenance(),
        count: asked.count,
        kind,
        reduction,
        other,
        stream: stream.expose_provenance(),
        sequence: 0,
        done: false,
    };
    group::enqueue(communicator.addr(), asked.name, operation)
}

/// Declares functions that move data; what one does not have is null or zero.
macro_rules! operations {
    ($($symbol:ident = $call:ident, $name:literal ($($argument:ident: $kind:ty),*)
        => $send:expr, $receive:expr, $count:ident, $kind_number:ident, $reduction:expr, $other:expr;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $symbol(
            $($argument: $kind,)*
            communicator: CommHandle,
            stream: StreamHandle,
        ) -> ResultCode {
            let asked = Asked {
                call: Call::$call,
                name: $name,
                send: $send,
                receive: $receive,
                count: $count,
                kind: $kind_number,
                reduction: $reduction,
                other: $other,
            };
            ask(&asked, communicator, stream)
        }
    )*};
}

operations! {
    ncclSend = Send, "Send" (from: *const c_void, count: usize, kind: c_int, peer: c_int)
        => from, std::ptr::null_mut(), count, kind, 0, peer;
    ncclRecv = Recv, "Recv" (to: *mut c_void, count: usize, kind: c_int, peer: c_int)
        => std::ptr::null(), to, count, kind, 0, peer;
    ncclBroadcast = Broadcast, "Broadcast"
        (from: *const c_void, to: *mut c_void, count: usize, kind: c_int, root: c_int)
        => from, to, count, kind, 0, root;
    ncclReduce = Reduce, "Reduce"
        (from: *const c_void, to: *mut c_void, count: usize, kind: c_int, reduction: c_int, root: c_int)
        => from, to, count, kind, reduction, root;
    ncclAllReduce = AllReduce, "AllReduce"
        (from: *const c_void, to: *mut c_void, count: usize, kind: c_int, reduction: c_int)
        => from, to, count, kind, reduction, 0;
    ncclReduceScatter = ReduceScatter, "ReduceScatter"
        (from: *const c_void, to: *mut c_void, count: usize, kind: c_int, reduction: c_int)
        => from, to, count, kind, reduction, 0;
    ncclAllGather = AllGather, "AllGather" (from: *const c_void, to: *mut c_void, count: usize, kind: c_int)
        => from, to, count, kind, 0, 0;
    ncclAlltoAll = AllToAll, "AlltoAll" (from: *const c_void, to: *mut c_void, count: usize, kind: c_int)
        => from, to, count, kind, 0, 0;
    ncclGather = Gather, "Gather"
        (from: *const c_void, to: *mut c_void, count: usize, kind: c_int, root: c_int)
        => from, to, count, kind, 0, root;
    ncclScatter = Scatter, "Scatter"
        (from: *const c_void, to: *mut c_void, count: usize, kind: c_int, root: c_int)
        => from, to, count, kind, 0, root;
}

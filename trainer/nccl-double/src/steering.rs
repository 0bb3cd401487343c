//! What a test asks of the double, or orders, as C functions of the cdylib; [`crate::Double`] calls them.
//!
//! Ids are pointers to 128 bytes; calls, stages and codes are the numbers of [`Call`](crate::Call),
//! [`Stage`](crate::Stage) and `ncclResult_t`.
#![expect(
    clippy::missing_safety_doc,
    reason = "pointers to ids are to 128 bytes, as the module says; nothing else is asked of a caller"
)]

use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

use nccl_rs::raw::{ResultCode, StreamHandle};

use crate::beside::{Beside, Function};
use crate::operation::{Call, Stage, StreamOperation};
use crate::state::{Disturbance, Hook, Id, State, changed, lock, wait_for};

/// The id behind a pointer.
unsafe fn id_at(id: *const Id) -> Id {
    // SAFETY: the caller's promise: 128 bytes, in any alignment.
    unsafe { id.read_unaligned() }
}

/// How many polls find a beginning (also a split), and a group (also an end), in progress.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nccl_double_set_polls(id: *const Id, init: u32, group: u32) {
    // SAFETY: as the module says.
    let id = unsafe { id_at(id) };
    let mut state = lock();
    let key = state.world_of(&id);
    state.worlds[key].init_polls = init;
    state.worlds[key].group_polls = group;
}

/// Orders that the next `call` of `rank` never ends. Answers whether the numbers mean something.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nccl_double_hang(id: *const Id, rank: u32, call: u32, stage: u32) -> bool {
    // SAFETY: as the module says.
    order(unsafe { id_at(id) }, rank, call, stage, None)
}

/// Orders that the next `call` of `rank` fails with `code`. Answers whether the numbers mean something.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nccl_double_fail(id: *const Id, rank: u32, call: u32, stage: u32, code: c_int) -> bool {
    // SAFETY: as the module says.
    order(unsafe { id_at(id) }, rank, call, stage, Some(code))
}

fn order(id: Id, rank: u32, call: u32, stage: u32, code: Option<ResultCode>) -> bool {
    let (Some(call), Some(stage)) = (Call::from_number(call), Stage::from_number(stage)) else {
        return false;
    };
    let beside_streams = matches!(call, Call::Init | Call::Split | Call::Finalize);
    if (stage == Stage::Call && code.is_none()) || (stage == Stage::Stream && beside_streams) {
        return false;
    }
    let mut state = lock();
    let key = state.world_of(&id);
    state.worlds[key].disturbances.push(Disturbance {
        rank,
        call,
        stage,
        code,
    });
    true
}

/// Communicators of this id that are neither aborted nor destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nccl_double_live(id: *const Id) -> u32 {
    // SAFETY: as the module says.
    let id = unsafe { id_at(id) };
    let mut state = lock();
    let key = state.world_of(&id);
    state.worlds[key].live
}

/// Uses of this id's communicators after their end, and of finalized ones.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nccl_double_misuse(id: *const Id) -> u32 {
    // SAFETY: as the module says.
    let id = unsafe { id_at(id) };
    let mut state = lock();
    let key = state.world_of(&id);
    state.worlds[key].misuse
}

/// Uses of handles, and frees of addresses, that never were.
#[unsafe(no_mangle)]
pub extern "C" fn nccl_double_strangers() -> u32 {
    lock().strangers
}

/// Operations on `stream` that were asked for, and of whose group the caller has not seen success.
#[unsafe(no_mangle)]
pub extern "C" fn nccl_double_pending(stream: StreamHandle) -> u32 {
    let state = lock();
    let count = state
        .communicators
        .values()
        .flat_map(|communicator| &communicator.unseen)
        .filter(|unseen| **unseen == stream.addr())
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn of_stream<T>(stream: StreamHandle, of: impl FnOnce(&crate::state::Stream) -> T) -> T {
    of(lock().streams.entry(stream.addr()).or_default())
}

/// Kernels that have been put on `stream` so far: the place that an event gets which is recorded now.
#[unsafe(no_mangle)]
pub extern "C" fn nccl_double_launched(stream: StreamHandle) -> u64 {
    of_stream(stream, |stream| stream.launched)
}

/// Kernels of `stream`, from the first on, that have ended: an event has happened if this has reached its place.
#[unsafe(no_mangle)]
pub extern "C" fn nccl_double_done(stream: StreamHandle) -> u64 {
    of_stream(stream, crate::state::Stream::done)
}

/// Waits until `place` kernels of `stream` have ended, or until the time is over; answers whether they have.
#[unsafe(no_mangle)]
pub extern "C" fn nccl_double_wait(stream: StreamHandle, place: u64, milliseconds: u64) -> bool {
    let deadline = Instant::now() + Duration::from_millis(milliseconds);
    let mut state = lock();
    loop {
        let done = state.streams.entry(stream.addr()).or_default().done();
        let left = deadline.saturating_duration_since(Instant::now());
        if done >= place || left.is_zero() {
            return done >= place;
        }
        state = wait_for(state, left);
    }
}

/// Holds `stream`: what is on it does not begin; or lets it go.
#[unsafe(no_mangle)]
pub extern "C" fn nccl_double_hold(stream: StreamHandle, held: bool) {
    let mut state = lock();
    state.streams.entry(stream.addr()).or_default().held = held;
    State::advance(&mut state);
    changed();
}

/// Puts a call of `function` with `user` on `stream`.
///
/// # Safety
/// It may be called from any thread, once, as soon as what is before it on the stream has ended; it does not call the double.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nccl_double_run(stream: StreamHandle, function: Function, user: *mut c_void) {
    let user = user.expose_provenance();
    lock().put_beside(stream.addr(), Beside::Run { function, user });
}

/// Has `stream` wait until `place` kernels of `other` have ended.
#[unsafe(no_mangle)]
pub extern "C" fn nccl_double_order(stream: StreamHandle, other: StreamHandle, place: u64) {
    let other = other.addr();
    lock().put_beside(stream.addr(), Beside::Wait { stream: other, place });
}

/// Calls `function` with `user` for each operation when it gets on its stream, from the launching thread and in the order
/// of the stream; null ends that.
///
/// # Safety
/// `function` may be called from any thread with `user` for the rest of the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nccl_double_set_stream_hook(
    function: Option<unsafe extern "C" fn(*mut c_void, *const StreamOperation)>,
    user: *mut c_void,
) {
    let user = user.expose_provenance();
    lock().hook = function.map(|function| Hook { function, user });
}

/// How many groups are open on this thread, one in another.
#[unsafe(no_mangle)]
pub extern "C" fn nccl_double_group_depth() -> u32 {
    crate::group::depth()
}

/// Makes `device` the current device of this thread, as `cudaSetDevice` does.
#[unsafe(no_mangle)]
pub extern "C" fn nccl_double_set_device(device: c_int) {
    crate::names::DEVICE.set(device);
}

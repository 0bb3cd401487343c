//! What libtorch's operators read and write of watched memory, told by libtorch itself as each begins: on the thread that
//! calls it, and on the stream that is current there. So nothing has to say what it touches, and nothing can say it wrongly.
//!
//! An operator over a part with gaps is taken to touch all from its first to its last byte.

use std::ffi::{CStr, c_char, c_int};
use std::ops;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::log::{Access, Action, Place, Range};
use crate::recorder::{current_stream, lock};

/// Memory whose accesses go into the log.
#[derive(Debug)]
pub(crate) struct Watched {
    memory: Arc<str>,
    addresses: ops::Range<usize>,
}

/// Whether the recording watches anything: outside of tests of memory, operators are not even looked at.
static IS_WANTED: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    fn lockstep_recorder_observe_operators(
        wanted: extern "C" fn() -> bool,
        touch: extern "C" fn(*const c_char, usize, usize, c_int),
    );
}

extern "C" fn is_wanted() -> bool {
    IS_WANTED.load(Ordering::Relaxed)
}

extern "C" fn touched(name: *const c_char, first: usize, bytes: usize, writes: c_int) {
    // SAFETY: an operator's name, zero-terminated, which lives for the call.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let access = if writes == 0 { Access::Read } else { Access::Write };
    touch_addresses(current_stream(), access, first..first + bytes, &name);
}

/// Has libtorch tell of operators, for the life of the process.
pub(crate) fn observe() {
    // SAFETY: both functions may be called from any thread for the life of the process.
    unsafe { lockstep_recorder_observe_operators(is_wanted, touched) }
}

pub(crate) fn watch_nothing() {
    IS_WANTED.store(false, Ordering::Relaxed);
}

pub(crate) fn watch(memory: &str, address: usize, bytes: usize) {
    lock().watched.push(Watched {
        memory: memory.into(),
        addresses: address..address + bytes,
    });
    IS_WANTED.store(true, Ordering::Relaxed);
}

/// Work on a stream touches addresses, as far as they are watched.
pub(crate) fn touch_addresses(stream: i64, access: Access, addresses: ops::Range<usize>, by: &str) {
    let mut state = lock();
    let parts = state.watched.iter().filter_map(|watched| {
        let first = watched.addresses.start.max(addresses.start);
        let end = watched.addresses.end.min(addresses.end);
        (first < end).then(|| Range {
            memory: Arc::clone(&watched.memory),
            bytes: first - watched.addresses.start..end - watched.addresses.start,
        })
    });
    for range in parts.collect::<Vec<_>>() {
        state.push(Action::Touch {
            place: Place::Stream(stream),
            access,
            range,
            by: by.to_owned(),
        });
    }
}

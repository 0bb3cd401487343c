//! The C functions of `device.cpp`.

use std::ffi::{c_char, c_int, c_void};

use torch_sys::C_tensor;

use crate::shim::Call;

/// A `c10::Event`; only ever behind a pointer.
#[repr(C)]
pub(crate) struct RawEvent {
    opaque: [u8; 0],
}

unsafe extern "C" {
    pub(crate) fn lockstep_device_guard_registered() -> c_int;
    pub(crate) fn lockstep_device_count(out: *mut i64) -> c_int;
    pub(crate) fn lockstep_device_set(device: i8) -> c_int;
    pub(crate) fn lockstep_device_initialise() -> c_int;
    pub(crate) fn lockstep_device_synchronise(device: i8) -> c_int;
    pub(crate) fn lockstep_stream_default(device: i8, out: *mut i64) -> c_int;
    pub(crate) fn lockstep_stream_current(device: i8, out: *mut i64) -> c_int;
    pub(crate) fn lockstep_stream_from_pool(device: i8, high_priority: c_int, out: *mut i64) -> c_int;
    pub(crate) fn lockstep_stream_native(device: i8, stream: i64, out: *mut *mut c_void) -> c_int;
    pub(crate) fn lockstep_stream_run(device: i8, stream: i64, call: Call, context: *mut c_void) -> c_int;

    pub(crate) fn lockstep_event_new(timing: c_int, out: *mut *mut RawEvent) -> c_int;
    pub(crate) fn lockstep_event_free(event: *mut RawEvent);
    pub(crate) fn lockstep_event_native(event: *const RawEvent) -> *mut c_void;
    pub(crate) fn lockstep_event_record(event: *mut RawEvent, device: i8, stream: i64) -> c_int;
    pub(crate) fn lockstep_event_block(event: *const RawEvent, device: i8, stream: i64) -> c_int;
    pub(crate) fn lockstep_event_query(event: *const RawEvent, out: *mut c_int) -> c_int;
    pub(crate) fn lockstep_event_synchronise(event: *const RawEvent) -> c_int;
    pub(crate) fn lockstep_event_elapsed(from: *const RawEvent, to: *const RawEvent, milliseconds: *mut f64) -> c_int;

    pub(crate) fn lockstep_add_out(out: *mut C_tensor, left: *const C_tensor, right: *const C_tensor) -> c_int;
    pub(crate) fn lockstep_copy(to: *mut C_tensor, from: *const C_tensor) -> c_int;
    pub(crate) fn lockstep_pinned(sizes: *const i64, dimensions: i64, kind: i8, out: *mut *mut C_tensor) -> c_int;
    pub(crate) fn lockstep_allocator_statistics(device: i8, out: *mut i64) -> c_int;
    pub(crate) fn lockstep_allocator_reset_peaks(device: i8) -> c_int;
    pub(crate) fn lockstep_device_memory(device: i8, free_bytes: *mut u64, total_bytes: *mut u64) -> c_int;

    pub(crate) fn lockstep_settings_apply(products: c_int, attention: c_int) -> c_int;
    pub(crate) fn lockstep_settings_read(out: *mut *const c_char) -> c_int;
}

//! What the program itself, or its test, adds to the log: accesses that no operator makes, messages, names.

use std::ffi::c_void;
use std::sync::Arc;

use crate::log::{Access, Action, Log, Place, Range};
use crate::operators;
use crate::recorder::{COMPLETED, last_event, lock, name_thread};

/// A message between threads, which orders what was before it and what comes after it.
#[derive(Debug)]
#[must_use = "a message orders nothing until it is received"]
pub struct Message(u64);

/// Adds to the log of the recording that runs; any thread may hold one.
#[derive(Debug, Clone, Copy)]
pub struct Pen(());

impl Pen {
    pub(crate) fn new() -> Pen {
        Pen(())
    }

    /// From now on what libtorch's operators read and write of the `bytes` bytes at `address` goes into the log, as parts of
    /// `memory`. Until the recording ends that memory must not be freed, or its address would mean something else.
    pub fn watch(&self, memory: &str, address: usize, bytes: usize) {
        operators::watch(memory, address, bytes);
    }

    /// Work of stream `stream` touches the `bytes` bytes at `address`, as far as they are watched.
    pub fn touch_address(&self, stream: i64, access: Access, (address, bytes): (usize, usize), by: &str) {
        operators::touch_addresses(stream, access, address..address + bytes, by);
    }

    /// The number in the log of the stream whose native handle is at this address.
    pub fn stream_of_handle(&self, address: usize) -> i64 {
        address as i64 - 0x1000
    }

    /// Calls the calling thread `name` in the log.
    pub fn name_thread(&self, name: &str) {
        name_thread(name);
    }

    /// The number in the log of the last record that the calling thread has made.
    pub fn last_event(&self) -> u64 {
        last_event()
    }

    /// Calls the record of this number `name` in the log.
    pub fn name_record(&self, event: u64, name: &str) {
        lock().log.names.insert(event, name.to_owned());
    }

    /// Work of stream `stream` reads `range`.
    pub fn read(&self, stream: i64, range: &Range, by: &str) {
        touch(Place::Stream(stream), Access::Read, range, by);
    }

    /// Work of stream `stream` writes `range`.
    pub fn write(&self, stream: i64, range: &Range, by: &str) {
        touch(Place::Stream(stream), Access::Write, range, by);
    }

    /// This thread itself reads `range`.
    pub fn host_read(&self, range: &Range, by: &str) {
        touch(Place::Host, Access::Read, range, by);
    }

    /// This thread itself writes `range`.
    pub fn host_write(&self, range: &Range, by: &str) {
        touch(Place::Host, Access::Write, range, by);
    }

    /// This thread sends a message; carry it through the channel that the program uses.
    pub fn send(&self) -> Message {
        let mut state = lock();
        state.messages += 1;
        let message = state.messages;
        state.push(Action::Send { message });
        Message(message)
    }

    /// This thread has received a message.
    pub fn receive(&self, message: Message) {
        lock().push(Action::Receive { message: message.0 });
    }

    /// Calls the last record of the event of handle `event` (its native handle) `name` in the log.
    pub fn name_event(&self, event: *mut c_void, name: &str) {
        let mut state = lock();
        let number = state.event_of(event);
        state.log.names.insert(number, name.to_owned());
    }

    /// The last record of the event of handle `event` is done, and with it all that it comes after.
    pub fn complete(&self, event: *mut c_void) {
        lock().complete(event);
        COMPLETED.notify_all();
    }

    /// All records up to now are done.
    pub fn complete_all(&self) {
        lock().complete_all();
        COMPLETED.notify_all();
    }

    /// The log up to now.
    pub fn log(&self) -> Log {
        lock().log.clone()
    }
}

fn touch(place: Place, access: Access, range: &Range, by: &str) {
    let range = Range {
        memory: Arc::clone(&range.memory),
        bytes: range.bytes.clone(),
    };
    lock().push(Action::Touch {
        place,
        access,
        range,
        by: by.to_owned(),
    });
}

//! The recording guard's Rust side: what libtorch tells it goes into the log of the recording that runs.
//!
//! The guard is registered once for the process; recordings follow each other (a test that starts one waits until the
//! last has ended). Events complete at once, at random, or on command, never before the records that they come after.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::log::{Access, Action, Log, Place, Range};

/// Why nothing can be recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// Another guard is there.
    #[error(
        "a device guard for CUDA is registered already, so nothing can be recorded; a recording test must not load libtorch_cuda"
    )]
    OtherGuard,
}

/// When a record of an event is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// At once.
    AtOnce,
    /// Each time it is asked for, by chance; a thread that synchronises does not wait.
    AtRandom {
        /// Seed of the chances.
        seed: u64,
    },
    /// When [`Pen::complete`] or [`Pen::complete_all`] says so.
    OnCommand,
}

/// One record of an event: whether it is done, and the records that are done before it.
struct Record {
    done: bool,
    after: Vec<usize>,
    line: usize,
}

struct State {
    log: Log,
    completion: Completion,
    chance: StdRng,
    records: Vec<Record>,
    last: HashMap<u64, usize>,
    /// For each stream, the records that whatever comes next on it comes after.
    before: HashMap<i64, Vec<usize>>,
    messages: u64,
}

impl State {
    fn new(completion: Completion) -> State {
        let seed = match completion {
            Completion::AtRandom { seed } => seed,
            Completion::AtOnce | Completion::OnCommand => 0,
        };
        State {
            log: Log::default(),
            completion,
            chance: StdRng::seed_from_u64(seed),
            records: Vec::new(),
            last: HashMap::new(),
            before: HashMap::new(),
            messages: 0,
        }
    }

    fn push(&mut self, action: Action) {
        let thread = std::thread::current();
        match thread.name() {
            Some(name) => self.log.push(name, action),
            None => self.log.push(&format!("{:?}", thread.id()), action),
        }
    }

    fn finish(&mut self, record: usize) {
        let mut open = vec![record];
        while let Some(record) = open.pop() {
            let record = &mut self.records[record];
            if !record.done {
                record.done = true;
                open.extend_from_slice(&record.after);
            }
        }
    }

    /// Whether the last record of an event is done now; an event without one is, as libtorch has it.
    fn ask(&mut self, event: u64) -> bool {
        let Some(record) = self.last.get(&event).copied() else {
            return true;
        };
        let now = match self.completion {
            Completion::AtOnce => true,
            Completion::AtRandom { .. } => self.chance.random_bool(0.3),
            Completion::OnCommand => false,
        };
        if now {
            self.finish(record);
        }
        self.records[record].done
    }
}

fn state() -> &'static Mutex<State> {
    static STATE: OnceLock<Mutex<State>> = OnceLock::new();
    STATE.get_or_init(|| Mutex::new(State::new(Completion::AtOnce)))
}

fn lock() -> MutexGuard<'static, State> {
    state().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells threads that synchronise that a record may be done.
static COMPLETED: Condvar = Condvar::new();

thread_local! {
    static DEVICE: Cell<i8> = const { Cell::new(0) };
    static STREAMS: Cell<[i64; 2]> = const { Cell::new([0; 2]) };
}

/// An event's number is its handle in libtorch.
fn number(event: *mut c_void) -> u64 {
    event.addr() as u64
}

extern "C" fn device() -> i8 {
    DEVICE.get()
}

extern "C" fn set_device(device: i8) {
    DEVICE.set(device);
}

fn place(device: i8) -> usize {
    usize::from(device > 0)
}

extern "C" fn stream(device: i8) -> i64 {
    STREAMS.get()[place(device)]
}

extern "C" fn set_stream(device: i8, stream: i64) {
    let mut streams = STREAMS.get();
    streams[place(device)] = stream;
    STREAMS.set(streams);
}

extern "C" fn stream_from_pool() -> i64 {
    static NEXT: Mutex<i64> = Mutex::new(0);
    let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
    // As libtorch's pool: 32 streams, then the first again.
    *next = *next % 32 + 1;
    *next
}

extern "C" fn record(event: *mut *mut c_void, stream: i64) {
    static NEXT: Mutex<usize> = Mutex::new(0);
    // SAFETY: libtorch passes the place of the event's handle, null before the first record.
    let handle = unsafe { &mut *event };
    if handle.is_null() {
        // Never the same in one process: events outlive recordings.
        let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
        *next += 1;
        *handle = std::ptr::without_provenance_mut(*next);
    }
    let event = number(*handle);
    let mut state = lock();
    state.push(Action::Record { event, stream });
    let index = state.records.len();
    let line = state.log.entries.len();
    let after = state.before.insert(stream, vec![index]).unwrap_or_default();
    state.records.push(Record {
        done: false,
        after,
        line,
    });
    state.last.insert(event, index);
}

extern "C" fn block(event: *mut c_void, stream: i64) {
    let event = number(event);
    let mut state = lock();
    state.push(Action::Wait { event, stream });
    if let Some(record) = state.last.get(&event).copied() {
        state.before.entry(stream).or_default().push(record);
    }
}

extern "C" fn query(event: *mut c_void) -> c_int {
    let event = number(event);
    let mut state = lock();
    let done = state.ask(event);
    state.push(Action::Query { event, done });
    c_int::from(done)
}

extern "C" fn synchronise(event: *mut c_void) {
    let event = number(event);
    let mut state = lock();
    if let Some(record) = state.last.get(&event).copied() {
        if state.completion == Completion::OnCommand {
            while !state.records[record].done {
                state = COMPLETED.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        state.finish(record);
    }
    state.push(Action::Synchronise { event });
}

extern "C" fn query_stream(stream: i64) -> c_int {
    let state = lock();
    let open = |record: &usize| !state.records[*record].done;
    c_int::from(!state.before.get(&stream).is_some_and(|before| before.iter().any(open)))
}

extern "C" fn synchronise_stream(stream: i64) {
    let mut state = lock();
    for record in state.before.get(&stream).cloned().unwrap_or_default() {
        state.finish(record);
    }
    state.push(Action::SynchroniseStream { stream });
}

extern "C" fn synchronise_device() {
    let streams: Vec<i64> = lock().before.keys().copied().collect();
    for stream in streams {
        synchronise_stream(stream);
    }
}

/// One millisecond a line of the log.
extern "C" fn elapsed(from: *mut c_void, to: *mut c_void) -> f64 {
    let state = lock();
    let line = |event| {
        state
            .last
            .get(&number(event))
            .map_or(0, |record| state.records[*record].line)
    };
    line(to) as f64 - line(from) as f64
}

#[repr(C)]
struct Callbacks {
    device: extern "C" fn() -> i8,
    set_device: extern "C" fn(i8),
    stream: extern "C" fn(i8) -> i64,
    set_stream: extern "C" fn(i8, i64),
    stream_from_pool: extern "C" fn() -> i64,
    record: extern "C" fn(*mut *mut c_void, i64),
    block: extern "C" fn(*mut c_void, i64),
    query: extern "C" fn(*mut c_void) -> c_int,
    synchronise: extern "C" fn(*mut c_void),
    query_stream: extern "C" fn(i64) -> c_int,
    synchronise_stream: extern "C" fn(i64),
    synchronise_device: extern "C" fn(),
    elapsed: extern "C" fn(*mut c_void, *mut c_void) -> f64,
}

unsafe extern "C" {
    fn lockstep_recorder_register(callbacks: *const Callbacks) -> c_int;
}

fn register() -> Result<(), RecorderError> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let registered = REGISTERED.get_or_init(|| {
        let callbacks = Callbacks {
            device,
            set_device,
            stream,
            set_stream,
            stream_from_pool,
            record,
            block,
            query,
            synchronise,
            query_stream,
            synchronise_stream,
            synchronise_device,
            elapsed,
        };
        // SAFETY: the table is copied; its functions live as long as the process.
        unsafe { lockstep_recorder_register(&callbacks) == 0 }
    });
    if *registered {
        Ok(())
    } else {
        Err(RecorderError::OtherGuard)
    }
}

/// A message between threads, which orders what was before it and what comes after it.
#[derive(Debug)]
#[must_use = "a message orders nothing until it is received"]
pub struct Message(u64);

/// Adds to the log of the recording that runs; any thread may hold one.
#[derive(Debug, Clone, Copy)]
pub struct Pen(());

impl Pen {
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

    /// Calls the event of handle `event` (its native handle) `name` in the log.
    pub fn name_event(&self, event: *mut c_void, name: &str) {
        lock().log.names.insert(number(event), name.to_owned());
    }

    /// The last record of the event of handle `event` is done, and with it all that it comes after.
    pub fn complete(&self, event: *mut c_void) {
        let mut state = lock();
        if let Some(record) = state.last.get(&number(event)).copied() {
            state.finish(record);
        }
        COMPLETED.notify_all();
    }

    /// All records up to now are done.
    pub fn complete_all(&self) {
        for record in &mut lock().records {
            record.done = true;
        }
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

/// A recording that runs: one at a time in a process, until it is dropped.
pub struct Recorder {
    pen: Pen,
    _alone: MutexGuard<'static, ()>,
}

impl Recorder {
    /// Registers the guard, waits until no other recording runs, and begins with an empty log.
    pub fn start(completion: Completion) -> Result<Recorder, RecorderError> {
        static ALONE: Mutex<()> = Mutex::new(());
        register()?;
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        *lock() = State::new(completion);
        Ok(Recorder {
            pen: Pen(()),
            _alone: alone,
        })
    }
}

impl Deref for Recorder {
    type Target = Pen;
    fn deref(&self) -> &Pen {
        &self.pen
    }
}

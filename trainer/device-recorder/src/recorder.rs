//! The recording guard's Rust side: what libtorch tells it goes into the log of the recording that runs; [`crate::pen`] adds
//! what libtorch does not tell.
//!
//! The guard is registered once for the process; recordings follow each other (a test that starts one waits until the
//! last has ended). Events complete at once, at random, or on command, never before the records that they come after.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::log::{Action, Entry, Log};
use crate::operators::{self, Watched};
use crate::pen::Pen;

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

pub(crate) struct State {
    pub(crate) log: Log,
    completion: Completion,
    chance: StdRng,
    records: Vec<Record>,
    /// For each handle of an event, its last record.
    last: HashMap<usize, usize>,
    /// For each stream, the records that whatever comes next on it comes after.
    before: HashMap<i64, Vec<usize>>,
    pub(crate) messages: u64,
    pub(crate) watched: Vec<Watched>,
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
            watched: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, action: Action) {
        NAME.with_borrow_mut(|name| {
            let name = name.get_or_insert_with(|| {
                let thread = std::thread::current();
                thread
                    .name()
                    .map_or_else(|| format!("{:?}", thread.id()).into(), Into::into)
            });
            // Repeated at once it says nothing new: operators call each other with the same arguments.
            let repeats =
                |last: &Entry| matches!(action, Action::Touch { .. }) && last.thread == *name && last.action == action;
            if !self.log.entries.last().is_some_and(repeats) {
                self.log.push(name, action);
            }
        });
    }

    /// The number in the log of an event's last record; 0 where there is none. Events are used again and again, so each
    /// record has a number of its own.
    pub(crate) fn event_of(&self, handle: *mut c_void) -> u64 {
        self.last.get(&handle.addr()).map_or(0, |record| *record as u64 + 1)
    }

    /// The last record of the event of a handle is done.
    pub(crate) fn complete(&mut self, handle: *mut c_void) {
        if let Some(record) = self.last.get(&handle.addr()).copied() {
            self.finish(record);
        }
    }

    /// All records up to now are done.
    pub(crate) fn complete_all(&mut self) {
        for record in &mut self.records {
            record.done = true;
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
    fn ask(&mut self, handle: *mut c_void) -> bool {
        let Some(record) = self.last.get(&handle.addr()).copied() else {
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

pub(crate) fn lock() -> MutexGuard<'static, State> {
    state().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells threads that synchronise that a record may be done.
pub(crate) static COMPLETED: Condvar = Condvar::new();

thread_local! {
    static DEVICE: Cell<i8> = const { Cell::new(0) };
    static STREAMS: Cell<[i64; 2]> = const { Cell::new([0; 2]) };
    /// The thread's name in the log, once it was needed or given.
    static NAME: RefCell<Option<Arc<str>>> = const { RefCell::new(None) };
    /// The number of the thread's last record.
    static LAST_EVENT: Cell<u64> = const { Cell::new(0) };
}

pub(crate) fn name_thread(name: &str) {
    NAME.set(Some(name.into()));
}

pub(crate) fn last_event() -> u64 {
    LAST_EVENT.get()
}

/// Streams of a device begin here in the log, as in `guard.cpp`.
fn first_stream(device: i8) -> i64 {
    64 * i64::from(device)
}

/// The number in the log of the calling thread's current stream.
pub(crate) fn current_stream() -> i64 {
    first_stream(DEVICE.get()) + stream(DEVICE.get())
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
    let handle = *handle;
    let mut state = lock();
    let index = state.records.len();
    let event = index as u64 + 1;
    LAST_EVENT.set(event);
    state.push(Action::Record { event, stream });
    let line = state.log.entries.len();
    let after = state.before.insert(stream, vec![index]).unwrap_or_default();
    state.records.push(Record {
        done: false,
        after,
        line,
    });
    state.last.insert(handle.addr(), index);
}

extern "C" fn block(event: *mut c_void, stream: i64) {
    let mut state = lock();
    let number = state.event_of(event);
    state.push(Action::Wait { event: number, stream });
    if let Some(record) = state.last.get(&event.addr()).copied() {
        state.before.entry(stream).or_default().push(record);
    }
}

extern "C" fn query(event: *mut c_void) -> c_int {
    let mut state = lock();
    let done = state.ask(event);
    let number = state.event_of(event);
    state.push(Action::Query { event: number, done });
    c_int::from(done)
}

extern "C" fn synchronise(event: *mut c_void) {
    let mut state = lock();
    let number = state.event_of(event);
    if let Some(record) = state.last.get(&event.addr()).copied() {
        if state.completion == Completion::OnCommand {
            while !state.records[record].done {
                state = COMPLETED.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        state.finish(record);
    }
    state.push(Action::Synchronise { event: number });
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

extern "C" fn synchronise_device(device: i8) {
    let of_device = first_stream(device)..first_stream(device + 1);
    let streams = lock()
        .before
        .keys()
        .copied()
        .filter(|stream| of_device.contains(stream))
        .collect::<Vec<_>>();
    for stream in streams {
        synchronise_stream(stream);
    }
}

/// One millisecond a line of the log.
extern "C" fn elapsed(from: *mut c_void, to: *mut c_void) -> f64 {
    let state = lock();
    let line = |event: *mut c_void| {
        state
            .last
            .get(&event.addr())
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
    synchronise_device: extern "C" fn(i8),
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
        let is_ours = unsafe { lockstep_recorder_register(&callbacks) == 0 };
        if is_ours {
            operators::observe();
        }
        is_ours
    });
    if *registered {
        Ok(())
    } else {
        Err(RecorderError::OtherGuard)
    }
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
        operators::watch_nothing();
        Ok(Recorder {
            pen: Pen::new(),
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

//! All that the double knows, behind one lock: worlds, communicators, kernels and streams.
//!
//! Communicators' handles are numbers that are never used twice and behind which there is nothing, so that a stale one
//! can be looked up and told apart.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::{CString, c_int, c_void};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};

use nccl_rs::raw::{self, ResultCode};

use crate::operation::{Call, Operation, Stage, StreamOperation};

pub(crate) type Id = [u8; raw::UNIQUE_ID_BYTES];
pub(crate) type WorldKey = usize;
pub(crate) type Handle = usize;

/// Handles start here and go up in this step: they look like pointers and are none.
const FIRST_HANDLE: Handle = 0x00d0_0000_0000;
const HANDLE_STEP: Handle = 64;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) ids: HashMap<Id, WorldKey>,
    pub(crate) worlds: Vec<World>,
    pub(crate) communicators: BTreeMap<Handle, Communicator>,
    /// Kernels that are on streams and have not ended, by their number.
    pub(crate) kernels: BTreeMap<u64, Kernel>,
    /// What is on streams beside NCCL's, by numbers of the same count.
    pub(crate) beside: HashMap<u64, crate::beside::Beside>,
    pub(crate) streams: HashMap<usize, Stream>,
    pub(crate) hook: Option<Hook>,
    /// Uses of handles that never were.
    pub(crate) strangers: u32,
    /// The words of all failures: whoever has asked for them may still hold them.
    pub(crate) last_errors: Vec<CString>,
    pub(crate) allocations: HashMap<usize, std::alloc::Layout>,
    next_id: u64,
    next_kernel: u64,
}

/// The ranks that met, or are to meet, under one id or in one split.
pub(crate) struct World {
    /// Zero until the first rank has come.
    pub(crate) ranks: u32,
    pub(crate) joined: Vec<bool>,
    pub(crate) finalized: u32,
    pub(crate) live: u32,
    pub(crate) misuse: u32,
    /// Polls that find a beginning, and a group, in progress.
    pub(crate) init_polls: u32,
    pub(crate) group_polls: u32,
    pub(crate) disturbances: Vec<Disturbance>,
    pub(crate) splits: Vec<crate::split::Split>,
}

/// Something that a test has ordered; it comes once.
pub(crate) struct Disturbance {
    pub(crate) rank: u32,
    pub(crate) call: Call,
    pub(crate) stage: Stage,
    /// `None` hangs.
    pub(crate) code: Option<ResultCode>,
}

pub(crate) struct Communicator {
    pub(crate) world: WorldKey,
    pub(crate) rank: u32,
    pub(crate) device: c_int,
    pub(crate) blocking: bool,
    /// What the poll says: success, in progress, or a failure.
    pub(crate) result: ResultCode,
    pub(crate) activity: Activity,
    pub(crate) polls_left: u32,
    /// A launching thread is at work.
    pub(crate) launching: bool,
    pub(crate) aborting: bool,
    pub(crate) gone: Option<&'static str>,
    pub(crate) finalized: bool,
    /// A failure that shows in the poll after the one that says success.
    pub(crate) late: Option<ResultCode>,
    pub(crate) collectives: u64,
    pub(crate) pairs: HashMap<(Half, u32), u64>,
    pub(crate) split_calls: usize,
    /// Streams of operations whose success the caller has not seen yet, one entry each.
    pub(crate) unseen: Vec<usize>,
    pub(crate) registrations: Vec<usize>,
}

/// The direction of a pair's half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Half {
    Send,
    Recv,
}

/// What a communicator in progress is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    None,
    Init,
    Group,
    Split {
        call: usize,
        slot: usize,
    },
    Finalize,
    /// Ordered by a test: never ends.
    Hang,
}

/// The operations of one group of one communicator, on their streams.
pub(crate) struct Kernel {
    pub(crate) owner: Handle,
    pub(crate) world: WorldKey,
    pub(crate) rank: u32,
    pub(crate) streams: Vec<usize>,
    pub(crate) operations: Vec<Operation>,
    /// Ordered by a test, or the other side does not match: never ends.
    pub(crate) stuck: bool,
}

#[derive(Default)]
pub(crate) struct Stream {
    /// Kernels that have ever been put on it.
    pub(crate) launched: u64,
    /// Those that have not ended: (their place on the stream, their number).
    pub(crate) queue: VecDeque<(u64, u64)>,
    /// Ordered by a test: nothing begins.
    pub(crate) held: bool,
}

impl Stream {
    /// Kernels from the first on that have ended without a gap.
    pub(crate) fn done(&self) -> u64 {
        self.queue.front().map_or(self.launched, |(place, _)| *place)
    }
}

/// What a test wants to be told when an operation gets on its stream.
#[derive(Clone, Copy)]
pub(crate) struct Hook {
    pub(crate) function: unsafe extern "C" fn(*mut c_void, *const StreamOperation),
    pub(crate) user: usize,
}

static SHARED: LazyLock<(Mutex<State>, Condvar)> = LazyLock::new(Default::default);

/// The state, for the time of the guard.
pub(crate) fn lock() -> MutexGuard<'static, State> {
    SHARED.0.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the lock go until something has changed.
pub(crate) fn wait(state: MutexGuard<'static, State>) -> MutexGuard<'static, State> {
    SHARED.1.wait(state).unwrap_or_else(PoisonError::into_inner)
}

/// The same, for so long at most.
pub(crate) fn wait_for(state: MutexGuard<'static, State>, duration: std::time::Duration) -> MutexGuard<'static, State> {
    let (state, _) = SHARED
        .1
        .wait_timeout(state, duration)
        .unwrap_or_else(PoisonError::into_inner);
    state
}

/// Tells all that wait that something has changed.
pub(crate) fn changed() {
    SHARED.1.notify_all();
}

impl State {
    pub(crate) fn new_id(&mut self) -> Id {
        self.next_id += 1;
        let mut id = [0; raw::UNIQUE_ID_BYTES];
        id[..8].copy_from_slice(&self.next_id.to_le_bytes());
        id[8..19].copy_from_slice(b"nccl-double");
        self.world_of(&id);
        id
    }

    /// The world of an id, made at the first question for it.
    pub(crate) fn world_of(&mut self, id: &Id) -> WorldKey {
        if let Some(key) = self.ids.get(id) {
            return *key;
        }
        let key = self.new_world(0, 1, 1);
        self.ids.insert(*id, key);
        key
    }

    pub(crate) fn new_world(&mut self, ranks: u32, init_polls: u32, group_polls: u32) -> WorldKey {
        self.worlds.push(World {
            ranks,
            joined: vec![false; ranks as usize],
            finalized: 0,
            live: 0,
            misuse: 0,
            init_polls,
            group_polls,
            disturbances: Vec::new(),
            splits: Vec::new(),
        });
        self.worlds.len() - 1
    }

    /// A new communicator of `rank`, ready, counted as live.
    pub(crate) fn new_communicator(&mut self, world: WorldKey, rank: u32, device: c_int, blocking: bool) -> Handle {
        let last = self.communicators.last_key_value().map(|(handle, _)| *handle);
        let handle = last.map_or(FIRST_HANDLE, |last| last + HANDLE_STEP);
        self.worlds[world].live += 1;
        self.communicators.insert(
            handle,
            Communicator {
                world,
                rank,
                device,
                blocking,
                result: raw::SUCCESS,
                activity: Activity::None,
                polls_left: 0,
                launching: false,
                aborting: false,
                gone: None,
                finalized: false,
                late: None,
                collectives: 0,
                pairs: HashMap::new(),
                split_calls: 0,
                unseen: Vec::new(),
                registrations: Vec::new(),
            },
        );
        handle
    }

    pub(crate) fn new_kernel(&mut self) -> u64 {
        self.next_kernel += 1;
        self.next_kernel
    }

    /// Keeps the words of a failure and gives its code.
    pub(crate) fn refuse(&mut self, code: ResultCode, words: impl Into<String>) -> ResultCode {
        self.last_errors.push(CString::new(words.into()).unwrap_or_default());
        code
    }

    /// The live communicator behind a handle; anything else is refused, and counted.
    pub(crate) fn live(&mut self, handle: Handle, call: &str) -> Result<&mut Communicator, ResultCode> {
        if handle == 0 {
            return Err(self.refuse(raw::INVALID_ARGUMENT, format!("{call} : comm argument is NULL")));
        }
        let Some((world, rank, gone)) = self
            .communicators
            .get(&handle)
            .map(|found| (found.world, found.rank, found.gone))
        else {
            self.strangers += 1;
            return Err(self.refuse(raw::INVALID_ARGUMENT, "Error: corrupted comm object detected"));
        };
        if let Some(how) = gone {
            self.worlds[world].misuse += 1;
            eprintln!("nccl-double: {call} on rank {rank}'s communicator, which was {how}");
            return Err(self.refuse(raw::INVALID_ARGUMENT, "Error: corrupted comm object detected"));
        }
        Ok(self.communicators.get_mut(&handle).expect("it was found just now"))
    }

    /// A live communicator that is not in progress, nor failed.
    pub(crate) fn ready(&mut self, handle: Handle, call: &str) -> Result<&mut Communicator, ResultCode> {
        match self.live(handle, call)?.result {
            raw::SUCCESS => Ok(self.communicators.get_mut(&handle).expect("it was found just now")),
            raw::IN_PROGRESS => Err(self.refuse(
                raw::INVALID_ARGUMENT,
                "Attempt to use communicator before the previous operation returned ncclSuccess",
            )),
            failure => Err(failure),
        }
    }

    /// Takes the disturbance that a test has ordered for this point, if there is one.
    pub(crate) fn disturbed(
        &mut self,
        world: WorldKey,
        rank: u32,
        call: Call,
        stage: Stage,
    ) -> Option<Option<ResultCode>> {
        let ordered = &mut self.worlds[world].disturbances;
        let place = ordered
            .iter()
            .position(|one| one.rank == rank && one.call == call && one.stage == stage)?;
        Some(ordered.remove(place).code)
    }
}

//! The test's side: finds the cdylib, opens it, and steers it.

use std::ffi::{c_int, c_void};
use std::path::PathBuf;
use std::time::Duration;

use libloading::os::unix::Library;
use nccl_rs::{Code, Stream, UniqueId};

use crate::operation::{Call, Stage, StreamOperation};
use crate::state::Id;

const FILE: &str = "libnccl_double.so";

type HookFunction = unsafe extern "C" fn(*mut c_void, *const StreamOperation);
type WorkFunction = unsafe extern "C" fn(*mut c_void);
type Work = Box<dyn FnOnce() + Send>;
type Closure = Box<dyn Fn(&StreamOperation) + Send + Sync>;

macro_rules! steering {
    ($($field:ident = $symbol:ident($($argument:ty),*) $(-> $answer:ty)?;)*) => {
        /// The double, opened. Open the same file with [`nccl_rs::Nccl::open`]: the loader gives both the same one.
        pub struct Double {
            $($field: unsafe extern "C" fn($($argument),*) $(-> $answer)?,)*
        }

        impl Double {
            fn resolve(library: &Library) -> Result<Double, String> {
                Ok(Double {
                    $($field: {
                        let name = concat!(stringify!($symbol), "\0");
                        // SAFETY: the type is the one that `steering` declares for this name, and the library is never
                        // closed.
                        let found = unsafe {
                            library.get::<unsafe extern "C" fn($($argument),*) $(-> $answer)?>(name.as_bytes())
                        };
                        *found.map_err(|error| format!("{FILE} has no {}: {error}", stringify!($symbol)))?
                    },)*
                })
            }
        }
    };
}

steering! {
    set_polls = nccl_double_set_polls(*const Id, u32, u32);
    hang = nccl_double_hang(*const Id, u32, u32, u32) -> bool;
    fail = nccl_double_fail(*const Id, u32, u32, u32, c_int) -> bool;
    live = nccl_double_live(*const Id) -> u32;
    misuse = nccl_double_misuse(*const Id) -> u32;
    strangers = nccl_double_strangers() -> u32;
    pending = nccl_double_pending(*mut c_void) -> u32;
    launched = nccl_double_launched(*mut c_void) -> u64;
    done = nccl_double_done(*mut c_void) -> u64;
    wait = nccl_double_wait(*mut c_void, u64, u64) -> bool;
    hold = nccl_double_hold(*mut c_void, bool);
    run = nccl_double_run(*mut c_void, WorkFunction, *mut c_void);
    order = nccl_double_order(*mut c_void, *mut c_void, u64);
    set_stream_hook = nccl_double_set_stream_hook(Option<HookFunction>, *mut c_void);
    group_depth = nccl_double_group_depth() -> u32;
    set_device = nccl_double_set_device(c_int);
}

// SAFETY (of every call below): each function is `steering`'s own, with its own types; ids are pointers to 128 bytes that
// live for the call.
impl Double {
    /// The file of the cdylib. Cargo builds it for every package that depends on this crate, and puts it beside the test
    /// programs (`deps` of the profile's folder).
    ///
    /// # Errors
    /// It is not there, in a sentence.
    pub fn path() -> Result<PathBuf, String> {
        let program =
            std::env::current_exe().map_err(|error| format!("this program's path cannot be read: {error}"))?;
        program
            .ancestors()
            .skip(1)
            .take(3)
            .flat_map(|folder| [folder.join(FILE), folder.join("deps").join(FILE)])
            .find(|file| file.is_file())
            .ok_or_else(|| {
                format!(
                    "{FILE} is not near {}; run the test with `cargo test` in a package that depends on nccl-double",
                    program.display()
                )
            })
    }

    /// Opens it, for the rest of the process.
    ///
    /// # Errors
    /// In a sentence.
    pub fn open() -> Result<Double, String> {
        let path = Double::path()?;
        // SAFETY: the double's initialisers are those of Rust's standard library.
        let library = unsafe { Library::new(&path) }.map_err(|error| format!("{}: {error}", path.display()))?;
        let double = Double::resolve(&library)?;
        std::mem::forget(library);
        Ok(double)
    }

    /// How many polls find a beginning (also a split), and a group (also an end), in progress; 1 and 1 at first.
    pub fn set_polls(&self, id: &UniqueId, init: u32, group: u32) {
        // SAFETY: see above the `impl`.
        unsafe { (self.set_polls)(&id.to_bytes(), init, group) }
    }

    /// Orders that the next `call` of `rank` never ends, at this stage. A call itself cannot hang.
    ///
    /// # Panics
    /// If that cannot be ordered: what is not an operation has no stream.
    pub fn hang(&self, id: &UniqueId, rank: u32, call: Call, stage: Stage) {
        // SAFETY: see above the `impl`.
        let done = unsafe { (self.hang)(&id.to_bytes(), rank, call as u32, stage as u32) };
        assert!(done, "{call:?} cannot hang at the stage {stage:?}");
    }

    /// Orders that the next `call` of `rank` fails with `code`, at this stage.
    ///
    /// # Panics
    /// If that cannot be ordered: what is not an operation has no stream.
    pub fn fail(&self, id: &UniqueId, rank: u32, call: Call, stage: Stage, code: Code) {
        // SAFETY: see above the `impl`.
        let done = unsafe { (self.fail)(&id.to_bytes(), rank, call as u32, stage as u32, code.number()) };
        assert!(done, "{call:?} cannot fail at the stage {stage:?}");
    }

    /// Communicators of this id that are neither aborted nor destroyed.
    pub fn live(&self, id: &UniqueId) -> u32 {
        // SAFETY: see above the `impl`.
        unsafe { (self.live)(&id.to_bytes()) }
    }

    /// Uses of this id's communicators after their end, and of finalized ones.
    pub fn misuse(&self, id: &UniqueId) -> u32 {
        // SAFETY: see above the `impl`.
        unsafe { (self.misuse)(&id.to_bytes()) }
    }

    /// Uses of handles that never were.
    pub fn strangers(&self) -> u32 {
        // SAFETY: see above the `impl`.
        unsafe { (self.strangers)() }
    }

    /// Operations on `stream` that were asked for and of whose group the caller has not seen success. An event that is
    /// recorded while this is not zero does not cover them.
    pub fn pending(&self, stream: Stream) -> u32 {
        // SAFETY: see above the `impl`.
        unsafe { (self.pending)(stream.handle()) }
    }

    /// Kernels (groups, and work beside them) that have been put on `stream`: the place of an event that is recorded now.
    pub fn launched(&self, stream: Stream) -> u64 {
        // SAFETY: see above the `impl`.
        unsafe { (self.launched)(stream.handle()) }
    }

    /// Kernels of `stream` that have ended, from the first on. An event has happened when this has reached its place.
    pub fn done(&self, stream: Stream) -> u64 {
        // SAFETY: see above the `impl`.
        unsafe { (self.done)(stream.handle()) }
    }

    /// Waits until `place` kernels of `stream` have ended; false when the time is over first.
    pub fn wait(&self, stream: Stream, place: u64, patience: Duration) -> bool {
        let milliseconds = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        // SAFETY: see above the `impl`.
        unsafe { (self.wait)(stream.handle(), place, milliseconds) }
    }

    /// Holds a stream, so that what is on it does not begin, or lets it go.
    pub fn hold(&self, stream: Stream, held: bool) {
        // SAFETY: see above the `impl`.
        unsafe { (self.hold)(stream.handle(), held) }
    }

    /// Puts `work` on `stream`, as a launch of a kernel or a copy does: it is called, from some thread, when what is before
    /// it has ended. It never calls the double, which waits for it.
    pub fn run(&self, stream: Stream, work: impl FnOnce() + Send + 'static) {
        let work: Work = Box::new(work);
        let user: *mut Work = Box::into_raw(Box::new(work));
        // SAFETY: see above the `impl`; the closure is on the heap until it is called, which happens once.
        unsafe { (self.run)(stream.handle(), call_work, user.cast()) }
    }

    /// Has `stream` wait until `place` kernels of `other` have ended, as `cudaStreamWaitEvent` does.
    pub fn order(&self, stream: Stream, other: Stream, place: u64) {
        // SAFETY: see above the `impl`.
        unsafe { (self.order)(stream.handle(), other.handle(), place) }
    }

    /// Calls `hook` for each operation of every rank when it gets on its stream, from the launching thread. There is one
    /// hook in a process; the last one counts.
    pub fn set_stream_hook(&self, hook: impl Fn(&StreamOperation) + Send + Sync + 'static) {
        let closure: Closure = Box::new(hook);
        let user: *mut Closure = Box::leak(Box::new(closure));
        // SAFETY: see above the `impl`; the closure is leaked, so it is there for the rest of the process, and it may be
        // called from any thread.
        unsafe { (self.set_stream_hook)(Some(call_closure), user.cast()) }
    }

    /// How many groups are open on this thread, one in another; 0 between calls of `nccl-rs`.
    pub fn group_depth(&self) -> u32 {
        // SAFETY: see above the `impl`.
        unsafe { (self.group_depth)() }
    }

    /// Makes `device` the current device of this thread, as `cudaSetDevice` does.
    pub fn set_device(&self, device: i32) {
        // SAFETY: see above the `impl`.
        unsafe { (self.set_device)(device) }
    }
}

unsafe extern "C" fn call_closure(user: *mut c_void, operation: *const StreamOperation) {
    // SAFETY: `user` is the leaked closure of `set_stream_hook`, and the operation lives for the call.
    let (closure, operation) = unsafe { (&*user.cast::<Closure>(), &*operation) };
    closure(operation);
}

unsafe extern "C" fn call_work(user: *mut c_void) {
    // SAFETY: `user` is the box of `run`, and this is the only call with it.
    let work = unsafe { Box::from_raw(user.cast::<Work>()) };
    work();
}

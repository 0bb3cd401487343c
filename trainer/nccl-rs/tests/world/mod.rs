//! Ranks as threads over the double: a world, memory that the double may write, and streams that nobody else has.
#![allow(dead_code, clippy::unwrap_used)] // each test program takes what it needs

use std::cell::UnsafeCell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nccl_double::Double;
use nccl_rs::{Communicator, Config, DevicePointer, Error, Nccl, State, Stream, UniqueId};

/// Longer than anything here takes on the slowest machine; only a test that fails waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) static DOUBLE: LazyLock<Double> = LazyLock::new(|| Double::open().unwrap());

pub(crate) fn nccl() -> Nccl {
    Nccl::open(Double::path().unwrap()).unwrap()
}

/// Polls until it is ready, a failure, or too late.
pub(crate) fn ready(communicator: &mut Communicator) -> Result<(), Error> {
    let started = Instant::now();
    let state = communicator.wait_while(|| started.elapsed() < PATIENCE)?;
    assert_eq!(state, State::Ready, "it stayed in progress for {PATIENCE:?}");
    Ok(())
}

/// The failure that a communicator comes to.
pub(crate) fn failure(communicator: &mut Communicator) -> Error {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Err(error) = communicator.async_state() {
            return error;
        }
        std::thread::yield_now();
    }
    panic!("it did not fail within {PATIENCE:?}");
}

pub(crate) fn begin(id: &UniqueId, ranks: u32, rank: u32) -> Communicator {
    Communicator::init(&nccl(), ranks, id, rank, &Config::new().non_blocking()).unwrap()
}

/// Runs `work` at every rank of a new world, each on its thread with a communicator that is ready; gives what they give,
/// by rank.
pub(crate) fn at_every_rank<T: Send>(
    id: &UniqueId,
    ranks: u32,
    work: impl Fn(u32, &mut Communicator) -> T + Sync,
) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks)
            .map(|rank| {
                let work = &work;
                scope.spawn(move || {
                    let mut communicator = begin(id, ranks, rank);
                    ready(&mut communicator).unwrap();
                    work(rank, &mut communicator)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// A stream of its own.
pub(crate) fn stream() -> Stream {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let handle = std::ptr::without_provenance_mut(NEXT.fetch_add(1, Ordering::Relaxed));
    // SAFETY: the double looks behind no stream.
    unsafe { Stream::from_raw(handle) }
}

/// Waits for all that is on `stream`.
pub(crate) fn synchronize(stream: Stream) {
    let place = DOUBLE.launched(stream);
    assert!(
        DOUBLE.wait(stream, place, PATIENCE),
        "the stream did not end within {PATIENCE:?}"
    );
}

/// Memory that the double reads and writes while the test holds it.
pub(crate) struct Memory(Box<[UnsafeCell<u8>]>);

// SAFETY: tests read and write it only before an operation is asked for and after its stream has ended.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn of(bytes: &[u8]) -> Memory {
        Memory(bytes.iter().copied().map(UnsafeCell::new).collect())
    }

    pub(crate) fn zeros(bytes: usize) -> Memory {
        Memory::of(&vec![0; bytes])
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        // SAFETY: see `Sync` above.
        self.0.iter().map(|byte| unsafe { *byte.get() }).collect()
    }

    /// Every test here keeps its memory until the communicator is gone or the stream has ended.
    pub(crate) fn pointer(&self) -> DevicePointer {
        // SAFETY: as long as the slice; kept as said above.
        unsafe { DevicePointer::new(self.0.as_ptr().cast_mut().cast(), self.0.len()) }
    }
}

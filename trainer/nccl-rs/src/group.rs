//! Work: operations between ranks, in groups.
//!
//! Whatever moves data is asked for inside of [`Communicator::group`], one operation or many; all of a group run as one,
//! so sends and receives in it wait for each other in no order. The group's end is always called, after an error and in a
//! panic too, since the library would otherwise keep this thread inside of it. After an error some of the operations may
//! run and others not, so the communicator can then only be aborted.

use std::cell::Cell;
use std::ffi::c_int;
use std::marker::PhantomData;

use crate::State;
use crate::communicator::{Communicator, Life};
use crate::error::Error;
use crate::library::Nccl;
use crate::raw::{CommHandle, ResultCode};

thread_local! {
    /// Whether this thread stands inside of a group; groups belong to threads.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Refuses `call` inside of a group: the library would put it off to the group's end.
pub(crate) fn check_outside(call: &'static str) -> Result<(), Error> {
    if INSIDE.get() {
        return Err(Error::InsideGroup { call });
    }
    Ok(())
}

/// A group that was started and not ended.
pub(crate) struct Open {
    nccl: Nccl,
}

impl Open {
    pub(crate) fn start(nccl: Nccl) -> Result<Open, Error> {
        const CALL: &str = "ncclGroupStart";
        check_outside(CALL)?;
        // SAFETY: it takes nothing and counts a depth of this thread.
        nccl.checked(CALL, unsafe { (nccl.api.group_start)() })?;
        INSIDE.set(true);
        Ok(Open { nccl })
    }

    pub(crate) fn end(self) -> Result<State, Error> {
        let open = std::mem::ManuallyDrop::new(self);
        let answer = open.call();
        open.nccl.checked("ncclGroupEnd", answer)
    }

    fn call(&self) -> ResultCode {
        INSIDE.set(false);
        // SAFETY: it belongs to the start in `start`, on the same thread, since `Open` is held by values that do not
        // leave it, and it is called once.
        unsafe { (self.nccl.api.group_end)() }
    }
}

impl Drop for Open {
    /// Only a panic comes here.
    fn drop(&mut self) {
        self.call();
    }
}

impl Communicator {
    /// Runs `enqueue`, which asks for operations, as one group (`ncclGroupStart` … `ncclGroupEnd`).
    ///
    /// In a non-blocking communicator the answer is [`State::InProgress`] wherever there was work: poll
    /// [`Communicator::async_state`], and record events on the stream only when it says [`State::Ready`].
    ///
    /// ```no_run
    /// # use nccl_rs::{Communicator, DataType, DevicePointer, Error, Stream};
    /// # fn example(c: &mut Communicator, mine: DevicePointer, theirs: DevicePointer, stream: Stream) -> Result<(), Error> {
    /// c.group(|group| {
    ///     group.send(mine, mine.bytes(), DataType::Uint8, 1, stream)?;
    ///     group.recv(theirs, theirs.bytes(), DataType::Uint8, 1, stream)
    /// })?;
    /// c.wait_while(|| true)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What the life of the communicator does not allow, the first error inside (kept, even if `enqueue` passes over
    /// it), and what NCCL says at the end.
    pub fn group(&mut self, enqueue: impl FnOnce(&mut Group<'_>) -> Result<(), Error>) -> Result<State, Error> {
        self.check_idle("ncclGroupStart")?;
        let open = Open::start(self.nccl)?;
        // Stands if `enqueue` panics.
        self.life = Life::Failed("a panic left a group before its end".into());
        let mut group = Group {
            communicator: self,
            first: None,
            this_thread: PhantomData,
        };
        let inside = enqueue(&mut group);
        let first = group.first.take();
        let ended = open.end();
        let state = match first {
            Some(error) => Err(error),
            None => inside.and(ended),
        };
        self.settle(state)
    }
}

/// A group that is open on this thread; see [`Communicator::group`].
///
/// Counts are elements of the given type. Buffers may be longer than needed. What an operation reads and writes has to
/// stay alone until its end on the stream: that is the contract of [`crate::DevicePointer::new`].
pub struct Group<'a> {
    communicator: &'a mut Communicator,
    first: Option<Error>,
    /// Groups belong to threads, so this stays on its own.
    this_thread: PhantomData<*const ()>,
}

impl Group<'_> {
    /// Runs one operation, unless an earlier one of the group has failed, and keeps its error.
    pub(crate) fn kept(&mut self, operation: impl FnOnce(&Self) -> Result<(), Error>) -> Result<(), Error> {
        if let Some(first) = &self.first {
            return Err(first.clone());
        }
        operation(self).inspect_err(|error| self.first = Some(error.clone()))
    }

    pub(crate) fn answered(&self, call: &'static str, answer: ResultCode) -> Result<(), Error> {
        self.nccl().checked(call, answer).map(|_| ())
    }

    pub(crate) fn nccl(&self) -> &Nccl {
        &self.communicator.nccl
    }

    pub(crate) fn handle(&self) -> CommHandle {
        self.communicator.handle
    }

    /// A communicator that takes work knows its place.
    pub(crate) fn ranks(&self) -> usize {
        self.communicator.place.map_or(0, |place| place.ranks as usize)
    }

    pub(crate) fn is_rank(&self, rank: u32) -> bool {
        self.communicator.place.is_some_and(|place| place.rank == rank)
    }

    pub(crate) fn rank(&self, call: &'static str, rank: u32) -> Result<c_int, Error> {
        let ranks = self.communicator.place.map_or(0, |place| place.ranks);
        if rank < ranks {
            Ok(rank.cast_signed())
        } else {
            Err(Error::NoSuchRank { call, rank, ranks })
        }
    }
}

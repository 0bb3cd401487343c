//! One rank's end of a communicator: how it begins, what it tells, how it ends.
//!
//! What it may do depends on its life, which is kept here and checked before the library is called: not ready, failed and
//! gone are errors of ours. Work goes through [`Communicator::group`]; see `group`.

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::time::{Duration, Instant};

use crate::config::{Config, Texts};
use crate::error::Error;
use crate::group;
use crate::library::Nccl;
use crate::raw::{self, CommHandle};
use crate::{State, UniqueId};

/// One rank's end of a communicator. One thread at a time uses it (`Send`, not `Sync`), and for all communicators of a
/// device it is best the same one. Dropping it aborts it, which blocks until its kernels have stopped.
#[derive(Debug)]
pub struct Communicator {
    pub(crate) nccl: Nccl,
    pub(crate) handle: CommHandle,
    pub(crate) life: Life,
    finalized: bool,
    pub(crate) place: Option<Place>,
    texts: Texts,
    /// Where the library's thread writes the child of a split, at some time before the parent is ready again.
    child: Option<Child>,
}

/// What may be done with it.
#[derive(Debug)]
pub(crate) enum Life {
    Ready,
    InProgress,
    Failed(String),
    Gone(&'static str),
}

/// This rank's place. A child learns it when it is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) rank: u32,
    pub(crate) ranks: u32,
}

#[derive(Debug)]
struct Child {
    slot: Box<UnsafeCell<CommHandle>>,
    texts: Texts,
}

// SAFETY: NCCL ties a communicator to no thread, only to one at a time, which `&mut self` and the missing `Sync` give.
// The slot of a child is on the heap and is read only when the library's thread is through with it.
unsafe impl Send for Communicator {}

impl Communicator {
    /// Begins rank `rank` of `ranks` (`ncclCommInitRankConfig`). It takes the device that is current on this thread. All
    /// ranks have to come with the same `id`; in a non-blocking communicator that meeting goes on after the return, and
    /// [`Communicator::async_state`] says when it is through.
    ///
    /// ```no_run
    /// use nccl_rs::{Communicator, Config, Nccl, State};
    /// let nccl = Nccl::load()?;
    /// let id = nccl.unique_id()?;
    /// let mut communicator = Communicator::init(&nccl, 1, &id, 0, &Config::new().non_blocking())?;
    /// while communicator.async_state()? == State::InProgress {
    ///     std::thread::yield_now();
    /// }
    /// # Ok::<(), nccl_rs::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoSuchRank`], [`Error::BlockingFromEnvironment`], [`Error::InsideGroup`], and what NCCL says: no driver
    /// is [`crate::Code::UnhandledCuda`], no network interface [`crate::Code::InvalidUsage`].
    pub fn init(nccl: &Nccl, ranks: u32, id: &UniqueId, rank: u32, config: &Config) -> Result<Communicator, Error> {
        const CALL: &str = "ncclCommInitRankConfig";
        group::check_outside(CALL)?;
        config.check_environment()?;
        let outside = Error::NoSuchRank {
            call: CALL,
            rank,
            ranks,
        };
        let (Ok(size), true) = (c_int::try_from(ranks), rank < ranks) else {
            return Err(outside);
        };
        let texts = config.texts();
        let mut config = config.to_raw();
        let mut handle = std::ptr::null_mut();
        // SAFETY: handle and configuration are ours for the call; the texts that the configuration points to live as
        // long as the communicator; the rank is below `size`, so it is a C int.
        let answer =
            unsafe { (nccl.api.init)(&raw mut handle, size, id.to_raw(), rank.cast_signed(), &raw mut config) };
        let state = nccl.checked(CALL, answer);
        let communicator = (!handle.is_null()).then(|| Communicator {
            nccl: *nccl,
            handle,
            life: Life::from_state(State::InProgress),
            finalized: false,
            place: Some(Place { rank, ranks }),
            texts,
            child: None,
        });
        // On a failure a handle that was made all the same is aborted here, by its drop.
        let state = state?;
        let mut communicator = communicator.ok_or_else(|| Error::Nccl {
            code: crate::Code::Internal,
            call: CALL,
            text: "it gave success and no communicator".into(),
            detail: String::new(),
        })?;
        communicator.life = Life::from_state(state);
        Ok(communicator)
    }

    /// What the last call has come to (`ncclCommGetAsyncError`). While it is [`State::InProgress`], nothing else but
    /// [`Communicator::abort`] may be called, and **nothing of the last group is on its stream yet**: an event that is
    /// recorded now does not cover it. It also tells failures that came later, from the network or from other ranks, so
    /// it is worth a look in every round of a waiting loop.
    ///
    /// ```no_run
    /// # fn example(communicator: &mut nccl_rs::Communicator) -> Result<(), nccl_rs::Error> {
    /// if communicator.async_state()? == nccl_rs::State::Ready {
    ///     // record an event on the stream
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The failure of a call that was in progress, or of the communicator; it can then only be aborted.
    pub fn async_state(&mut self) -> Result<State, Error> {
        const CALL: &str = "ncclCommGetAsyncError";
        group::check_outside(CALL)?;
        match &self.life {
            Life::Ready | Life::InProgress => {}
            _ => self.check_ready(CALL)?,
        }
        let mut state = raw::IN_PROGRESS;
        // SAFETY: the handle is live and this thread has it alone; it writes one number.
        let answer = unsafe { (self.nccl.api.async_error)(self.handle, &raw mut state) };
        // A job that failed comes as the answer, a communicator that failed as the value.
        let state = self
            .nccl
            .checked(CALL, answer)
            .and_then(|_| self.nccl.checked(CALL, state));
        self.settle(state)
    }

    /// Polls [`Communicator::async_state`] until it is ready or `keep_waiting` says no: first without a pause, after 20 µs
    /// with short sleeps.
    ///
    /// ```no_run
    /// # fn example(communicator: &mut nccl_rs::Communicator) -> Result<(), nccl_rs::Error> {
    /// let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    /// let state = communicator.wait_while(|| std::time::Instant::now() < deadline)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Communicator::async_state`]. Running out of patience is none: the state is then still
    /// [`State::InProgress`].
    pub fn wait_while(&mut self, mut keep_waiting: impl FnMut() -> bool) -> Result<State, Error> {
        let started = Instant::now();
        loop {
            let state = self.async_state()?;
            if state == State::Ready || !keep_waiting() {
                return Ok(state);
            }
            if started.elapsed() < Duration::from_micros(20) {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }

    /// Divides the communicator (`ncclCommSplit`): ranks with the same colour meet in a child, in the order of their keys
    /// and, where these are equal, of their ranks. Without a colour this rank takes part and gets no child. When the
    /// state is ready, [`Communicator::take_split`] gives the child. Without a configuration it has its parent's.
    ///
    /// ```no_run
    /// # fn example(communicator: &mut nccl_rs::Communicator) -> Result<(), nccl_rs::Error> {
    /// communicator.split(Some(0), 0, None)?;
    /// communicator.wait_while(|| true)?;
    /// let child = communicator.take_split()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::BlockingFromEnvironment`], what the life of the communicator does not allow, and what NCCL says.
    pub fn split(&mut self, colour: Option<u16>, key: i32, config: Option<&Config>) -> Result<State, Error> {
        const CALL: &str = "ncclCommSplit";
        self.check_idle(CALL)?;
        let mut raw_config = None;
        if let Some(config) = config {
            config.check_environment()?;
            raw_config = Some(config.to_raw());
        }
        let child = self.child.insert(Child {
            slot: Box::new(UnsafeCell::new(std::ptr::null_mut())),
            texts: config.map_or_else(|| self.texts.clone(), Config::texts),
        });
        // SAFETY: the handle is live and this thread has it alone. The slot is on the heap and stays there until the
        // library is through with the split: it is read or dropped only when ready, or after the abort.
        let answer = unsafe {
            (self.nccl.api.split)(
                self.handle,
                colour.map_or(raw::NO_COLOUR, c_int::from),
                key,
                child.slot.get(),
                raw_config
                    .as_mut()
                    .map_or(std::ptr::null_mut(), |config| &raw mut *config),
            )
        };
        let state = self.nccl.checked(CALL, answer);
        self.settle(state)
    }

    /// The child of the last [`Communicator::split`]; `None` where this rank had no colour.
    ///
    /// # Errors
    /// [`Error::InProgress`] until the state is ready, [`Error::NoSplit`] where there was no split.
    pub fn take_split(&mut self) -> Result<Option<Communicator>, Error> {
        self.check_ready("ncclCommSplit")?;
        let child = self.child.take().ok_or(Error::NoSplit)?;
        // The library's thread has ended: its last write came before the state that was read as ready.
        let handle = child.slot.into_inner();
        if handle.is_null() {
            return Ok(None);
        }
        let mut child = Communicator {
            nccl: self.nccl,
            handle,
            life: Life::Ready,
            finalized: false,
            place: None,
            texts: child.texts,
            child: None,
        };
        child.place = Some(Place {
            ranks: child.count()?,
            rank: child.rank()?,
        });
        Ok(Some(child))
    }

    /// Begins the normal end (`ncclCommFinalize`): waits, in the background, for all operations of all ranks. Then
    /// [`Communicator::destroy`] does not block. In doubt about the other ranks, abort.
    ///
    /// ```no_run
    /// # fn example(mut communicator: nccl_rs::Communicator) -> Result<(), nccl_rs::Error> {
    /// communicator.finalize()?;
    /// communicator.wait_while(|| true)?;
    /// communicator.destroy()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What the life of the communicator does not allow, and what NCCL says.
    pub fn finalize(&mut self) -> Result<State, Error> {
        const CALL: &str = "ncclCommFinalize";
        self.check_idle(CALL)?;
        // SAFETY: the handle is live, ready, and this thread has it alone.
        let answer = unsafe { (self.nccl.api.finalize)(self.handle) };
        self.finalized = true;
        let state = self.nccl.checked(CALL, answer);
        self.settle(state)
    }

    /// Frees it (`ncclCommDestroy`). Blocks for all ranks if it was not finalized.
    ///
    /// The library asks nothing of a communicator that is not ready: it answers with an error and leaves this thread
    /// inside of a group. So the state is asked first.
    ///
    /// # Errors
    /// [`Error::InProgress`] and a failure, in which cases it is not destroyed: abort it. What NCCL says later, in which
    /// case it is gone.
    pub fn destroy(&mut self) -> Result<(), Error> {
        const CALL: &str = "ncclCommDestroy";
        if !matches!(self.life, Life::Failed(_) | Life::Gone(_)) {
            self.async_state()?;
        }
        self.check_ready(CALL)?;
        self.life = Life::Gone("destroyed");
        // SAFETY: the handle is live and ready, and is never used again.
        let answer = unsafe { (self.nccl.api.destroy)(self.handle) };
        self.nccl.checked(CALL, answer).map(|_| ())
    }

    /// Stops whatever is under way and frees it (`ncclCommAbort`), in any state, also during its beginning. It blocks
    /// until the kernels have stopped. Memory that was in flight holds anything afterwards, and the handle is gone.
    ///
    /// ```no_run
    /// # fn example(communicator: &mut nccl_rs::Communicator) -> Result<(), nccl_rs::Error> {
    /// communicator.abort()?;
    /// assert!(communicator.async_state().is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::InsideGroup`], and what NCCL says (it is gone then too).
    pub fn abort(&mut self) -> Result<(), Error> {
        const CALL: &str = "ncclCommAbort";
        group::check_outside(CALL)?;
        if let Life::Gone(how) = self.life {
            return Err(Error::Gone { call: CALL, how });
        }
        self.abort_handle()
    }

    /// Aborts all of them in one group; those that are gone already are passed over. Several communicators of a process
    /// have to go together: freeing one while the kernel of another runs can lock both.
    ///
    /// ```no_run
    /// # fn example(mut a: nccl_rs::Communicator, mut b: nccl_rs::Communicator) -> Result<(), nccl_rs::Error> {
    /// nccl_rs::Communicator::abort_all(&mut [&mut a, &mut b])?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Foreign`] if they are not of one library, [`Error::InsideGroup`], and what NCCL says first.
    pub fn abort_all(communicators: &mut [&mut Communicator]) -> Result<(), Error> {
        const CALL: &str = "ncclCommAbort";
        let Some(nccl) = communicators.first().map(|first| first.nccl) else {
            return Ok(());
        };
        if !communicators.iter().all(|one| one.nccl.is_same(&nccl)) {
            return Err(Error::Foreign {
                call: CALL,
                what: "a communicator",
            });
        }
        let open = group::Open::start(nccl)?;
        let mut first = Ok(());
        for one in communicators {
            if !matches!(one.life, Life::Gone(_)) {
                first = first.and(one.abort_handle());
            }
        }
        let ended = open.end();
        first.and(ended.map(|_| ()))
    }

    pub(crate) fn abort_handle(&mut self) -> Result<(), Error> {
        self.life = Life::Gone("aborted");
        // SAFETY: the handle is live, this thread has it alone, and it is never used again.
        let answer = unsafe { (self.nccl.api.abort)(self.handle) };
        self.nccl.checked("ncclCommAbort", answer).map(|_| ())
    }

    /// Ready, and not finalized: it takes work.
    pub(crate) fn check_idle(&self, call: &'static str) -> Result<(), Error> {
        self.check_ready(call)?;
        if self.finalized {
            return Err(Error::Finalized { call });
        }
        Ok(())
    }

    pub(crate) fn check_ready(&self, call: &'static str) -> Result<(), Error> {
        group::check_outside(call)?;
        match &self.life {
            Life::Ready => Ok(()),
            Life::InProgress => Err(Error::InProgress { call }),
            Life::Failed(reason) => Err(Error::Failed {
                call,
                reason: reason.clone(),
            }),
            Life::Gone(how) => Err(Error::Gone { call, how }),
        }
    }

    /// Keeps what a call has come to.
    pub(crate) fn settle(&mut self, state: Result<State, Error>) -> Result<State, Error> {
        self.life = match &state {
            Ok(state) => Life::from_state(*state),
            Err(error) => Life::Failed(error.to_string()),
        };
        state
    }
}

impl Life {
    fn from_state(state: State) -> Life {
        match state {
            State::Ready => Life::Ready,
            State::InProgress => Life::InProgress,
        }
    }
}

impl Drop for Communicator {
    /// Aborts what is still there. Inside of a group of this thread that cannot be done well, so there it is leaked.
    fn drop(&mut self) {
        if !matches!(self.life, Life::Gone(_)) && group::check_outside("ncclCommAbort").is_ok() {
            // Nobody is left to be told of a failure.
            let _ = self.abort_handle();
        }
    }
}

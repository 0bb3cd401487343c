//! The tasks of the communication thread, what has become of them, and who waits for them.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::Collective;
use crate::device::Recorded;
use crate::error::CollectiveError;
use crate::tree::LaneTree;

type Call = Box<dyn FnOnce(&mut dyn Collective) + Send>;

/// Something to do.
pub(super) enum Task {
    /// Reduce a bucket, whose partials are final when `ready` is.
    Reduce {
        bucket: u32,
        tree: Arc<LaneTree>,
        ready: Recorded,
    },
    /// Gather a layer, whose old working copies nobody uses when `used` is done.
    Gather { layer: usize, used: Recorded },
    /// Another call, which answers by itself.
    Call(Call),
}

/// What [`Queue::next`] has found.
pub(super) enum Next {
    Task(Task),
    /// The time is over.
    Nothing,
    Closed,
}

/// What a task has left behind.
pub(super) enum Done {
    Reduced(u32, Recorded, Duration),
    Gathered(Recorded, Duration),
    Called,
}

/// What has been done.
#[derive(Default)]
pub(super) struct Progress {
    /// By bucket of this step.
    pub(super) reduced: Vec<Option<Recorded>>,
    /// By layer of the last gathers.
    pub(super) gathered: Vec<Recorded>,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    /// Whether a task is being done.
    busy: bool,
    closed: bool,
    progress: Progress,
    reducing: Duration,
    gathering: Duration,
    /// The first failure, until somebody has heard of it; then its words.
    failure: Option<CollectiveError>,
    failed: Option<String>,
}

/// Tasks in their order, done by one thread at a time.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// A task was put in, or the queue was closed.
    filled: Condvar,
    /// A task was done.
    done: Condvar,
}

impl State {
    fn check(&mut self) -> Result<(), CollectiveError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        match &self.failed {
            Some(reason) => Err(nccl_host::Error::Aborted {
                reason: format!("an earlier call failed: {reason}"),
            }
            .into()),
            None => Ok(()),
        }
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, task: Task) {
        self.state().tasks.push_back(task);
        self.filled.notify_one();
    }

    /// Forgets what the last step reduced.
    pub(super) fn begin_round(&self) {
        self.state().progress.reduced.clear();
    }

    /// Forgets what the last step gathered.
    pub(super) fn begin_gathers(&self) {
        self.state().progress.gathered.clear();
    }

    /// Waits for the next task, for so long at most where a time is given.
    pub(super) fn next(&self, patience: Option<Duration>) -> Next {
        let mut state = self.state();
        loop {
            if state.closed {
                return Next::Closed;
            }
            if let Some(task) = state.tasks.pop_front() {
                state.busy = true;
                return Next::Task(task);
            }
            state = match patience {
                None => self.filled.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(patience) => {
                    let (state, waited) = self
                        .filled
                        .wait_timeout(state, patience)
                        .unwrap_or_else(PoisonError::into_inner);
                    if waited.timed_out() && state.tasks.is_empty() && !state.closed {
                        return Next::Nothing;
                    }
                    state
                }
            };
        }
    }

    /// The next task, if there is one.
    pub(super) fn try_next(&self) -> Option<Task> {
        let mut state = self.state();
        let task = state.tasks.pop_front();
        state.busy = task.is_some();
        task
    }

    /// What the task of [`Queue::next`] has come to. After a failure all other tasks are dropped.
    pub(super) fn finish(&self, result: Result<Done, CollectiveError>) {
        let mut state = self.state();
        state.busy = false;
        match result {
            Ok(Done::Reduced(bucket, recorded, took)) => {
                let reduced = &mut state.progress.reduced;
                let place = bucket as usize;
                reduced.resize(reduced.len().max(place + 1), None);
                reduced[place] = Some(recorded);
                state.reducing += took;
            }
            Ok(Done::Gathered(recorded, took)) => {
                state.progress.gathered.push(recorded);
                state.gathering += took;
            }
            Ok(Done::Called) => {}
            Err(failure) => {
                state.failed.get_or_insert_with(|| failure.to_string());
                state.failure.get_or_insert(failure);
                // A call that is dropped tells its caller by that.
                state.tasks.clear();
            }
        }
        self.done.notify_all();
    }

    /// Waits until there is nothing to do.
    pub(super) fn wait_idle(&self) -> Result<(), CollectiveError> {
        let mut state = self.state();
        loop {
            state.check()?;
            if state.tasks.is_empty() && !state.busy {
                return Ok(());
            }
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What `found` finds now.
    pub(super) fn look(&self, found: &impl Fn(&Progress) -> Option<Recorded>) -> Option<Recorded> {
        found(&self.state().progress)
    }

    /// Waits until `found` finds something, or nothing is left that could bring it about.
    pub(super) fn wait_for(&self, found: impl Fn(&Progress) -> Option<Recorded>) -> Result<Recorded, CollectiveError> {
        let mut state = self.state();
        loop {
            state.check()?;
            if let Some(recorded) = found(&state.progress) {
                return Ok(recorded);
            }
            if state.tasks.is_empty() && !state.busy {
                return Err(CollectiveError::misuse(
                    "wait",
                    "it waits for a bucket or a layer that nobody has put in",
                ));
            }
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How long reductions and gathers took since the last call.
    pub(super) fn take_times(&self) -> (Duration, Duration) {
        let mut state = self.state();
        (
            std::mem::take(&mut state.reducing),
            std::mem::take(&mut state.gathering),
        )
    }

    /// Ends [`Queue::next`]. Whether something was left to do.
    pub(super) fn close(&self) -> bool {
        let mut state = self.state();
        state.closed = true;
        let left = state.busy || !state.tasks.is_empty();
        state.tasks.clear();
        self.filled.notify_all();
        left
    }
}

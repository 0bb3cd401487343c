//! Groups: each thread has its own depth, and keeps what was asked for until the outermost end.

use std::cell::RefCell;
use std::collections::HashMap;

use nccl_rs::raw::{self, ResultCode};

use crate::launch;
use crate::life;
use crate::operation::{Call, Operation, Stage};
use crate::state::{Activity, Half, Handle, State, lock};

#[derive(Default)]
struct Group {
    depth: u32,
    /// The first failure inside.
    error: ResultCode,
    operations: Vec<(Handle, Operation)>,
    aborts: Vec<Handle>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

/// How many groups of this thread are open, one in another.
pub(crate) fn depth() -> u32 {
    GROUP.with_borrow(|group| group.depth)
}

pub(crate) fn start() -> ResultCode {
    GROUP.with_borrow_mut(|group| group.depth += 1);
    raw::SUCCESS
}

/// Keeps a failure for the group's end.
fn keep(code: ResultCode) {
    GROUP.with_borrow_mut(|group| {
        if group.depth > 0 && group.error == raw::SUCCESS {
            group.error = code;
        }
    });
}

/// Asks for one operation: into the open group, or as a group of its own.
pub(crate) fn enqueue(handle: Handle, call: &str, operation: Operation) -> ResultCode {
    start();
    let asked = checked(handle, call, operation);
    if asked != raw::SUCCESS {
        keep(asked);
    }
    let ended = end();
    let mut state = lock();
    match state.communicators.get(&handle) {
        // As the real one: what the communicator says now, whatever the group's end said.
        Some(communicator) if !communicator.blocking && communicator.gone.is_none() => communicator.result,
        _ if asked != raw::SUCCESS => asked,
        _ => {
            if ended == raw::SUCCESS && depth() == 0 {
                state.forget_unseen(handle);
            }
            ended
        }
    }
}

fn checked(handle: Handle, call: &str, operation: Operation) -> ResultCode {
    let mut state = lock();
    match state.take(handle, call, operation) {
        Ok(operation) => {
            GROUP.with_borrow_mut(|group| group.operations.push((handle, operation)));
            raw::SUCCESS
        }
        Err(code) => {
            // As the real one: a refused operation is the communicator's failure, also in the middle of another.
            if let Some(communicator) = state.communicators.get_mut(&handle)
                && !communicator.blocking
                && communicator.gone.is_none()
            {
                communicator.result = code;
            }
            code
        }
    }
}

impl State {
    /// Checks an operation and gives it its place in the order.
    fn take(&mut self, handle: Handle, call: &str, mut operation: Operation) -> Result<Operation, ResultCode> {
        let communicator = self.ready(handle, call)?;
        let (world, rank, finalized) = (communicator.world, communicator.rank, communicator.finalized);
        if finalized {
            self.worlds[world].misuse += 1;
            return Err(self.refuse(raw::INVALID_USAGE, format!("{call} : comm is finalized")));
        }
        let ranks = self.worlds[world].ranks;
        if operation.other >= ranks {
            let words = format!(
                "{call} : invalid root {} (root should be in the 0..{ranks} range)",
                operation.other
            );
            return Err(self.refuse(raw::INVALID_ARGUMENT, words));
        }
        let ranges = operation.ranges(rank, ranks);
        let is_null = |address: usize, bytes: usize| bytes > 0 && address == 0;
        if is_null(ranges.read, ranges.read_bytes) || is_null(ranges.written, ranges.written_bytes) {
            return Err(self.refuse(raw::INVALID_ARGUMENT, format!("{call} : a buffer is NULL")));
        }
        let reduces = matches!(operation.call, Call::Reduce | Call::AllReduce | Call::ReduceScatter);
        if reduces
            && operation.kind.bytes() == 1
            && crate::reduce::reduced(operation.kind, operation.reduction, &[vec![0]]).is_none()
        {
            return Err(self.refuse(
                raw::INVALID_ARGUMENT,
                format!("{call} : the double does not add 8-bit floats"),
            ));
        }
        if let Some(code) = self.disturbed(world, rank, operation.call, Stage::Call) {
            let code = code.unwrap_or(raw::INTERNAL_ERROR);
            return Err(self.refuse(code, format!("{call} : ordered to fail")));
        }
        let communicator = self.ready(handle, call)?;
        let half = match operation.call {
            Call::Send => Some(Half::Send),
            Call::Recv => Some(Half::Recv),
            _ => None,
        };
        let count = match half {
            Some(half) => communicator.pairs.entry((half, operation.other)).or_default(),
            None => &mut communicator.collectives,
        };
        operation.sequence = *count;
        *count += 1;
        communicator.unseen.push(operation.stream);
        Ok(operation)
    }

    /// The caller has seen that all it asked for is on its stream, or that none of it will be.
    pub(crate) fn forget_unseen(&mut self, handle: Handle) {
        if let Some(communicator) = self.communicators.get_mut(&handle) {
            communicator.unseen.clear();
        }
    }
}

/// Aborts now, or with the rest of the group that is open.
pub(crate) fn abort(handle: Handle) -> ResultCode {
    let begun = life::begin_abort(handle);
    if begun != raw::SUCCESS {
        keep(begun);
        return begun;
    }
    let inside = GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group.aborts.push(handle);
        }
        group.depth > 0
    });
    if !inside {
        life::finish_abort(handle);
    }
    raw::SUCCESS
}

pub(crate) fn end() -> ResultCode {
    if depth() == 0 {
        return lock().refuse(raw::INVALID_USAGE, "ncclGroupEnd: not in a group call.");
    }
    let group = GROUP.with_borrow_mut(|group| {
        group.depth -= 1;
        (group.depth == 0).then(|| std::mem::take(group))
    });
    let Some(group) = group else { return raw::SUCCESS };

    let mut answer = group.error;
    if answer == raw::SUCCESS {
        answer = launch_all(group.operations);
    } else {
        // Nothing of a group with a failure gets on a stream.
        let mut state = lock();
        for (handle, _) in &group.operations {
            state.forget_unseen(*handle);
        }
    }
    for handle in group.aborts {
        life::finish_abort(handle);
    }
    answer
}

fn launch_all(operations: Vec<(Handle, Operation)>) -> ResultCode {
    let mut order = Vec::new();
    let mut of: HashMap<Handle, Vec<Operation>> = HashMap::new();
    for (handle, operation) in operations {
        let kept = of.entry(handle).or_default();
        if kept.is_empty() {
            order.push(handle);
        }
        kept.push(operation);
    }
    let mut state = lock();
    let blocking: Vec<bool> = order
        .iter()
        .filter_map(|handle| state.communicators.get(handle))
        .map(|communicator| communicator.blocking)
        .collect();
    if blocking.iter().any(|one| *one != blocking[0]) {
        let words = "Blocking and nonblocking communicators are not allowed in the same group.";
        return state.refuse(raw::INVALID_ARGUMENT, words);
    }
    // Another rank's launch may have failed one since its operations were asked for.
    let failure = order
        .iter()
        .filter_map(|handle| state.communicators.get(handle))
        .map(|communicator| communicator.result)
        .find(|result| !matches!(*result, raw::SUCCESS | raw::IN_PROGRESS));
    if let Some(failure) = failure {
        for handle in &order {
            state.forget_unseen(*handle);
        }
        return failure;
    }
    let waits = blocking.first() == Some(&true);
    for handle in &order {
        let Some(communicator) = state.communicators.get_mut(handle) else {
            continue;
        };
        let world = communicator.world;
        communicator.launching = true;
        if !waits {
            communicator.result = raw::IN_PROGRESS;
            communicator.activity = Activity::Group;
            let polls = state.worlds[world].group_polls;
            if let Some(communicator) = state.communicators.get_mut(handle) {
                communicator.polls_left = polls;
            }
        }
    }
    drop(state);
    let mut answer = raw::SUCCESS;
    for handle in order {
        let operations = of.remove(&handle).unwrap_or_default();
        if waits {
            answer = answer.max(launch::launch(handle, operations));
            lock().forget_unseen(handle);
        } else {
            launch::in_background(handle, operations);
            answer = raw::IN_PROGRESS;
        }
    }
    answer
}

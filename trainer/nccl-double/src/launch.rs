//! Getting a group's operations on their streams: on a thread of its own in non-blocking communicators, as NCCL does it.

use nccl_rs::raw::{self, ResultCode};

use crate::operation::{Operation, Stage};
use crate::state::{Activity, Handle, Hook, Kernel, State, changed, lock, wait};

/// Starts a thread that launches.
pub(crate) fn in_background(handle: Handle, operations: Vec<Operation>) {
    let started = std::thread::Builder::new()
        .name("nccl-double".into())
        .spawn(move || launch(handle, operations));
    if started.is_err() {
        let mut state = lock();
        let code = state.refuse(raw::SYSTEM_ERROR, "no thread could be started");
        ended(&mut state, handle, code);
    }
}

/// Launches when the polls are over; ends early when the communicator is aborted.
pub(crate) fn launch(handle: Handle, operations: Vec<Operation>) -> ResultCode {
    let mut state = lock();
    loop {
        let Some(communicator) = state.communicators.get(&handle) else {
            return raw::SUCCESS;
        };
        if communicator.aborting {
            return ended(&mut state, handle, raw::SUCCESS);
        }
        if communicator.blocking || communicator.polls_left == 0 {
            break;
        }
        state = wait(state);
    }
    let Some((world, rank)) = state.communicators.get(&handle).map(|found| (found.world, found.rank)) else {
        return raw::SUCCESS;
    };

    match ordered(&mut state, &operations, world, rank, Stage::Launch) {
        Some(Some(code)) => {
            let code = state.refuse(code, "ordered to fail while it is launched");
            state.forget_unseen(handle);
            return ended(&mut state, handle, code);
        }
        Some(None) => {
            while !state.communicators.get(&handle).is_none_or(|found| found.aborting) {
                state = wait(state);
            }
            return ended(&mut state, handle, raw::SUCCESS);
        }
        None => {}
    }
    let late = ordered(&mut state, &operations, world, rank, Stage::Stream);

    // The hook may ask the double something, so it is called without the lock.
    if let Some(hook) = state.hook {
        let ranks = state.worlds[world].ranks;
        drop(state);
        tell(hook, &operations, rank, ranks);
        state = lock();
        if state.communicators.get(&handle).is_some_and(|found| found.aborting) {
            return ended(&mut state, handle, raw::SUCCESS);
        }
    }

    let mut streams: Vec<usize> = operations.iter().map(|operation| operation.stream).collect();
    streams.sort_unstable();
    streams.dedup();
    if let (Some(late), Some(communicator)) = (late, state.communicators.get_mut(&handle)) {
        communicator.late = late;
    }
    state.put_on_streams(Kernel {
        owner: handle,
        world,
        rank,
        streams,
        operations,
        stuck: late.is_some(),
    });
    ended(&mut state, handle, raw::SUCCESS)
}

/// The disturbance that a test has ordered for one of these operations.
fn ordered(
    state: &mut State,
    operations: &[Operation],
    world: usize,
    rank: u32,
    stage: Stage,
) -> Option<Option<ResultCode>> {
    operations
        .iter()
        .find_map(|operation| state.disturbed(world, rank, operation.call, stage))
}

/// The launch is over; a failure that came meanwhile stays.
fn ended(state: &mut State, handle: Handle, code: ResultCode) -> ResultCode {
    let mut answer = code;
    if let Some(communicator) = state.communicators.get_mut(&handle) {
        communicator.launching = false;
        communicator.activity = Activity::None;
        if code != raw::SUCCESS || communicator.result == raw::IN_PROGRESS {
            communicator.result = code;
        }
        answer = communicator.result;
    }
    changed();
    answer
}

fn tell(hook: Hook, operations: &[Operation], rank: u32, ranks: u32) {
    for operation in operations {
        let shown = operation.shown(rank, ranks);
        // SAFETY: who set the hook promised that it may be called from any thread with what was given beside it.
        unsafe { (hook.function)(std::ptr::with_exposed_provenance_mut(hook.user), &raw const shown) };
    }
}

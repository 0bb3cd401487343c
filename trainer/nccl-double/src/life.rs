//! How a communicator begins, what its poll says, and how it ends.

use std::ffi::c_int;

use nccl_rs::raw::{self, ResultCode};

use crate::operation::{Call, Stage};
use crate::state::{Activity, Handle, Id, State, changed, lock, wait};

/// Begins rank `rank`; gives its handle, which is zero on a failure, and the answer.
pub(crate) fn init(id: &Id, ranks: c_int, rank: c_int, device: c_int, config: &raw::Config) -> (Handle, ResultCode) {
    let mut state = lock();
    let (handle, world, rank) = match state.join(id, ranks, rank, device, config) {
        Ok(joined) => joined,
        Err(code) => return (0, code),
    };
    let code = match state.disturbed(world, rank, Call::Init, Stage::Launch) {
        Some(Some(code)) => state.refuse(code, "ordered to fail in its beginning"),
        Some(None) => {
            state.begin(handle, Activity::Hang, 0);
            raw::IN_PROGRESS
        }
        None => {
            let polls = state.worlds[world].init_polls;
            state.begin(handle, Activity::Init, polls);
            raw::IN_PROGRESS
        }
    };
    if let Some(communicator) = state.communicators.get_mut(&handle) {
        communicator.result = code;
    }
    changed();
    finish_if_blocking(state, handle);
    let state = lock();
    let result = state
        .communicators
        .get(&handle)
        .map_or(raw::INTERNAL_ERROR, |found| found.result);
    (handle, result)
}

impl State {
    fn join(
        &mut self,
        id: &Id,
        ranks: c_int,
        rank: c_int,
        device: c_int,
        config: &raw::Config,
    ) -> Result<(Handle, usize, u32), ResultCode> {
        if config.size != size_of::<raw::Config>() || config.magic != raw::API_MAGIC {
            let words = "ncclConfig_t argument not initialized via NCCL_CONFIG_INITIALIZER";
            return Err(self.refuse(raw::INVALID_ARGUMENT, words));
        }
        let (Ok(of), Ok(place)) = (u32::try_from(ranks), u32::try_from(rank)) else {
            return Err(self.refuse(
                raw::INVALID_ARGUMENT,
                format!("Invalid rank requested : {rank}/{ranks}"),
            ));
        };
        if place >= of {
            return Err(self.refuse(
                raw::INVALID_ARGUMENT,
                format!("Invalid rank requested : {rank}/{ranks}"),
            ));
        }
        if !self.ids.contains_key(id) {
            return Err(self.refuse(raw::SYSTEM_ERROR, "nobody listens at the address of this id"));
        }
        let key = self.world_of(id);
        if let Some(code) = self.disturbed(key, place, Call::Init, Stage::Call) {
            return Err(self.refuse(code.unwrap_or(raw::INTERNAL_ERROR), "ordered to fail"));
        }
        let world = &mut self.worlds[key];
        if world.ranks == 0 {
            world.ranks = of;
            world.joined = vec![false; of as usize];
        }
        let other = world.ranks;
        if other != of {
            let words = format!("rank {rank} came for {ranks} ranks where others came for {other}");
            return Err(self.refuse(raw::INVALID_ARGUMENT, words));
        }
        if std::mem::replace(&mut world.joined[place as usize], true) {
            return Err(self.refuse(raw::INVALID_USAGE, format!("rank {rank} came twice with one id")));
        }
        let handle = self.new_communicator(key, place, device, config.blocking != 0);
        Ok((handle, key, place))
    }

    pub(crate) fn begin(&mut self, handle: Handle, activity: Activity, polls: u32) {
        if let Some(communicator) = self.communicators.get_mut(&handle) {
            communicator.result = raw::IN_PROGRESS;
            communicator.activity = activity;
            communicator.polls_left = polls;
        }
    }

    /// Whether what a communicator waits for has come, apart from polls. Groups are ended by their own threads.
    fn has_come(&self, handle: Handle) -> bool {
        let Some(communicator) = self.communicators.get(&handle) else {
            return false;
        };
        let world = &self.worlds[communicator.world];
        match communicator.activity {
            Activity::Init => world.joined.iter().all(|joined| *joined),
            Activity::Split { call, .. } => world.splits.get(call).is_some_and(|split| split.is_full(world.ranks)),
            Activity::Finalize => world.finalized == world.ranks && self.kernels_of(handle).next().is_none(),
            Activity::None | Activity::Group | Activity::Hang => false,
        }
    }

    fn finish_activity(&mut self, handle: Handle) {
        let Some(communicator) = self.communicators.get_mut(&handle) else {
            return;
        };
        let activity = std::mem::replace(&mut communicator.activity, Activity::None);
        communicator.result = raw::SUCCESS;
        if let Activity::Split { call, slot } = activity {
            self.give_child(handle, call, slot);
        }
    }
}

/// Waits for what a blocking communicator has begun.
pub(crate) fn finish_if_blocking(mut state: std::sync::MutexGuard<'static, State>, handle: Handle) {
    loop {
        match state.communicators.get(&handle) {
            Some(found) if found.blocking && found.result == raw::IN_PROGRESS && !found.aborting => {}
            _ => return,
        }
        if state.has_come(handle) {
            state.finish_activity(handle);
            changed();
            return;
        }
        state = wait(state);
    }
}

/// One poll: the answer, and what the communicator says.
pub(crate) fn poll(handle: Handle) -> (ResultCode, ResultCode) {
    let mut state = lock();
    let communicator = match state.live(handle, "ncclCommGetAsyncError") {
        Ok(communicator) => communicator,
        Err(code) => return (code, raw::SUCCESS),
    };
    if communicator.result == raw::IN_PROGRESS {
        if communicator.polls_left > 0 {
            communicator.polls_left -= 1;
            changed();
            return (raw::SUCCESS, raw::IN_PROGRESS);
        }
        if state.has_come(handle) {
            state.finish_activity(handle);
            changed();
        }
    } else if communicator.result == raw::SUCCESS
        && communicator.unseen.is_empty()
        && let Some(late) = communicator.late.take()
    {
        communicator.result = late;
        state.refuse(late, "ordered to fail on its stream");
    }
    let result = state
        .communicators
        .get(&handle)
        .map_or(raw::INTERNAL_ERROR, |found| found.result);
    if result == raw::SUCCESS {
        state.forget_unseen(handle);
    }
    (raw::SUCCESS, result)
}

/// Begins the normal end.
pub(crate) fn finalize(handle: Handle) -> ResultCode {
    let mut state = lock();
    let (world, rank) = match state.ready(handle, "ncclCommFinalize") {
        Ok(communicator) if communicator.finalized => return raw::INVALID_ARGUMENT,
        Ok(communicator) => {
            communicator.finalized = true;
            (communicator.world, communicator.rank)
        }
        Err(code) => return code,
    };
    let activity = match state.disturbed(world, rank, Call::Finalize, Stage::Launch) {
        Some(Some(code)) => {
            let code = state.refuse(code, "ordered to fail in its end");
            if let Some(communicator) = state.communicators.get_mut(&handle) {
                communicator.result = code;
            }
            return code;
        }
        Some(None) => Activity::Hang,
        None => Activity::Finalize,
    };
    state.worlds[world].finalized += 1;
    let polls = state.worlds[world].group_polls;
    state.begin(handle, activity, polls);
    changed();
    finish_if_blocking(state, handle);
    lock()
        .communicators
        .get(&handle)
        .map_or(raw::INTERNAL_ERROR, |found| found.result)
}

/// Frees a communicator that is ready. In a wrong state the thread is left inside of a group (invariant 6).
pub(crate) fn destroy(handle: Handle) -> ResultCode {
    if handle == 0 {
        return raw::SUCCESS;
    }
    let mut state = lock();
    if let Err(code) = state.ready(handle, "ncclCommDestroy") {
        if state
            .communicators
            .get(&handle)
            .is_some_and(|found| found.gone.is_none())
        {
            crate::group::start();
        }
        return code;
    }
    while state.kernels_of(handle).next().is_some() {
        state = wait(state);
    }
    state.bury(handle, "destroyed");
    raw::SUCCESS
}

/// Tells all that work for a communicator to stop.
pub(crate) fn begin_abort(handle: Handle) -> ResultCode {
    let mut state = lock();
    match state.live(handle, "ncclCommAbort") {
        Ok(communicator) => communicator.aborting = true,
        Err(code) => return code,
    }
    changed();
    raw::SUCCESS
}

/// Waits until they have stopped, and frees it.
pub(crate) fn finish_abort(handle: Handle) {
    let mut state = lock();
    while state.communicators.get(&handle).is_some_and(|found| found.launching) {
        state = wait(state);
    }
    state.take_off_streams(handle);
    state.bury(handle, "aborted");
}

impl State {
    fn bury(&mut self, handle: Handle, how: &'static str) {
        self.forget_unseen(handle);
        if let Some(communicator) = self.communicators.get_mut(&handle) {
            communicator.gone = Some(how);
            let world = communicator.world;
            self.worlds[world].live -= 1;
        }
        changed();
    }
}

//! Splits: the ranks of a world meet at their n-th split, and those of one colour become a world.

use std::collections::BTreeMap;
use std::ffi::c_int;

use nccl_rs::raw::{self, ResultCode};

use crate::life::finish_if_blocking;
use crate::operation::{Call, Stage};
use crate::state::{Activity, Handle, State, WorldKey, changed, lock};

/// One split of a world.
#[derive(Default)]
pub(crate) struct Split {
    /// By rank: colour, key, and whether the child blocks.
    calls: BTreeMap<u32, (c_int, c_int, bool)>,
    /// By colour.
    children: BTreeMap<c_int, WorldKey>,
}

impl Split {
    pub(crate) fn is_full(&self, ranks: u32) -> bool {
        self.calls.len() == ranks as usize
    }

    /// The ranks of a colour in the order of keys.
    fn members(&self, colour: c_int) -> Vec<u32> {
        let mut members: Vec<(c_int, u32)> = self
            .calls
            .iter()
            .filter(|(_, (their, _, _))| *their == colour)
            .map(|(rank, (_, key, _))| (*key, *rank))
            .collect();
        members.sort_unstable();
        members.into_iter().map(|(_, rank)| rank).collect()
    }
}

/// Begins this rank's part of the next split; the child is written to `slot` when the poll, or a blocking call, says
/// success.
pub(crate) fn split(
    handle: Handle,
    colour: c_int,
    key: c_int,
    slot: *mut raw::CommHandle,
    config: Option<&raw::Config>,
) -> ResultCode {
    let mut state = lock();
    let (world, rank, call, blocking) = match state.ready(handle, "ncclCommSplit") {
        Ok(communicator) => {
            communicator.split_calls += 1;
            let blocking = config.map_or(communicator.blocking, |config| config.blocking != 0);
            (
                communicator.world,
                communicator.rank,
                communicator.split_calls - 1,
                blocking,
            )
        }
        Err(code) => return code,
    };
    if let Some(code) = state.disturbed(world, rank, Call::Split, Stage::Call) {
        return state.refuse(code.unwrap_or(raw::INTERNAL_ERROR), "ordered to fail");
    }
    let hangs = state.disturbed(world, rank, Call::Split, Stage::Launch);
    let polls = state.worlds[world].init_polls;
    match hangs {
        Some(_) => state.begin(handle, Activity::Hang, polls),
        None => {
            let splits = &mut state.worlds[world].splits;
            if splits.len() <= call {
                splits.push(Split::default());
            }
            splits[call].calls.insert(rank, (colour, key, blocking));
            let slot = slot.expose_provenance();
            state.begin(handle, Activity::Split { call, slot }, polls);
        }
    }
    changed();
    finish_if_blocking(state, handle);
    lock()
        .communicators
        .get(&handle)
        .map_or(raw::INTERNAL_ERROR, |found| found.result)
}

impl State {
    /// Makes this rank's child, if it has a colour, and writes its handle.
    pub(crate) fn give_child(&mut self, parent: Handle, call: usize, slot: usize) {
        let Some((world, rank, device)) = self
            .communicators
            .get(&parent)
            .map(|found| (found.world, found.rank, found.device))
        else {
            return;
        };
        let (init_polls, group_polls) = (self.worlds[world].init_polls, self.worlds[world].group_polls);
        let split = &self.worlds[world].splits[call];
        let (colour, _, blocking) = split.calls[&rank];
        let mut child = 0;
        if colour != raw::NO_COLOUR {
            let members = split.members(colour);
            let known = split.children.get(&colour).copied();
            let key = known.unwrap_or_else(|| {
                let ranks = u32::try_from(members.len()).unwrap_or(u32::MAX);
                self.new_world(ranks, init_polls, group_polls)
            });
            self.worlds[world].splits[call].children.insert(colour, key);
            let place = members.iter().position(|member| *member == rank).unwrap_or(0);
            self.worlds[key].joined[place] = true;
            child = self.new_communicator(key, u32::try_from(place).unwrap_or(u32::MAX), device, blocking);
        }
        // SAFETY: the caller of `ncclCommSplit` keeps the slot until the parent is ready or aborted, and it is neither.
        unsafe {
            std::ptr::with_exposed_provenance_mut::<raw::CommHandle>(slot)
                .write(std::ptr::without_provenance_mut(child));
        }
    }
}

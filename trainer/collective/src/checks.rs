//! Arguments that no backend can serve, refused before anything is waited for or written.

use std::ops::Range;

use nccl_host::HostMemory;

use crate::GatherRange;
use crate::error::CollectiveError;

/// The arguments of `all_gather_v`: ranges inside the buffer, owners inside the world. That ranges do not overlap is the
/// caller's rule, and not checked: it would cost a sort each step. A buffer that the communicator does not know is `None`.
///
/// # Errors
/// [`CollectiveError::Misuse`], with the rule.
pub fn gather(memory: Option<&HostMemory>, ranges: &[GatherRange], size: u32) -> Result<(), CollectiveError> {
    gather_in(memory.map(HostMemory::len), ranges, size)
}

/// As [`gather`], of a buffer of so many bytes.
pub(crate) fn gather_in(length: Option<usize>, ranges: &[GatherRange], size: u32) -> Result<(), CollectiveError> {
    for (bytes, owner) in ranges {
        inside("all_gather_v", length, bytes)?;
        rank("all_gather_v", *owner, size)?;
    }
    Ok(())
}

/// The arguments of `broadcast`.
///
/// # Errors
/// [`CollectiveError::Misuse`], with the rule.
pub fn broadcast(
    memory: Option<&HostMemory>,
    bytes: &Range<usize>,
    root: u32,
    size: u32,
) -> Result<(), CollectiveError> {
    broadcast_in(memory.map(HostMemory::len), bytes, root, size)
}

/// As [`broadcast`], of a buffer of so many bytes.
pub(crate) fn broadcast_in(
    length: Option<usize>,
    bytes: &Range<usize>,
    root: u32,
    size: u32,
) -> Result<(), CollectiveError> {
    inside("broadcast", length, bytes)?;
    rank("broadcast", root, size)
}

/// The arguments of `exchange_slots`.
///
/// # Errors
/// [`CollectiveError::Misuse`], with the rule.
pub fn slots(table: &[u64], owner_of_slot: &[u32], size: u32) -> Result<(), CollectiveError> {
    if table.len() != owner_of_slot.len() {
        return Err(CollectiveError::misuse(
            "exchange_slots",
            format!("{} slots and {} owners were given", table.len(), owner_of_slot.len()),
        ));
    }
    owner_of_slot
        .iter()
        .max()
        .map_or(Ok(()), |owner| rank("exchange_slots", *owner, size))
}

fn inside(call: &'static str, length: Option<usize>, bytes: &Range<usize>) -> Result<(), CollectiveError> {
    let Some(length) = length else {
        return Err(CollectiveError::misuse(
            call,
            "a buffer of another communicator was given",
        ));
    };
    if bytes.start > bytes.end || bytes.end > length {
        return Err(CollectiveError::misuse(
            call,
            format!(
                "the bytes {}..{} are not inside a buffer of {length}",
                bytes.start, bytes.end
            ),
        ));
    }
    Ok(())
}

fn rank(call: &'static str, rank: u32, size: u32) -> Result<(), CollectiveError> {
    if rank < size {
        return Ok(());
    }
    Err(CollectiveError::misuse(
        call,
        format!("rank {rank} was named in a world of {size}"),
    ))
}

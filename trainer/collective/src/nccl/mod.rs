//! The backend for GPUs: NCCL moves bytes between devices, and never adds; additions are ours, in tree order, on the same
//! stream.
//!
//! - this file: [`Nccl`], the calls of [`Collective`]
//! - `link`: the communicator, and everything that waits
//! - `headers`: how ranks find out that they make different calls
//! - `landing`, `sums`: pure: where partials land, and in which order they are added; `reducing` does it
//! - `slots`: tables of words
//!
//! Way of a call: arguments are checked, nothing is waited for → a full collective puts its header on the stream → payload
//! goes into one group → the group is polled until NCCL says success, which means *on the stream*, not *arrived* → additions or
//! copies follow on the stream → the caller records a mark. Only tables and barriers wait for the stream itself.
//!
//! Layers are gathered by grouped broadcasts, in place: no byte passes a link twice, whoever owns how much, where sends from an
//! owner to each rank would pass its own link (ranks − 1) times.
//!
//! After a failure, or an abort from another thread, the thread that makes the calls aborts the communicator.

mod headers;
mod landing;
mod link;
mod reducing;
mod slots;
mod sums;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use nccl_host::{Aborter, CallKind, HostMemory};
use nccl_rs::{DataType, UniqueId};

use crate::accelerator::{Accelerator, DeviceMemory};
use crate::communication::Program;
use crate::error::CollectiveError;
use crate::memory::Memory;
use crate::order::{Publisher, SharedOrder};
use crate::reduce::Reduction;
use crate::{BufferId, Collective, GatherRange, ReduceLanes, Transport, checks};
use headers::{Headers, mix, outside};
pub use landing::nccl_scratch_bytes;
use link::Link;
use reducing::Scratch;
use slots::SlotTables;

/// One rank among ranks on GPUs.
pub(crate) struct Nccl {
    link: Link,
    headers: Headers,
    order: SharedOrder,
    buffers: Vec<DeviceMemory>,
    scratch: Scratch,
    slots: SlotTables,
    /// A digest of all reductions so far: they have no headers, so the next full collective tells of them.
    reductions: u64,
}

impl Nccl {
    /// Meets the ranks that hold the same id. The accelerator is this thread's device already.
    pub(crate) fn meet(
        nccl: &nccl_rs::Nccl,
        id: &[u8],
        place: (u32, u32),
        times: (Duration, Option<Duration>),
        accelerator: Arc<dyn Accelerator>,
        aborter: &Aborter,
    ) -> Result<Nccl, CollectiveError> {
        let id = UniqueId::from_bytes(id).map_err(|source| CollectiveError::Nccl {
            rank: place.0,
            call: "join",
            source,
        })?;
        let link = Link::meet(nccl, &id, place, times, accelerator, aborter)?;
        Ok(Nccl {
            headers: Headers::new(&link)?,
            link,
            order: SharedOrder::default(),
            buffers: Vec::new(),
            scratch: Scratch::default(),
            slots: SlotTables::default(),
            reductions: 0,
        })
    }

    /// Does `call`; after a failure the communicator is aborted.
    fn guarded<T>(&mut self, call: impl FnOnce(&mut Nccl) -> Result<T, CollectiveError>) -> Result<T, CollectiveError> {
        call(self).map_err(|failure| {
            let failure = self.headers.explain(&self.link, failure);
            self.link.give_up(&failure);
            failure
        })
    }

    /// What must be equal in a full collective beside its arguments: how many buckets were published, what was reduced.
    fn passing(&self) -> u64 {
        mix(self.order.full_collective(), self.reductions)
    }

    /// Puts a full collective's header on the stream, and waits for it where its arguments are new.
    fn enter(&mut self, call: &'static str, kind: CallKind, arguments: u64) -> Result<(), CollectiveError> {
        let passing = self.passing();
        self.headers.announce(&mut self.link, kind, arguments, passing, &[])?;
        if !self.headers.is_known() {
            self.headers.compare_all(&mut self.link, call)?;
        }
        Ok(())
    }

    /// As [`Nccl::enter`], and waits until every rank has come.
    fn meet_all(&mut self, call: &'static str, kind: CallKind, arguments: u64) -> Result<(), CollectiveError> {
        self.enter(call, kind, arguments)?;
        self.headers.compare_all(&mut self.link, call)
    }

    fn length(&self, buffer: BufferId) -> Option<usize> {
        self.buffers.get(buffer.0).map(|memory| memory.pointer().bytes())
    }

    /// Copies ranges from their owners to all, in place.
    fn spread(&mut self, call: &'static str, buffer: BufferId, ranges: &[GatherRange]) -> Result<(), CollectiveError> {
        let memory = self.buffers[buffer.0].pointer();
        let parts: Vec<_> = landing::merged(ranges)
            .into_iter()
            .map(|(bytes, owner)| Ok((memory.slice(bytes).ok_or_else(outside)?, owner)))
            .collect::<Result<_, CollectiveError>>()?;
        if parts.is_empty() {
            return Ok(());
        }
        self.link.group(call, self.link.others(), |group, stream| {
            for (part, owner) in parts {
                group.broadcast(part, part, part.bytes(), DataType::Uint8, owner, stream)?;
            }
            Ok(())
        })
    }
}

/// A device's buffer has no view on the host.
fn on_device<T>() -> T {
    panic!("the buffer lies on a device: ask for Collective::memory")
}

/// A digest of ranges and their owners.
fn digest_of(first: u64, ranges: &[(Range<usize>, u32)]) -> u64 {
    ranges.iter().fold(first, |digest, (range, owner)| {
        mix(
            mix(mix(digest, range.start as u64), range.end as u64),
            u64::from(*owner),
        )
    })
}

impl Collective for Nccl {
    fn rank(&self) -> u32 {
        self.link.rank()
    }

    fn size(&self) -> u32 {
        self.link.size()
    }

    fn backend_name(&self) -> &'static str {
        "nccl"
    }

    fn allocate(&mut self, name: &str, bytes: usize) -> Result<BufferId, CollectiveError> {
        self.link.usable()?;
        self.guarded(|nccl| {
            let memory = nccl.link.accelerator().allocate(name, bytes)?;
            let digest = name
                .bytes()
                .fold(bytes as u64, |digest, byte| mix(digest, u64::from(byte)));
            nccl.meet_all("allocate", CallKind::Allocate, digest)?;
            nccl.buffers.push(memory);
            Ok(BufferId(nccl.buffers.len() - 1))
        })
    }

    fn memory(&self, id: BufferId) -> Memory {
        Memory::Device(self.buffers[id.0].clone())
    }

    fn buffer(&self, _id: BufferId) -> &HostMemory {
        on_device()
    }

    fn buffer_mut(&mut self, _id: BufferId) -> &mut HostMemory {
        on_device()
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(&self.order, self.link.aborter(), None)
    }

    fn reduce_lanes(&mut self, request: &ReduceLanes<'_>) -> Result<(), CollectiveError> {
        self.link.usable()?;
        Reduction::plan_over(request, self.rank(), self.size(), |buffer| self.length(buffer))?;
        self.order.next_reduce(request.bucket)?;
        self.guarded(|nccl| reducing::reduce(&mut nccl.link, &mut nccl.scratch, &nccl.buffers, request))?;
        self.reductions = digest_of(mix(self.reductions, u64::from(request.bucket)), request.owners);
        self.order.reduced();
        Ok(())
    }

    fn all_gather_v(&mut self, buffer: BufferId, ranges: &[GatherRange]) -> Result<(), CollectiveError> {
        const CALL: &str = "all_gather_v";
        self.link.usable()?;
        checks::gather_in(self.length(buffer), ranges, self.size())?;
        self.guarded(|nccl| {
            nccl.enter(CALL, CallKind::AllGather, digest_of(buffer.0 as u64, ranges))?;
            nccl.spread(CALL, buffer, ranges)
        })
    }

    fn exchange_slots(&mut self, table: &mut [u64], owner_of_slot: &[u32]) -> Result<(), CollectiveError> {
        self.link.usable()?;
        checks::slots(table, owner_of_slot, self.size())?;
        self.guarded(|nccl| {
            let passing = nccl.passing();
            nccl.slots
                .exchange(&mut nccl.link, &mut nccl.headers, passing, table, owner_of_slot)
        })
    }

    fn broadcast(&mut self, buffer: BufferId, bytes: Range<usize>, root: u32) -> Result<(), CollectiveError> {
        const CALL: &str = "broadcast";
        self.link.usable()?;
        checks::broadcast_in(self.length(buffer), &bytes, root, self.size())?;
        self.guarded(|nccl| {
            let ranges = [(bytes, root)];
            nccl.enter(CALL, CallKind::Broadcast, digest_of(buffer.0 as u64, &ranges))?;
            nccl.spread(CALL, buffer, &ranges)
        })
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.link.usable()?;
        self.guarded(|nccl| nccl.meet_all("barrier", CallKind::Barrier, 0))
    }

    fn reserve(&mut self, program: &Program) -> Result<(), CollectiveError> {
        self.link.usable()?;
        let bytes = nccl_scratch_bytes(program, self.rank())?;
        self.guarded(|nccl| nccl.scratch.of(&nccl.link, bytes).map(|_| ()))
    }

    fn tend(&mut self) -> Result<(), CollectiveError> {
        self.link.usable()?;
        self.guarded(|nccl| {
            nccl.link.tend()?;
            nccl.headers.compare_arrived(&nccl.link)
        })
    }

    fn leave(&mut self) {
        self.link.leave();
    }

    fn aborter(&self) -> Aborter {
        self.link.aborter().clone()
    }

    fn is_bound_to_thread(&self) -> bool {
        true
    }

    fn transports(&self) -> Vec<Option<Transport>> {
        (0..self.size())
            .map(|rank| (rank != self.rank()).then_some(Transport::Nccl))
            .collect()
    }
}

impl Drop for Nccl {
    /// Frees memory only when the stream is through with it; a device that does not get there keeps it for ever.
    fn drop(&mut self) {
        self.leave();
        if !self.link.is_idle_soon() {
            std::mem::forget(std::mem::take(&mut self.buffers));
            std::mem::forget(std::mem::take(&mut self.scratch));
            std::mem::take(&mut self.slots).keep_for_ever();
            self.headers.keep_for_ever();
        }
    }
}

//! The backend of a world of one rank: no communication, the same rules and the same arithmetic.

use std::ops::Range;

use nccl_host::{Aborter, HostMemory};

use crate::error::CollectiveError;
use crate::order::{Publisher, SharedOrder};
use crate::reduce::{Memories, Reduction};
use crate::{BufferId, Collective, GatherRange, ReduceLanes, Transport, checks};

/// One rank alone.
pub(crate) struct Solo {
    buffers: Vec<HostMemory>,
    order: SharedOrder,
    aborter: Aborter,
}

impl Solo {
    pub(crate) fn new(aborter: &Aborter) -> Solo {
        Solo {
            buffers: Vec::new(),
            order: SharedOrder::default(),
            aborter: aborter.clone(),
        }
    }

    /// What every full collective does.
    fn enter(&mut self) -> Result<(), CollectiveError> {
        self.order.full_collective();
        Ok(())
    }
}

impl Memories for Solo {
    fn floats(&self, _rank: u32, buffer: BufferId, elements: Range<usize>) -> &[f32] {
        self.buffers[buffer.0].floats(elements)
    }

    fn own_mut(&mut self, buffer: BufferId) -> &mut HostMemory {
        &mut self.buffers[buffer.0]
    }

    fn own(&self, buffer: BufferId) -> Option<&HostMemory> {
        self.buffers.get(buffer.0)
    }
}

impl Collective for Solo {
    fn rank(&self) -> u32 {
        0
    }

    fn size(&self) -> u32 {
        1
    }

    fn backend_name(&self) -> &'static str {
        "solo"
    }

    fn allocate(&mut self, _name: &str, bytes: usize) -> Result<BufferId, CollectiveError> {
        self.aborter.check()?;
        self.buffers.push(HostMemory::anonymous(bytes)?);
        Ok(BufferId(self.buffers.len() - 1))
    }

    fn buffer(&self, id: BufferId) -> &HostMemory {
        &self.buffers[id.0]
    }

    fn buffer_mut(&mut self, id: BufferId) -> &mut HostMemory {
        &mut self.buffers[id.0]
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(&self.order, &self.aborter, None)
    }

    fn reduce_lanes(&mut self, request: &ReduceLanes<'_>) -> Result<(), CollectiveError> {
        self.aborter.check()?;
        let reduction = Reduction::plan(request, 0, 1, self)?;
        self.order.next_reduce(request.bucket)?;
        reduction.run(self);
        self.order.reduced();
        Ok(())
    }

    fn all_gather_v(&mut self, buffer: BufferId, ranges: &[GatherRange]) -> Result<(), CollectiveError> {
        self.aborter.check()?;
        checks::gather(self.own(buffer), ranges, 1)?;
        self.enter()
    }

    fn exchange_slots(&mut self, table: &mut [u64], owner_of_slot: &[u32]) -> Result<(), CollectiveError> {
        self.aborter.check()?;
        checks::slots(table, owner_of_slot, 1)?;
        self.enter()
    }

    fn broadcast(&mut self, buffer: BufferId, bytes: Range<usize>, root: u32) -> Result<(), CollectiveError> {
        self.aborter.check()?;
        checks::broadcast(self.own(buffer), &bytes, root, 1)?;
        self.enter()
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.aborter.check()?;
        self.enter()
    }

    fn aborter(&self) -> Aborter {
        self.aborter.clone()
    }

    fn transports(&self) -> Vec<Option<Transport>> {
        vec![None]
    }
}

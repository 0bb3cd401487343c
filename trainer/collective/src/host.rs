//! The backend for ranks on one machine: peers' memory is read where it lies.
//!
//! Every full collective is `enter` (wait for all) followed by reads of the peers' mappings; the module's first lines of
//! the crate say why what is read cannot change meanwhile.

use std::ops::Range;
use std::time::Duration;

use nccl_host::{Aborter, Call, CallKind, Communicator, CommunicatorId, HostMemory};

use crate::error::CollectiveError;
use crate::order::{Publisher, SharedOrder};
use crate::reduce::{Memories, Reduction};
use crate::{BufferId, Collective, GatherRange, ReduceLanes, Transport, checks};

/// Slots of the first table that is exchanged have at least this much room, so that most runs allocate once.
const LEAST_SLOTS: usize = 512;

/// The memory that tables are exchanged through: two halves of `capacity` slots, used in turn.
struct SlotMemory {
    buffer: usize,
    capacity: usize,
}

/// One rank among ranks on this machine.
pub(crate) struct Host {
    communicator: Communicator,
    order: SharedOrder,
    slots: Option<SlotMemory>,
    /// How many tables were exchanged.
    exchanges: usize,
}

impl Host {
    pub(crate) fn connect(
        id: &CommunicatorId,
        rank: u32,
        size: u32,
        deadline: Duration,
        aborter: &Aborter,
    ) -> Result<Host, CollectiveError> {
        let communicator = Communicator::connect(id, rank, size, deadline, aborter)?;
        Ok(Host {
            communicator,
            order: SharedOrder::default(),
            slots: None,
            exchanges: 0,
        })
    }

    /// What every full collective does first. Ranks also compare how many buckets they have published.
    fn enter(&mut self, kind: CallKind, arguments: u64) -> Result<(), CollectiveError> {
        let published = self.order.full_collective();
        Ok(self.communicator.enter(Call::new(kind, mix(arguments, published)))?)
    }

    /// Memory for tables of `slots` slots; all ranks have tables of one length, so all grow in the same call.
    fn slot_memory(&mut self, slots: usize) -> Result<(usize, usize), CollectiveError> {
        match &self.slots {
            Some(memory) if slots <= memory.capacity => Ok((memory.buffer, memory.capacity)),
            _ => {
                let capacity = slots.max(LEAST_SLOTS).next_power_of_two();
                let buffer = self.communicator.allocate("slots", 2 * capacity * size_of::<u64>())?;
                self.slots = Some(SlotMemory { buffer, capacity });
                Ok((buffer, capacity))
            }
        }
    }
}

/// A buffer number that the communicator does not know: BufferIds come from `allocate` only.
fn foreign<T>() -> T {
    panic!("a buffer of another communicator was given")
}

impl Memories for Host {
    fn floats(&self, rank: u32, buffer: BufferId, elements: Range<usize>) -> &[f32] {
        match self.communicator.peer(buffer.0, rank) {
            Some(peer) => peer.floats(elements),
            None => self.buffer(buffer).floats(elements),
        }
    }

    fn own_mut(&mut self, buffer: BufferId) -> &mut HostMemory {
        self.buffer_mut(buffer)
    }

    fn own(&self, buffer: BufferId) -> Option<&HostMemory> {
        self.communicator.own(buffer.0)
    }
}

impl Collective for Host {
    fn rank(&self) -> u32 {
        self.communicator.rank()
    }

    fn size(&self) -> u32 {
        self.communicator.size()
    }

    fn backend_name(&self) -> &'static str {
        "host"
    }

    fn allocate(&mut self, name: &str, bytes: usize) -> Result<BufferId, CollectiveError> {
        Ok(BufferId(self.communicator.allocate(name, bytes)?))
    }

    fn buffer(&self, id: BufferId) -> &HostMemory {
        self.communicator.own(id.0).unwrap_or_else(foreign)
    }

    fn buffer_mut(&mut self, id: BufferId) -> &mut HostMemory {
        self.communicator.own_mut(id.0).unwrap_or_else(foreign)
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(
            &self.order,
            self.communicator.aborter(),
            Some(self.communicator.signal()),
        )
    }

    fn reduce_lanes(&mut self, request: &ReduceLanes<'_>) -> Result<(), CollectiveError> {
        self.communicator.usable()?;
        let reduction = Reduction::plan(request, self.rank(), self.size(), self)?;
        let publishes = self.order.next_reduce(request.bucket)?;
        self.communicator.wait_published(publishes)?;
        reduction.run(self);
        self.order.reduced();
        Ok(())
    }

    fn all_gather_v(&mut self, buffer: BufferId, ranges: &[GatherRange]) -> Result<(), CollectiveError> {
        self.communicator.usable()?;
        checks::gather(self.own(buffer), ranges, self.size())?;
        let arguments = ranges.iter().fold(buffer.0 as u64, |digest, (bytes, owner)| {
            mix(
                mix(mix(digest, bytes.start as u64), bytes.end as u64),
                u64::from(*owner),
            )
        });
        self.enter(CallKind::AllGather, arguments)?;
        let (own, peers) = self.communicator.own_mut_and_peers(buffer.0).unwrap_or_else(foreign);
        for (bytes, owner) in ranges {
            if let Some(peer) = &peers[*owner as usize] {
                own.bytes_mut(bytes.clone()).copy_from_slice(peer.bytes(bytes.clone()));
            }
        }
        Ok(())
    }

    fn exchange_slots(&mut self, table: &mut [u64], owner_of_slot: &[u32]) -> Result<(), CollectiveError> {
        self.communicator.usable()?;
        checks::slots(table, owner_of_slot, self.size())?;
        let rank = self.rank();
        let (buffer, capacity) = self.slot_memory(table.len())?;
        let first = (self.exchanges % 2) * capacity;
        let places = first..first + table.len();
        self.exchanges += 1;

        let own = self
            .communicator
            .own_mut(buffer)
            .unwrap_or_else(foreign)
            .words_mut(places.clone());
        for ((place, value), owner) in own.iter_mut().zip(&*table).zip(owner_of_slot) {
            if *owner == rank {
                *place = *value;
            }
        }
        // Cheap enough for every step, and finds owners that differ or are swapped.
        let digest = (0u32..).zip(owner_of_slot).fold(0u32, |digest, (slot, owner)| {
            digest.wrapping_add(owner.wrapping_mul(slot.wrapping_mul(2).wrapping_add(1)))
        });
        self.enter(CallKind::ExchangeSlots, mix(table.len() as u64, u64::from(digest)))?;

        let peers: Vec<&[u64]> = (0..self.size())
            .map(|rank| {
                self.communicator
                    .peer(buffer, rank)
                    .map(|peer| peer.words(places.clone()))
                    .unwrap_or_default()
            })
            .collect();
        for (slot, (value, owner)) in table.iter_mut().zip(owner_of_slot).enumerate() {
            if *owner != rank {
                *value = peers[*owner as usize][slot];
            }
        }
        Ok(())
    }

    fn broadcast(&mut self, buffer: BufferId, bytes: Range<usize>, root: u32) -> Result<(), CollectiveError> {
        self.communicator.usable()?;
        checks::broadcast(self.own(buffer), &bytes, root, self.size())?;
        let arguments = [bytes.start as u64, bytes.end as u64, u64::from(root)]
            .into_iter()
            .fold(buffer.0 as u64, mix);
        self.enter(CallKind::Broadcast, arguments)?;
        let (own, peers) = self.communicator.own_mut_and_peers(buffer.0).unwrap_or_else(foreign);
        if let Some(peer) = &peers[root as usize] {
            own.bytes_mut(bytes.clone()).copy_from_slice(peer.bytes(bytes));
        }
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.enter(CallKind::Barrier, 0)
    }

    fn aborter(&self) -> Aborter {
        self.communicator.aborter().clone()
    }

    fn transports(&self) -> Vec<Option<Transport>> {
        (0..self.size())
            .map(|rank| (rank != self.rank()).then_some(Transport::SharedMemory))
            .collect()
    }
}

/// Adds a word to a digest of arguments: not for enemies, for finding ranks that were told different things.
fn mix(digest: u64, word: u64) -> u64 {
    let mixed = (digest.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

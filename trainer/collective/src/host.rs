//! The backend for ranks on any hosts: peers' memory is read where it lies, or brought over TCP first.
//!
//! Every full collective is `enter` (wait for all; payload of other hosts comes with it) followed by reads of the peers'
//! views; the module's first lines of the crate say why what is read cannot change meanwhile. A reduction brings the other
//! hosts' partials into mirrors, waits until the ranks of this host have published theirs, and then adds in tree order, as
//! if all memory were here.

use std::ops::Range;

use nccl_host::{Aborter, Call, CallKind, Communicator, HostMemory, Into, PeerView, Transfer};

use crate::error::CollectiveError;
use crate::order::{Publisher, SharedOrder};
use crate::reduce::{Memories, Reduction};
use crate::transfers::{self, Transfers};
use crate::{BufferId, Collective, GatherRange, ReduceLanes, Transport, checks};

/// Slots of the first table that is exchanged have at least this much room, so that most runs allocate once.
const LEAST_SLOTS: usize = 512;

/// The memory that tables are exchanged through: two halves of `capacity` slots, used in turn. Ranks of this host read a
/// rank's slots at their places; for ranks elsewhere a rank packs its slots, in their order, into `packed`.
#[derive(Clone, Copy)]
struct SlotMemory {
    buffer: usize,
    packed: Option<usize>,
    capacity: usize,
}

/// One rank among ranks on any hosts.
pub(crate) struct Host {
    communicator: Communicator,
    order: SharedOrder,
    slots: Option<SlotMemory>,
    /// How many tables were exchanged.
    exchanges: usize,
    /// The ranks that share no memory with this one.
    remotes: Vec<u32>,
}

impl Host {
    pub(crate) fn new(communicator: Communicator) -> Host {
        Host {
            remotes: (0..communicator.size())
                .filter(|rank| communicator.is_remote(*rank))
                .collect(),
            communicator,
            order: SharedOrder::default(),
            slots: None,
            exchanges: 0,
        }
    }

    /// What every full collective does first. Ranks also compare how many buckets they have published.
    fn enter(
        &mut self,
        kind: CallKind,
        arguments: u64,
        sends: &[Transfer],
        receives: &[Transfer],
    ) -> Result<(), CollectiveError> {
        let published = self.order.full_collective();
        let call = Call::new(kind, mix(arguments, published));
        Ok(self.communicator.enter_with(call, sends, receives)?)
    }

    /// Memory for tables of `slots` slots; all ranks have tables of one length, so all grow in the same call.
    fn slot_memory(&mut self, slots: usize) -> Result<SlotMemory, CollectiveError> {
        match self.slots {
            Some(memory) if slots <= memory.capacity => Ok(memory),
            _ => {
                let capacity = slots.max(LEAST_SLOTS).next_power_of_two();
                let bytes = 2 * capacity * size_of::<u64>();
                let buffer = self.communicator.allocate("slots", bytes)?;
                // Where one rank has a peer elsewhere, so has every rank that all of them must agree with.
                let packed = match self.has_remotes_anywhere() {
                    true => Some(self.communicator.allocate("packed slots", bytes)?),
                    false => None,
                };
                let memory = SlotMemory {
                    buffer,
                    packed,
                    capacity,
                };
                self.slots = Some(memory);
                Ok(memory)
            }
        }
    }

    /// Whether any two ranks are remote to each other: then every rank is remote to one of the two, or is one of them.
    fn has_remotes_anywhere(&self) -> bool {
        !self.remotes.is_empty()
    }

    /// Transfers of `bytes` between `owner` and the ranks that share no memory with it, as far as they concern this rank.
    fn spread(
        &self,
        buffer: usize,
        ranges: &[GatherRange],
        into: Into,
        (sends, receives): (&mut Vec<Transfer>, &mut Vec<Transfer>),
    ) {
        let rank = self.communicator.rank();
        for (bytes, owner) in ranges.iter().filter(|(bytes, _)| !bytes.is_empty()) {
            let transfer = |peer: u32| Transfer {
                peer,
                buffer,
                bytes: bytes.clone(),
                floats: false,
                into,
            };
            if *owner == rank {
                sends.extend(self.remotes.iter().map(|peer| transfer(*peer)));
            } else if self.communicator.is_remote(*owner) {
                receives.push(transfer(*owner));
            }
        }
    }
}

impl Host {
    /// Sends this rank's partials to owners elsewhere, and brings the partials of ranks elsewhere into their mirrors.
    fn bring(&mut self, request: &ReduceLanes<'_>) -> Result<(), CollectiveError> {
        let Transfers { sends, receives } = Transfers::of(request, self.rank())?;
        let of = |list: Vec<transfers::Transfer>| -> Vec<Transfer> {
            list.into_iter()
                .filter(|transfer| self.communicator.is_remote(transfer.peer))
                .map(|transfer| Transfer {
                    peer: transfer.peer,
                    buffer: request.buffers[transfer.partial].0,
                    bytes: 4 * transfer.elements.start..4 * transfer.elements.end,
                    floats: true,
                    into: Into::Mirror,
                })
                .collect()
        };
        let (sends, receives) = (of(sends), of(receives));
        let arguments = request
            .owners
            .iter()
            .fold(u64::from(request.bucket), |digest, (elements, owner)| {
                mix(
                    mix(mix(digest, elements.start as u64), elements.end as u64),
                    u64::from(*owner),
                )
            });
        let call = Call::new(CallKind::Reduce, arguments);
        Ok(self.communicator.exchange(call, &sends, &receives)?)
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
        if !self.remotes.is_empty() {
            self.bring(request)?;
        }
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
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        self.spread(buffer.0, ranges, Into::Own, (&mut sends, &mut receives));
        self.enter(CallKind::AllGather, arguments, &sends, &receives)?;
        let (own, peers) = self.communicator.own_mut_and_peers(buffer.0).unwrap_or_else(foreign);
        for (bytes, owner) in ranges {
            if let Some(PeerView::Mapped(peer)) = &peers[*owner as usize] {
                own.copy_in(bytes.start, peer.bytes(bytes.clone()));
            }
        }
        Ok(())
    }

    fn exchange_slots(&mut self, table: &mut [u64], owner_of_slot: &[u32]) -> Result<(), CollectiveError> {
        self.communicator.usable()?;
        checks::slots(table, owner_of_slot, self.size())?;
        let rank = self.rank();
        let memory = self.slot_memory(table.len())?;
        let first = (self.exchanges % 2) * memory.capacity;
        let places = first..first + table.len();
        self.exchanges += 1;

        let words = self
            .communicator
            .own_mut(memory.buffer)
            .unwrap_or_else(foreign)
            .words_mut(places.clone());
        for ((place, value), owner) in words.iter_mut().zip(&*table).zip(owner_of_slot) {
            if *owner == rank {
                *place = *value;
            }
        }
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        if let Some(packed) = memory.packed {
            let mut counts = vec![0usize; self.size() as usize];
            let words = self
                .communicator
                .own_mut(packed)
                .unwrap_or_else(foreign)
                .words_mut(places.clone());
            for (value, owner) in table.iter().zip(owner_of_slot) {
                if *owner == rank {
                    words[counts[rank as usize]] = *value;
                }
                counts[*owner as usize] += 1;
            }
            let in_bytes = |count: usize| 8 * first..8 * (first + count);
            let ranges: Vec<GatherRange> = counts.into_iter().map(in_bytes).zip(0..).collect();
            self.spread(packed, &ranges, Into::Mirror, (&mut sends, &mut receives));
        }
        // Cheap enough for every step, and finds owners that differ or are swapped.
        let digest = (0u32..).zip(owner_of_slot).fold(0u32, |digest, (slot, owner)| {
            digest.wrapping_add(owner.wrapping_mul(slot.wrapping_mul(2).wrapping_add(1)))
        });
        let arguments = mix(table.len() as u64, u64::from(digest));
        self.enter(CallKind::ExchangeSlots, arguments, &sends, &receives)?;

        // By rank: its words, and whether they are packed; then how many of them were taken.
        let peers: Vec<(&[u64], bool)> = (0..self.size())
            .map(|peer| {
                let packed = memory.packed.filter(|_| self.communicator.is_remote(peer));
                self.communicator
                    .peer(packed.unwrap_or(memory.buffer), peer)
                    .map_or((&[][..], false), |view| (view.words(places.clone()), packed.is_some()))
            })
            .collect();
        let mut taken = vec![0usize; peers.len()];
        for (slot, (value, owner)) in table.iter_mut().zip(owner_of_slot).enumerate() {
            if *owner != rank {
                let (words, packed) = peers[*owner as usize];
                let taken = &mut taken[*owner as usize];
                *value = words[if packed { *taken } else { slot }];
                *taken += 1;
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
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        let ranges = [(bytes.clone(), root)];
        self.spread(buffer.0, &ranges, Into::Own, (&mut sends, &mut receives));
        self.enter(CallKind::Broadcast, arguments, &sends, &receives)?;
        let (own, peers) = self.communicator.own_mut_and_peers(buffer.0).unwrap_or_else(foreign);
        if let Some(PeerView::Mapped(peer)) = &peers[root as usize] {
            own.copy_in(bytes.start, peer.bytes(bytes));
        }
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.enter(CallKind::Barrier, 0, &[], &[])
    }

    fn aborter(&self) -> Aborter {
        self.communicator.aborter().clone()
    }

    fn transports(&self) -> Vec<Option<Transport>> {
        (0..self.size())
            .map(|rank| match self.communicator.is_remote(rank) {
                true => Some(Transport::Tcp),
                false => (rank != self.rank()).then_some(Transport::SharedMemory),
            })
            .collect()
    }
}

/// Adds a word to a digest of arguments: not for enemies, for finding ranks that were told different things.
fn mix(digest: u64, word: u64) -> u64 {
    let mixed = (digest.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

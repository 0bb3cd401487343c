//! Slot tables: owners' values, packed in the order of their slots, in the headers of the exchange; what does not fit there
//! follows in a second gather, whose blocks are as long as the rank with most values needs.
//!
//! Values are gathered and never added: each comes from its owner as it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use nccl_host::CallKind;
use nccl_rs::DataType;

use super::headers::{Arrived, Headers, VALUES, mix, outside};
use super::link::Link;
use crate::accelerator::{DeviceMemory, Pinned};
use crate::device::Stream;
use crate::error::CollectiveError;

const CALL: &str = "exchange_slots";

/// Memory of the second gather, for blocks of so many words.
struct Rest {
    words: usize,
    table: DeviceMemory,
    own: Arc<dyn Pinned>,
    all: Arc<dyn Pinned>,
}

#[derive(Default)]
pub(super) struct SlotTables {
    rest: Option<Rest>,
}

impl SlotTables {
    /// Exchanges a table that was checked. It waits for the values.
    pub(super) fn exchange(
        &mut self,
        link: &mut Link,
        headers: &mut Headers,
        passing: u64,
        table: &mut [u64],
        owner_of_slot: &[u32],
    ) -> Result<(), CollectiveError> {
        let mut counts = vec![0usize; link.size() as usize];
        let mut own = Vec::new();
        // Finds owners that differ or are swapped.
        let mut digest = table.len() as u64;
        for (value, owner) in table.iter().zip(owner_of_slot) {
            counts[*owner as usize] += 1;
            digest = mix(digest, u64::from(*owner));
            if *owner == link.rank() {
                own.push(*value);
            }
        }
        let most = counts.into_iter().max().unwrap_or(0);
        let (first, rest) = own.split_at(own.len().min(VALUES));
        let arrived = headers.announce(link, CallKind::ExchangeSlots, digest, passing, first)?;
        let more = most.saturating_sub(VALUES);
        if more > 0 {
            // Blocks of another length than a peer's would hang: so they follow only where all ranks have agreed.
            if !headers.is_known() {
                headers.compare_all(link, CALL)?;
            }
            self.gather_rest(link, more, rest)?;
        }
        headers.compare_all(link, CALL)?;
        self.take(headers, arrived, more, link.rank(), table, owner_of_slot);
        Ok(())
    }

    fn gather_rest(&mut self, link: &mut Link, words: usize, own: &[u64]) -> Result<(), CollectiveError> {
        let size = link.size() as usize;
        let accelerator = Arc::clone(link.accelerator());
        let rest = match self.rest.take() {
            Some(rest) if words <= rest.words => rest,
            // Every exchange is waited for, so nothing uses the smaller one any more.
            _ => {
                let words = words.next_power_of_two();
                Rest {
                    words,
                    table: accelerator.allocate("slot tables", 8 * words * size)?,
                    own: accelerator.allocate_pinned(words)?,
                    all: accelerator.allocate_pinned(words * size)?,
                }
            }
        };
        let rest = self.rest.insert(rest);
        for (word, value) in rest.own.words().iter().zip(own) {
            word.store(*value, Ordering::Relaxed);
        }
        let block = 8 * words;
        let all = rest.table.pointer().slice(0..block * size).ok_or_else(outside)?;
        let start = block * link.rank() as usize;
        let mine = all.slice(start..start + block).ok_or_else(outside)?;
        accelerator.copy_to_device(&rest.own, 0, mine, Stream::Communication)?;
        link.group(CALL, link.others(), |group, stream| {
            group.all_gather(mine, all, block, DataType::Uint8, stream)
        })?;
        accelerator.copy_to_host(all, &rest.all, 0, Stream::Communication)?;
        let mark = accelerator.record(Stream::Communication)?.named("slot table");
        link.wait(CALL, &mark)
    }

    /// Fills the slots of others.
    fn take(
        &self,
        headers: &Headers,
        arrived: Arrived,
        block: usize,
        rank: u32,
        table: &mut [u64],
        owner_of_slot: &[u32],
    ) {
        let owners = owner_of_slot.iter().max().map_or(0, |owner| *owner as usize + 1);
        let mut taken = vec![0usize; owners];
        let rest = self.rest.as_ref().map_or(&[][..], |rest| rest.all.words());
        for (value, owner) in table.iter_mut().zip(owner_of_slot) {
            let index = taken[*owner as usize];
            taken[*owner as usize] += 1;
            if *owner != rank {
                *value = match index.checked_sub(VALUES) {
                    None => headers.value(arrived, *owner, index),
                    Some(index) => rest[block * *owner as usize + index].load(Ordering::Relaxed),
                };
            }
        }
    }

    /// Has the memory stay, for copies that may still be under way.
    pub(super) fn keep_for_ever(self) {
        std::mem::forget(self.rest);
    }
}

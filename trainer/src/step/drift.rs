//! Whether memory still holds what was written there. A bit that has changed by itself is found before it becomes part of a
//! step, and named: rank, tensor, array.
//!
//! Owners hash what they have written at the end of a step: the masters (their hashes make the `parameter_hash`), the
//! working copies, momentum and second moments. In the next step, after backward and before the first exchange, every rank
//! compares its working copies with the hashes that their owners have sent, and what it owns with the hashes that it took
//! itself. What differs goes as a word into the first exchange, so that all ranks see it and none makes the step.
//!
//! Data flows: written arrays → hashes (own ones kept, others' in `update_slots`) → compared → [`Change`] → its word in
//! `slots` → [`Drift`] on every rank.

use lockstep_inventory::TensorSpec;
use lockstep_optim::state::{MASTER, MOMENTUM, ROW_SQUARES, SECOND};

use crate::device::owned::flip_a_bit;
use crate::device::pending::Pending;
use crate::error::TrainerError;
use crate::sharding::layout::Layout;
use crate::step::Engine;
use crate::step::owned::OfBlock;

/// The bit of a float32 that a drill changes: a change that training would not show at once.
pub const FLIPPED: u32 = 1 << 18;

/// An array that a rank holds of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Array {
    /// The float32 master.
    Master,
    /// The first moment.
    Momentum,
    /// The second moment.
    Second,
    /// NorMuon's mean squares.
    RowSquares,
    /// The working copy, which every rank has.
    WorkingCopy,
}

impl Array {
    const ALL: [Array; 5] = [
        Array::Master,
        Array::Momentum,
        Array::Second,
        Array::RowSquares,
        Array::WorkingCopy,
    ];

    /// The owner's array of that name.
    pub fn of_name(name: &str) -> Option<Array> {
        match name {
            MASTER => Some(Array::Master),
            MOMENTUM => Some(Array::Momentum),
            SECOND => Some(Array::Second),
            ROW_SQUARES => Some(Array::RowSquares),
            _ => None,
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Array::Master => "master",
            Array::Momentum => "momentum",
            Array::Second => "second moment",
            Array::RowSquares => "mean squares of rows",
            Array::WorkingCopy => "working copy",
        }
    }
}

/// Something in a rank's memory that is not as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The array.
    pub array: Array,
    /// The block, or the first one of the piece.
    pub block: usize,
}

impl Change {
    /// A word that is not 0.
    pub fn to_word(self) -> u64 {
        let code = Array::ALL.iter().position(|array| *array == self.array).unwrap_or(0);
        (self.block as u64 + 1) << 8 | code as u64
    }

    /// The change of a word; none for 0.
    pub fn of_word(word: u64) -> Option<Change> {
        let block = usize::try_from(word >> 8).ok()?.checked_sub(1)?;
        let array = *Array::ALL.get((word & 0xff) as usize)?;
        Some(Change { array, block })
    }
}

/// A change that all ranks have heard of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// In whose memory.
    pub rank: u32,
    /// What and where, in one sentence.
    pub sentence: String,
}

/// Of the changes that the ranks have found, by rank, the one to act on. Where an owner's working copy has changed before it
/// was gathered, every rank finds that, and the owner is the cause.
pub fn cause(found: &[Option<Change>], owner_of_block: &[u32]) -> Option<(u32, Change)> {
    let all = || (0..).zip(found).filter_map(|(rank, change)| Some((rank, (*change)?)));
    let is_owner = |(rank, change): &(u32, Change)| owner_of_block.get(change.block) == Some(rank);
    let owned = all().find(is_owner);
    owned.or_else(|| all().next())
}

impl Drift {
    /// Of a change in a rank's memory that was found in step `step`.
    pub fn new(step: u64, (rank, change): (u32, Change), layout: &Layout, inventory: &[TensorSpec]) -> Drift {
        let tensor = layout
            .places
            .iter()
            .position(|place| place.blocks.contains(&change.block));
        let name = tensor.map_or("an unknown tensor", |tensor| &inventory[tensor].name);
        Drift {
            rank,
            sentence: format!(
                "step {step}: the {} of {name} in the memory of rank {rank} is not what was written there: a bit has changed by itself, and nothing was made of it",
                change.array.in_words()
            ),
        }
    }
}

/// What the arrays that a rank holds hash to now.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Masters that it owns.
    pub masters: Vec<OfBlock<u64>>,
    /// Other arrays that it owns and that differ from what it wrote.
    pub changed: Vec<Change>,
    /// Working copies.
    pub copies: Vec<OfBlock<u64>>,
}

impl Engine {
    /// Whether what was written last can be compared with what is there.
    pub(super) fn can_compare(&self) -> bool {
        self.drift_every > 0 && self.update_slots.are_hashes_known()
    }

    /// This rank has written what it owns: keeps the hashes of its arrays, and says those of its working copies in the next
    /// exchange.
    pub(super) fn note_written(&mut self) -> Result<(), TrainerError> {
        if self.drift_every == 0 {
            return Ok(());
        }
        self.shard.note_written()?;
        self.note_copies()
    }

    /// Says the hashes of its working copies in the next exchange.
    pub(super) fn note_copies(&mut self) -> Result<(), TrainerError> {
        if self.drift_every == 0 {
            return Ok(());
        }
        let pieces = self.shard.map().pieces.iter();
        let own = pieces.filter(|piece| piece.owner == self.rank && self.copies.is_rounded(piece.tensor));
        let copies = self.copies.hashes(own)?;
        self.update_slots.record_copies(&self.reader.read(copies)?);
        Ok(())
    }

    /// What this rank holds, where step `step` compares it.
    pub(super) fn held(&self, step: u64) -> Result<Pending<Held>, TrainerError> {
        if !self.can_compare() || !step.is_multiple_of(self.drift_every) {
            return Ok(Pending::Known(Held::default()));
        }
        let owned = self.shard.hashes()?.and(self.shard.changed()?)?;
        let all = owned.and(self.copies.hashes(&self.shard.map().pieces)?)?;
        Ok(all.map(|((masters, changed), copies)| Held {
            masters,
            changed,
            copies,
        }))
    }

    /// What the ranks have found, as one cause that they all name alike.
    pub(super) fn drift(&self, step: u64, changes: &[Option<Change>]) -> Option<Drift> {
        let owners = self.shard.map().owner_of_block(self.layout.blocks);
        let cause = cause(changes, &owners)?;
        Some(Drift::new(step, cause, &self.layout, self.model.inventory()))
    }

    /// Carries out what a drill orders for step `step`: one bit of this rank's memory changes.
    pub(super) fn carry_out(&mut self, step: u64) -> Result<(), TrainerError> {
        std::thread::sleep(self.drill.delay(step));
        if self.drill.hangs(step) {
            tracing::warn!("drill: the device thread stands still before step {step}");
            loop {
                std::thread::park();
            }
        }
        let Some((array, name)) = self.drill.flip(step) else {
            return Ok(());
        };
        // Until they are gathered, working copies are still to be written.
        self.settle()?;
        let inventory = self.model.inventory();
        let tensor = inventory.iter().position(|spec| spec.name == name);
        let flipped = match array {
            Array::WorkingCopy => {
                let mut pieces = self.shard.map().pieces.iter();
                match pieces.find(|piece| tensor.is_none_or(|tensor| tensor == piece.tensor)) {
                    Some(piece) => {
                        flip_a_bit(&self.copies.tensor(piece)?)?;
                        Some(piece.tensor)
                    }
                    None => None,
                }
            }
            _ => self.shard.flip(self.steps, tensor, array)?,
        };
        match flipped {
            Some(tensor) => tracing::warn!(
                "drill: a bit of the {} of {} is changed before step {step}",
                array.in_words(),
                inventory[tensor].name
            ),
            None => tracing::warn!("drill: this rank holds no {} of {name}", array.in_words()),
        }
        Ok(())
    }

    /// What has changed of what is held, if anything.
    pub(super) fn change_in(&self, held: &Held) -> Option<Change> {
        let slots = &self.update_slots;
        let master = held
            .masters
            .iter()
            .find(|(block, hash)| slots.master_hash(*block) != *hash);
        let copy = held
            .copies
            .iter()
            .find(|(block, hash)| slots.copy_hash(*block) != *hash);
        let of = |array, found: Option<&OfBlock<u64>>| found.map(|(block, _)| Change { array, block: *block });
        of(Array::Master, master)
            .or_else(|| held.changed.first().copied())
            .or_else(|| of(Array::WorkingCopy, copy))
    }

    /// Checks that what this rank owns is what it wrote after step `step`. On a device it waits for the device.
    ///
    /// # Errors
    /// [`TrainerError::Drift`] where it is not.
    pub(super) fn check_owned(&self, step: u64) -> Result<(), TrainerError> {
        if !self.can_compare() {
            return Ok(());
        }
        let (masters, changed) = self.shard.hashes()?.and(self.shard.changed()?)?.read()?;
        let held = Held {
            masters,
            changed,
            copies: Vec::new(),
        };
        match self.change_in(&held) {
            None => Ok(()),
            Some(change) => Err(TrainerError::Drift(Drift::new(
                step,
                (self.rank, change),
                &self.layout,
                self.model.inventory(),
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_has_a_word_that_is_never_zero() {
        for array in Array::ALL {
            for block in [0, 1, 1 << 20] {
                let change = Change { array, block };
                assert_ne!(change.to_word(), 0);
                assert_eq!(Change::of_word(change.to_word()), Some(change));
            }
        }
        assert_eq!(Change::of_word(0), None);
        assert_eq!(Change::of_word(1 << 8 | 9), None);
    }

    #[test]
    fn the_cause_is_the_owner_where_every_rank_finds_its_block_changed() {
        let at = |block| {
            Some(Change {
                array: Array::WorkingCopy,
                block,
            })
        };
        let owners = [2, 1, 0];
        assert_eq!(cause(&[None, None, None], &owners), None);
        assert_eq!(cause(&[at(0), at(0), at(0)], &owners), Some((2, at(0).unwrap())));
        assert_eq!(cause(&[None, at(0), None], &owners), Some((1, at(0).unwrap())));
    }
}

//! What a backend is made of, for those that live in crates of their own: checks of arguments, the order of a round, the
//! arithmetic of the lane tree over memory that the backend shows.
//!
//! A reduction is [`Reduction::plan`] (nothing is waited for or written), [`SharedOrder::next_reduce`], the backend's own
//! waiting or moving ([`crate::Transfers`] says what has to pass between two ranks), [`Reduction::run`] or, piece by piece,
//! [`Reduction::run_on`], and [`SharedOrder::reduced`]. A full collective begins with [`SharedOrder::full_collective`].

pub use crate::checks::{broadcast as check_broadcast, gather as check_gather, slots as check_slots};
pub use crate::order::SharedOrder;
pub use crate::reduce::{Memories, Reduction};

use crate::BufferId;

impl BufferId {
    /// The buffer that was made as number `index`, from 0; only a backend may say so.
    pub fn from_index(index: usize) -> BufferId {
        BufferId(index)
    }

    /// Its number.
    pub fn index(self) -> usize {
        self.0
    }
}

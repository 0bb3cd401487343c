//! The rules of publish and reduce that every backend keeps, solo too, so that a program that runs on one rank runs on many.
//!
//! A *round* is one step's pass over the buckets: publishes in rising order of bucket, reduces in the same order.
//! The next round may begin only when every publish was reduced and a full collective (one that waits for every rank to
//! enter it) came after: only then have all peers read what the next round overwrites.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nccl_host::{Aborter, Signal};

use crate::error::CollectiveError;

/// Says that this rank's partials of a bucket are final, from any thread (a gradient-ready hook), without waiting.
#[derive(Clone)]
pub struct Publisher {
    order: SharedOrder,
    aborter: Aborter,
    /// Tells the ranks that share this one's memory.
    signal: Option<Signal>,
}

impl Publisher {
    /// `signal` is for backends whose peers read this rank's memory by themselves.
    pub fn new(order: &SharedOrder, aborter: &Aborter, signal: Option<Signal>) -> Publisher {
        Publisher {
            order: order.clone(),
            aborter: aborter.clone(),
            signal,
        }
    }

    /// Says that this rank's partials of `bucket` are final. Never waits. Within a round (a step) buckets rise; a bucket
    /// that is not above the last one begins a new round.
    ///
    /// # Errors
    /// A new round before the last one is reduced and fenced by a full collective; abort.
    pub fn publish(&self, bucket: u32) -> Result<(), CollectiveError> {
        self.aborter.check()?;
        self.signal.as_ref().map_or(Ok(()), Signal::usable)?;
        // Held over the signal, so that publishes from two threads cannot overtake each other.
        let mut order = self.order.lock();
        let count = order.publish(bucket)?;
        if let Some(signal) = &self.signal {
            signal.published(count);
        }
        Ok(())
    }
}

/// The order of one rank, shared by the thread that makes the calls and those that publish.
#[derive(Clone, Default)]
pub struct SharedOrder(Arc<Mutex<RoundOrder>>);

impl SharedOrder {
    /// Nothing panics while it is locked.
    fn lock(&self) -> MutexGuard<'_, RoundOrder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that `bucket` is the next to reduce. Returns the number of publishes to wait for on every peer.
    ///
    /// # Errors
    /// It was not published by this rank, or another one comes first.
    pub fn next_reduce(&self, bucket: u32) -> Result<u64, CollectiveError> {
        self.lock().next_reduce(bucket)
    }

    /// Notes that the reduction of [`SharedOrder::next_reduce`] is done.
    pub fn reduced(&self) {
        self.lock().reduced();
    }

    /// Notes a full collective. Returns how many publishes came before it: ranks compare that.
    pub fn full_collective(&self) -> u64 {
        self.lock().full_collective()
    }
}

/// What this rank has published and reduced.
#[derive(Default)]
struct RoundOrder {
    /// Published and not yet reduced.
    pending: VecDeque<u32>,
    /// The last bucket published in this round.
    last: Option<u32>,
    /// Whether a full collective came after the last reduce.
    fenced: bool,
    /// How many publishes there were since the beginning.
    published: u64,
    /// How many reduces there were since the beginning.
    reduced: u64,
}

impl RoundOrder {
    /// Notes a publish. Returns how many there are now.
    fn publish(&mut self, bucket: u32) -> Result<u64, CollectiveError> {
        if self.last.is_some_and(|last| bucket <= last) {
            if let Some(open) = self.pending.front() {
                return Err(CollectiveError::misuse(
                    "publish",
                    format!("bucket {bucket} begins a new round while bucket {open} of this round is not reduced"),
                ));
            }
            if !self.fenced {
                return Err(CollectiveError::misuse(
                    "publish",
                    format!(
                        "bucket {bucket} begins a new round, and no exchange, gather, broadcast or barrier came after \
                         the last reduction, so peers may still be reading what this round overwrites"
                    ),
                ));
            }
        }
        self.last = Some(bucket);
        self.pending.push_back(bucket);
        self.published += 1;
        Ok(self.published)
    }

    /// Checks that `bucket` is the next to reduce. Returns the number of publishes to wait for on every peer.
    fn next_reduce(&self, bucket: u32) -> Result<u64, CollectiveError> {
        match self.pending.front() {
            Some(next) if *next == bucket => Ok(self.reduced + 1),
            Some(next) => Err(CollectiveError::misuse(
                "reduce_lanes",
                format!("bucket {bucket} was asked for, and bucket {next} is the next one published"),
            )),
            None => Err(CollectiveError::misuse(
                "reduce_lanes",
                format!("bucket {bucket} was not published by this rank"),
            )),
        }
    }

    /// Notes that the reduce of `next_reduce` is done.
    fn reduced(&mut self) {
        self.pending.pop_front();
        self.reduced += 1;
        self.fenced = false;
    }

    /// Notes a full collective. Returns how many publishes came before it: ranks compare that.
    fn full_collective(&mut self) -> u64 {
        self.fenced = true;
        self.published
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn round(order: &mut RoundOrder, buckets: &[u32]) {
        for bucket in buckets {
            order.publish(*bucket).unwrap();
        }
        for bucket in buckets {
            order.next_reduce(*bucket).unwrap();
            order.reduced();
        }
    }

    #[test]
    fn a_new_round_needs_every_reduce_and_then_a_full_collective() {
        let mut order = RoundOrder::default();
        order.publish(0).unwrap();
        order.publish(2).unwrap();
        order.full_collective();
        assert!(
            order
                .publish(0)
                .unwrap_err()
                .to_string()
                .contains("bucket 0 of this round is not reduced")
        );
        order.reduced();
        order.reduced();
        assert!(order.publish(0).unwrap_err().to_string().contains("no exchange"));
        order.full_collective();
        round(&mut order, &[0, 2]);
    }

    #[test]
    fn reduces_follow_the_order_of_publishes() {
        let mut order = RoundOrder::default();
        assert!(order.next_reduce(0).unwrap_err().to_string().contains("not published"));
        order.publish(0).unwrap();
        order.publish(1).unwrap();
        assert!(
            order
                .next_reduce(1)
                .unwrap_err()
                .to_string()
                .contains("bucket 0 is the next")
        );
        assert_eq!(order.next_reduce(0).unwrap(), 1);
        order.reduced();
        assert_eq!(order.next_reduce(1).unwrap(), 2);
    }
}

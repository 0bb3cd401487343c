//! Buckets fill while the last backward of a rank goes on, close in index order, and are published.
//!
//! A hook says that a tensor's gradient is complete; a bucket whose tensors are all complete is *full*. Buckets close in
//! index order on every rank, never in order of readiness: closing measures the rank's last lane, adds its own lanes together where
//! the program leaves that for the end, and hands the bucket to the communication thread. After backward [`Filling::flush`] closes what
//! hooks did not.

use std::ops::Range;

use lockstep_collective::communication::Ready;

use crate::error::TrainerError;
use crate::sharding::layout::Layout;
use crate::sharding::program::Action;
use crate::step::lane_norms::LaneNorms;
use crate::step::lane_sums::LaneSums;

/// The buckets of one rank in one step.
pub struct Filling {
    elements: Vec<Range<usize>>,
    tensors: Vec<usize>,
    bucket_of: Vec<usize>,
    sums: LaneSums,
    norms: Option<LaneNorms>,
    buckets: Ready,
    armed: bool,
    complete: Vec<bool>,
    waiting: Vec<usize>,
    next: usize,
    closing: Vec<Action>,
    /// The last lane and its buffer, where lanes are measured.
    last: Option<(u32, usize)>,
    failure: Option<TrainerError>,
}

impl Filling {
    /// The buckets of a layout over gradient buffers; with `norms` the last lane is measured as they close.
    pub fn new(layout: &Layout, sums: LaneSums, norms: Option<LaneNorms>, buckets: Ready) -> Filling {
        Filling {
            elements: layout.buckets.iter().map(|b| b.elements.clone()).collect(),
            tensors: layout.buckets.iter().map(|b| b.tensors.len()).collect(),
            bucket_of: layout.places.iter().map(|p| p.bucket).collect(),
            sums,
            norms,
            buckets,
            armed: false,
            complete: vec![false; layout.places.len()],
            waiting: Vec::new(),
            next: 0,
            closing: Vec::new(),
            last: None,
            failure: None,
        }
    }

    /// Starts a step; `closing` is what each bucket still needs once its last gradient is there, and `last` the lane that
    /// these come from, with its buffer.
    pub fn begin(&mut self, closing: Vec<Action>, last: Option<(u32, usize)>) {
        self.armed = false;
        self.complete.fill(false);
        self.waiting = self.tensors.clone();
        self.next = 0;
        self.closing = closing;
        self.last = last;
        self.failure = None;
    }

    /// From now on hooks count: the micro-batch that completes the rank's partials is about to run backward.
    pub fn arm(&mut self) {
        self.armed = true;
    }

    /// A tensor's gradient is complete. A failure is kept for [`Filling::flush`]: hooks have nobody to tell.
    pub fn ready(&mut self, tensor: usize) {
        if !self.armed || std::mem::replace(&mut self.complete[tensor], true) {
            return;
        }
        self.waiting[self.bucket_of[tensor]] -= 1;
        while self.next < self.waiting.len() && self.waiting[self.next] == 0 && self.failure.is_none() {
            self.failure = self.close(self.next).err();
            self.next += 1;
        }
    }

    /// Closes every bucket that is still open, in index order.
    pub fn flush(&mut self) -> Result<(), TrainerError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        while self.next < self.elements.len() {
            self.close(self.next)?;
            self.next += 1;
        }
        self.armed = false;
        Ok(())
    }

    fn close(&mut self, bucket: usize) -> Result<(), TrainerError> {
        let elements = self.elements[bucket].clone();
        if let (Some(norms), Some((lane, buffer))) = (&self.norms, self.last) {
            norms.measure(lane, buffer, bucket)?;
        }
        for action in &self.closing {
            self.sums.close(action, &elements)?;
        }
        Ok(self.buckets.bucket(bucket as u32)?)
    }
}

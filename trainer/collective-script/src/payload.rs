//! How a player reads and writes its buffers: the host's where they lie, a device's by copies on its compute stream.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use lockstep_collective::{Accelerator, BufferId, Collective, Stream};

use crate::PATIENCE;

/// The memory that a player works on.
pub struct Payload(Option<Arc<dyn Accelerator>>);

impl Payload {
    /// Memory of the host.
    pub fn on_host() -> Payload {
        Payload(None)
    }

    /// Memory of `device`.
    pub fn on_device(device: Arc<dyn Accelerator>) -> Payload {
        Payload(Some(device))
    }

    /// Writes bytes of a buffer, from byte `start` on.
    ///
    /// # Panics
    /// If the device fails, as in all that follows.
    pub fn write(&self, collective: &mut dyn Collective, buffer: BufferId, start: usize, bytes: &[u8]) {
        let range = start..start + bytes.len();
        let Some(device) = &self.0 else {
            collective.buffer_mut(buffer).bytes_mut(range).copy_from_slice(bytes);
            return;
        };
        let pinned = device.allocate_pinned(bytes.len().div_ceil(8)).unwrap();
        for (word, piece) in pinned.words().iter().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..piece.len()].copy_from_slice(piece);
            word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
        }
        let memory = collective.memory(buffer).on_device().unwrap();
        let to = memory.pointer().slice(range).unwrap();
        device.copy_to_device(&pinned, 0, to, Stream::Compute).unwrap();
    }

    /// Reads bytes of a buffer.
    pub fn read(&self, collective: &dyn Collective, buffer: BufferId, range: Range<usize>) -> Vec<u8> {
        let Some(device) = &self.0 else {
            return collective.buffer(buffer).bytes(range).to_vec();
        };
        let length = range.len();
        let pinned = device.allocate_pinned(length.div_ceil(8)).unwrap();
        let memory = collective.memory(buffer).on_device().unwrap();
        let from = memory.pointer().slice(range).unwrap();
        device.copy_to_host(from, &pinned, 0, Stream::Compute).unwrap();
        let mark = device.record(Stream::Compute).unwrap();
        let began = Instant::now();
        while !device.is_done(&mark).unwrap() {
            assert!(began.elapsed() < PATIENCE, "the device did not come to the copy");
            std::thread::yield_now();
        }
        let words = pinned.words().iter().map(|word| word.load(Ordering::Relaxed));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
        bytes.truncate(length);
        bytes
    }

    /// As [`Payload::write`], of float32 elements.
    pub fn write_floats(&self, collective: &mut dyn Collective, buffer: BufferId, start: usize, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        self.write(collective, buffer, 4 * start, &bytes);
    }

    /// As [`Payload::read`], of float32 elements.
    pub fn read_floats(&self, collective: &dyn Collective, buffer: BufferId, elements: Range<usize>) -> Vec<f32> {
        let bytes = self.read(collective, buffer, 4 * elements.start..4 * elements.end);
        let whole = bytes
            .chunks_exact(4)
            .map(|piece| [piece[0], piece[1], piece[2], piece[3]]);
        whole.map(f32::from_ne_bytes).collect()
    }

    /// Has collectives that follow come after what was written.
    pub fn before(&self) {
        self.order(Stream::Communication, Stream::Compute);
    }

    /// Has what follows come after collectives.
    pub fn after(&self) {
        self.order(Stream::Compute, Stream::Communication);
    }

    fn order(&self, later: Stream, earlier: Stream) {
        if let Some(device) = &self.0 {
            let mark = device.record(earlier).unwrap();
            device.wait(later, &mark).unwrap();
        }
    }
}

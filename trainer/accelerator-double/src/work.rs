//! The device's kernels and copies: what runs when its turn on the stream has come, on whichever thread.
//!
//! Addresses are [`DevicePointer`]s, whose maker has promised memory that stays until the work has ended on its stream; what
//! touches the same memory at the same time is kept apart by the order of streams.

use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_collective::{Operand, round_to_bf16};
use nccl_rs::DevicePointer;

/// The values of an operand: its memory may be the sum's, so they are taken before that is written.
fn values(operand: Operand, count: usize) -> Vec<f32> {
    match operand {
        Operand::Float32(pointer) => {
            assert_eq!(pointer.bytes(), 4 * count, "an operand has another length than the sum");
            let first = pointer.address().cast::<f32>();
            // SAFETY: so many bytes, see the module; any bits are a float.
            (0..count).map(|index| unsafe { first.add(index).read() }).collect()
        }
        Operand::Bf16(pointer) => {
            assert_eq!(pointer.bytes(), 2 * count, "an operand has another length than the sum");
            let first = pointer.address().cast::<u16>();
            // SAFETY: as above.
            let halves = (0..count).map(|index| unsafe { first.add(index).read() });
            halves.map(|half| f32::from_bits(u32::from(half) << 16)).collect()
        }
    }
}

pub(crate) fn add(sum: DevicePointer, left: Operand, right: Operand, round: bool) {
    let count = sum.bytes() / 4;
    let (left, right) = (values(left, count), values(right, count));
    let mut sums: Vec<f32> = left.iter().zip(&right).map(|(left, right)| left + right).collect();
    if round {
        round_to_bf16(&mut sums);
    }
    // SAFETY: see the module; the sum has room for `count` floats, and the vector is nobody else's.
    unsafe { std::ptr::copy_nonoverlapping(sums.as_ptr(), sum.address().cast(), count) };
}

pub(crate) fn narrow(halves: DevicePointer, floats: DevicePointer) {
    let values = values(Operand::Float32(floats), halves.bytes() / 2);
    let first = halves.address().cast::<u16>();
    for (index, value) in values.into_iter().enumerate() {
        assert!(
            value.is_nan() || value.to_bits() & 0xffff == 0,
            "{value} is not a bfloat16, so narrowing loses bits"
        );
        // SAFETY: see the module; there is room for as many halves as values.
        unsafe { first.add(index).write((value.to_bits() >> 16) as u16) };
    }
}

pub(crate) fn copy_to_host(from: DevicePointer, to: &[AtomicU64]) {
    let first = from.address().cast::<u8>();
    let bytes = from.bytes();
    assert!(bytes <= 8 * to.len(), "the copy is longer than its words");
    for (index, word) in to.iter().enumerate().take(bytes.div_ceil(8)) {
        let mut whole = word.load(Ordering::Relaxed).to_ne_bytes();
        let start = 8 * index;
        let length = 8.min(bytes - start);
        // SAFETY: see the module; inside of `from`.
        unsafe { std::ptr::copy_nonoverlapping(first.add(start), whole.as_mut_ptr(), length) };
        word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
    }
}

pub(crate) fn copy_to_device(from: &[AtomicU64], to: DevicePointer) {
    let first = to.address().cast::<u8>();
    let bytes = to.bytes();
    assert!(bytes <= 8 * from.len(), "the copy is longer than its words");
    for (index, word) in from.iter().enumerate().take(bytes.div_ceil(8)) {
        let whole = word.load(Ordering::Relaxed).to_ne_bytes();
        let start = 8 * index;
        let length = 8.min(bytes - start);
        // SAFETY: see the module; inside of `to`.
        unsafe { std::ptr::copy_nonoverlapping(whole.as_ptr(), first.add(start), length) };
    }
}

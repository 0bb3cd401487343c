//! Pinned copies, what the allocator counts, and memory that runs out.

use lockstep_autograd::DeviceBuffer;
use lockstep_autograd::device::{Cuda, DeviceError, StreamName};
use tch::{Kind, Tensor};

use super::{bits, gpu, seeded, values};

#[test]
#[ignore = "needs a GPU"]
fn values_come_back_from_the_device_through_pinned_memory_bit_by_bit() {
    let (cuda, _alone) = gpu();
    let mut random = seeded();
    let count = 1 << 20;
    let there = values(&mut random, count);
    let mut out = cuda.pinned(&[count as i64], Kind::Float).unwrap();
    let mut back = cuda.pinned(&[count as i64], Kind::Float).unwrap();
    assert!(out.is_pinned(cuda.device()) && back.is_pinned(cuda.device()));
    out.copy_(&Tensor::from_slice(&there));
    let mut on_device = Tensor::zeros([count as i64], (Kind::Float, cuda.device()));
    let mut event = cuda.event("copied").unwrap();
    cuda.synchronize().unwrap();
    cuda.copy(StreamName::Snapshots, &mut on_device, &out).unwrap();
    cuda.copy(StreamName::Snapshots, &mut back, &on_device).unwrap();
    event.record(StreamName::Snapshots, 1).unwrap().synchronize().unwrap();
    assert_eq!(bits(&Vec::<f32>::try_from(&back).unwrap()), bits(&there));
}

#[test]
#[ignore = "needs a GPU"]
fn the_allocator_counts_what_is_taken_and_given_back() {
    const BYTES: u64 = 64 << 20;
    let (cuda, _alone) = gpu();
    cuda.reset_peaks().unwrap();
    let before = cuda.allocator_statistics().unwrap();
    let buffer = DeviceBuffer::zeros(BYTES as usize, cuda.device()).unwrap();
    let during = cuda.allocator_statistics().unwrap();
    assert!(during.allocated >= before.allocated + BYTES, "{before:?} {during:?}");
    assert!(during.allocated_peak >= during.allocated && during.reserved >= during.allocated);
    drop(buffer);
    let after = cuda.allocator_statistics().unwrap();
    assert_eq!(after.allocated, before.allocated);
    assert_eq!(
        after.allocated_peak, during.allocated_peak,
        "a peak stays until it is reset"
    );
    cuda.reset_peaks().unwrap();
    assert_eq!(cuda.allocator_statistics().unwrap().allocated_peak, after.allocated);
    let memory = cuda.memory().unwrap();
    println!("seen: {memory:?}, {after:?}");
    assert!(memory.free <= memory.total && memory.total > BYTES);
}

#[test]
#[ignore = "needs a GPU"]
fn ten_times_the_card_is_refused_with_words_and_the_process_goes_on() {
    let (cuda, _alone) = gpu();
    let total = cuda.memory().unwrap().total;
    let before = cuda.allocator_statistics().unwrap();
    let error = DeviceBuffer::zeros(10 * total as usize, cuda.device()).err().unwrap();
    println!("seen: {error}");
    let DeviceError::OutOfMemory { text, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(
        text.contains("Tried to allocate") && !text.contains("Exception raised"),
        "{text}"
    );
    assert!(!error.context_is_lost());
    let after = cuda.allocator_statistics().unwrap();
    assert!(after.out_of_memory > before.out_of_memory, "{before:?} {after:?}");
    works(&cuda);
}

/// The device still adds.
fn works(cuda: &Cuda) {
    let one = Tensor::ones([1000], (Kind::Float, cuda.device()));
    assert_eq!((&one + &one).sum(Kind::Double).double_value(&[]), 2000.0);
}

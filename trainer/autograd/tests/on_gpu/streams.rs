//! Streams, events, and the thread and stream on which gradients become ready.

use std::sync::{Arc, Mutex};

use half::bf16;
use lockstep_autograd::device::{DeviceError, StreamName};
use lockstep_autograd::{DeviceBuffer, accumulate_in_float32, on_gradient_ready, run_backward, set_gradient_slot};
use tch::{Kind, Tensor};

use super::gpu;

#[test]
#[ignore = "needs a GPU"]
fn the_compute_stream_is_libtorch_s_default_and_the_others_are_their_own() {
    let (cuda, _alone) = gpu();
    let ids = [StreamName::Compute, StreamName::Communication, StreamName::Snapshots].map(|name| cuda.stream(name));
    println!("seen: streams {ids:?}");
    assert_eq!(ids[0], 0);
    assert!(ids[1] != 0 && ids[2] != 0 && ids[1] != ids[2], "{ids:?}");
    assert!(cuda.current_stream_is_compute().unwrap());
    let natives = [StreamName::Communication, StreamName::Snapshots].map(|name| cuda.native_stream(name).unwrap());
    assert!(natives.iter().all(|native| !native.is_null()) && natives[0] != natives[1]);
    let inside = cuda.on_stream(StreamName::Communication, || cuda.current_stream_is_compute());
    assert!(!inside.unwrap().unwrap());
    assert!(cuda.current_stream_is_compute().unwrap(), "the stream is put back");
}

#[test]
#[ignore = "needs a GPU"]
fn a_stream_that_waits_for_a_mark_sees_what_came_before_it_and_nothing_of_it_blocks_the_host() {
    let (cuda, _alone) = gpu();
    let mut event = cuda.event("filled").unwrap();
    let mut copied = cuda.event("copied").unwrap();
    let device = cuda.device();
    let big = Tensor::ones([4096, 4096], (Kind::Float, device));
    let mut target = Tensor::zeros([1 << 20], (Kind::Float, device));
    let mut host = cuda.pinned(&[1 << 20], Kind::Float).unwrap();
    cuda.synchronize().unwrap();
    for step in 1..=20u64 {
        // Long work first, so that a copy which does not wait would find the values of the step before.
        cuda.on_stream(StreamName::Communication, || {
            for _ in 0..4 {
                let _ = big.matmul(&big);
            }
            let _ = target.fill_(step as f64);
        })
        .unwrap();
        let filled = event.record(StreamName::Communication, step).unwrap();
        filled.block(StreamName::Compute).unwrap();
        cuda.copy(StreamName::Compute, &mut host, &target).unwrap();
        let done = copied.record(StreamName::Compute, step).unwrap();
        done.synchronize().unwrap();
        assert!(done.query().unwrap() && filled.query().unwrap());
        let values = Vec::<f32>::try_from(&host).unwrap();
        assert!(values.iter().all(|value| *value == step as f32), "step {step}");
        // The write after this read is ordered too.
        done.block(StreamName::Communication).unwrap();
    }
    let old = event.record(StreamName::Compute, 21).unwrap();
    event.record(StreamName::Compute, 22).unwrap();
    assert!(matches!(
        old.block(StreamName::Compute),
        Err(DeviceError::OutOfDate { .. })
    ));
}

#[test]
#[ignore = "needs a GPU"]
fn timing_events_tell_the_time_between_them() {
    let (cuda, _alone) = gpu();
    let (mut from, mut to) = (cuda.timing_event("from").unwrap(), cuda.timing_event("to").unwrap());
    let big = Tensor::ones([4096, 4096], (Kind::Float, cuda.device()));
    let began = from.record(StreamName::Compute, 1).unwrap();
    let _ = big.matmul(&big);
    let ended = to.record(StreamName::Compute, 1).unwrap();
    ended.synchronize().unwrap();
    let milliseconds = ended.milliseconds_since(&began).unwrap();
    println!("seen: a product of 4096 by 4096 in {milliseconds:.3} ms");
    assert!(milliseconds > 0.0);
}

#[test]
#[ignore = "needs a GPU"]
fn hooks_run_on_libtorch_s_autograd_thread_with_the_compute_stream_and_a_tied_leaf_adds_in_float32() {
    let (cuda, _alone) = gpu();
    let parameters = DeviceBuffer::zeros(256, cuda.device()).unwrap();
    let gradients = DeviceBuffer::zeros(256, cuda.device()).unwrap();
    let tied = parameters.tensor::<bf16>(0, &[1]).unwrap().set_requires_grad(true);
    let slot = gradients.tensor::<f32>(0, &[1]).unwrap();
    set_gradient_slot(&tied, &slot).unwrap();
    accumulate_in_float32(&tied).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (told, device) = (Arc::clone(&seen), Arc::clone(&cuda));
    on_gradient_ready(&tied, move || {
        let thread = std::fs::read_to_string("/proc/thread-self/comm").unwrap_or_default();
        let on_compute = device.current_stream_is_compute();
        told.lock().unwrap().push((thread.trim().to_owned(), on_compute));
    })
    .unwrap();
    for backward in 1..=2 {
        let loss = (&tied * 256.0).sum(Kind::Float) + (&tied * 1.0).sum(Kind::Float);
        run_backward(&loss).unwrap();
        cuda.synchronize().unwrap();
        assert_eq!(slot.double_value(&[0]), 257.0 * f64::from(backward));
    }
    let seen = seen.lock().unwrap();
    println!("seen: hooks on {seen:?}");
    assert_eq!(seen.len(), 2, "once a backward");
    for (thread, on_compute) in seen.iter() {
        assert!(thread.starts_with("pt_autograd_"), "{thread}");
        assert_eq!(*on_compute, Ok(true), "a mark recorded here would hold other work");
    }
}

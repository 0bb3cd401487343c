//! The device interface of `lockstep-autograd`, driven over the recording guard: what it tells the device, and what it
//! refuses.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::{Arc, Mutex, mpsc};

use lockstep_autograd::device::{Cuda, DeviceError, StreamName};
use lockstep_autograd::{on_gradient_ready, run_backward};
use lockstep_device_recorder::{Completion, Recorder};
use tch::{Kind, Tensor};

fn lines(recorder: &Recorder) -> Vec<String> {
    let log = recorder.log();
    log.entries
        .iter()
        .map(|entry| {
            let text = log.describe(entry);
            text[text.find(": ").unwrap() + 2..].to_owned()
        })
        .collect()
}

#[test]
fn streams_are_three_and_stay_the_same() {
    let _recorder = Recorder::start(Completion::AtOnce).unwrap();
    assert_eq!(Cuda::count().unwrap(), 2);
    let cuda = Cuda::open_registered_guard(0).unwrap();
    let again = Cuda::open_registered_guard(0).unwrap();
    assert!(Arc::ptr_eq(&cuda, &again), "a device is opened once");
    let ids = [StreamName::Compute, StreamName::Communication, StreamName::Snapshots].map(|name| cuda.stream(name));
    assert_eq!(ids[0], 0, "the compute stream is libtorch's default stream");
    assert!(ids[1] != ids[0] && ids[2] != ids[0] && ids[1] != ids[2], "{ids:?}");
    let handle = cuda.native_stream(StreamName::Communication).unwrap();
    assert_eq!(handle.addr(), 0x1000 + ids[1] as usize);
    let error = Cuda::open_registered_guard(2).unwrap_err();
    assert!(error.to_string().contains("2 devices are visible"), "{error}");
}

#[test]
fn work_on_a_stream_runs_there_without_a_graph_and_leaves_the_current_stream_alone() {
    let _recorder = Recorder::start(Completion::AtOnce).unwrap();
    let cuda = Cuda::open_registered_guard(0).unwrap();
    assert!(cuda.current_stream_is_compute().unwrap());
    let leaf = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
    let (inside, graph) = cuda
        .on_stream(StreamName::Communication, || {
            (cuda.current_stream_is_compute().unwrap(), (&leaf * 2.0).requires_grad())
        })
        .unwrap();
    assert!(!inside && !graph);
    assert!(cuda.current_stream_is_compute().unwrap());
    assert!((&leaf * 2.0).requires_grad());
    // A panic passes through, and the stream is put back.
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        cuda.on_stream(StreamName::Snapshots, || panic!("the very reason"))
    }));
    assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"the very reason"));
    assert!(cuda.current_stream_is_compute().unwrap());
    let mut sum = Tensor::from_slice(&[1.0f32, 2.0]);
    let left = sum.shallow_clone();
    cuda.add_out(
        StreamName::Communication,
        &mut sum,
        &left,
        &Tensor::from_slice(&[0.5f32, 0.25]),
    )
    .unwrap();
    assert_eq!(sum, Tensor::from_slice(&[1.5f32, 2.25]));
    let mut to = Tensor::zeros([2], (Kind::Float, tch::Device::Cpu));
    cuda.copy(StreamName::Snapshots, &mut to, &sum).unwrap();
    assert_eq!(to, sum);
}

#[test]
fn a_token_orders_a_stream_and_one_out_of_date_is_refused() {
    let recorder = Recorder::start(Completion::OnCommand).unwrap();
    let cuda = Cuda::open_registered_guard(0).unwrap();
    let s1 = cuda.stream(StreamName::Communication);
    let mut event = cuda.event("ready[3]").unwrap();
    let first = event.record(StreamName::Compute, 7).unwrap();
    recorder.name_event(first.native_event(), first.event());
    assert_eq!((first.event(), first.step(), first.record()), ("ready[3]", 7, 1));
    first.block(StreamName::Communication).unwrap();
    assert!(!first.query().unwrap());
    recorder.complete(first.native_event());
    assert!(first.query().unwrap());
    first.synchronize().unwrap();
    let log = lines(&recorder);
    let name = log[0].split(' ').nth(1).unwrap().to_owned();
    assert_eq!(
        log,
        [
            format!("record {name} (ready[3]) on s0"),
            format!("s{s1} waits {name} (ready[3])"),
            format!("query {name} (ready[3]): not done"),
            format!("query {name} (ready[3]): done"),
            format!("synchronise with {name} (ready[3])"),
        ]
    );
    let second = event.record(StreamName::Compute, 8).unwrap();
    for refused in [
        first.block(StreamName::Communication).unwrap_err(),
        first.query().map(|_| ()).unwrap_err(),
        first.synchronize().unwrap_err(),
    ] {
        let expected = DeviceError::OutOfDate {
            event: "ready[3]".to_owned(),
            step: 7,
            now: 8,
        };
        assert_eq!(refused, expected);
    }
    assert!(!second.query().unwrap(), "the second record is not the first");
}

#[test]
fn a_record_is_done_only_with_what_it_comes_after() {
    let recorder = Recorder::start(Completion::OnCommand).unwrap();
    let cuda = Cuda::open_registered_guard(0).unwrap();
    let mut ready = cuda.event("ready").unwrap();
    let mut other = cuda.event("other").unwrap();
    let mut done = cuda.event("done").unwrap();
    let ready = ready.record(StreamName::Compute, 1).unwrap();
    let other = other.record(StreamName::Snapshots, 1).unwrap();
    ready.block(StreamName::Communication).unwrap();
    let done = done.record(StreamName::Communication, 1).unwrap();
    // A thread that synchronises wakes up when the record is done.
    std::thread::scope(|scope| {
        let waiting = done.clone();
        let waiter = scope.spawn(move || waiting.synchronize().unwrap());
        recorder.complete(done.native_event());
        waiter.join().unwrap();
    });
    assert!(ready.query().unwrap(), "done comes after ready");
    assert!(!other.query().unwrap(), "nothing waited for the other");
    recorder.complete_all();
    assert!(other.query().unwrap());
}

#[test]
fn events_for_timing_tell_the_time_between_records() {
    let _recorder = Recorder::start(Completion::AtOnce).unwrap();
    let cuda = Cuda::open_registered_guard(0).unwrap();
    let mut events = [cuda.timing_event("from").unwrap(), cuda.timing_event("to").unwrap()];
    let from = events[0].record(StreamName::Compute, 1).unwrap();
    let to = events[1].record(StreamName::Compute, 1).unwrap();
    assert_eq!(to.milliseconds_since(&from).unwrap(), 1.0);
    let plain = cuda.event("plain").unwrap().record(StreamName::Compute, 1).unwrap();
    assert!(plain.milliseconds_since(&from).is_err());
}

#[test]
fn a_hook_on_another_thread_records_on_the_compute_stream_and_sends_the_token() {
    let recorder = Recorder::start(Completion::AtOnce).unwrap();
    let cuda = Cuda::open_registered_guard(0).unwrap();
    let leaf = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
    let event = Mutex::new(cuda.event("ready[0]").unwrap());
    let (tokens, received) = mpsc::channel();
    let device = Arc::clone(&cuda);
    on_gradient_ready(&leaf, move || {
        assert!(
            device.current_stream_is_compute().unwrap(),
            "a stream guard was left open"
        );
        let token = event.lock().unwrap().record(StreamName::Compute, 1).unwrap();
        tokens.send(token).unwrap();
    })
    .unwrap();
    let loss = (&leaf * 2.0).sum(Kind::Float);
    let backward = std::thread::Builder::new().name("A".to_owned());
    let backward = backward.spawn(move || run_backward(&loss).unwrap()).unwrap();
    let token = received.recv().unwrap();
    backward.join().unwrap();
    token.block(StreamName::Communication).unwrap();
    let log = recorder.log();
    assert_eq!(log.entries.len(), 2);
    assert_eq!(log.entries[0].thread.as_ref(), "A");
    // On any other stream the hook's panic is an error of backward, with its reason.
    let loss = (&leaf * 2.0).sum(Kind::Float);
    let error = cuda
        .on_stream(StreamName::Communication, || {
            run_backward(&loss).unwrap_err().to_string()
        })
        .unwrap();
    assert!(error.contains("a stream guard was left open"), "{error}");
}

#[test]
fn what_needs_a_real_device_is_a_typed_error_over_the_recorder() {
    let _recorder = Recorder::start(Completion::AtOnce).unwrap();
    let cuda = Cuda::open_registered_guard(0).unwrap();
    assert_eq!(cuda.device(), tch::Device::Cpu, "its tensors lie on the host");
    assert_eq!(
        cuda.pinned(&[4], Kind::Float).unwrap(),
        Tensor::zeros([4], (Kind::Float, tch::Device::Cpu))
    );
    for error in [
        cuda.allocator_statistics().map(|_| ()).unwrap_err(),
        cuda.memory().map(|_| ()).unwrap_err(),
        cuda.reset_peaks().unwrap_err(),
    ] {
        assert!(matches!(error, DeviceError::Torch { .. }), "{error:?}");
    }
}

//! Work beside NCCL waits in the same lines: after what is before it, before what comes later, and for other streams.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nccl_double::Double;
use nccl_rs::{Communicator, Config, DataType, DevicePointer, Nccl, Stream};

/// Longer than anything here takes; only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

fn stream(number: usize) -> Stream {
    // SAFETY: the double looks behind no stream.
    unsafe { Stream::from_raw(std::ptr::without_provenance_mut(number)) }
}

#[test]
fn work_waits_for_the_group_before_it_and_holds_up_the_group_after_it() {
    let double = Double::open().unwrap();
    let nccl = Nccl::open(Double::path().unwrap()).unwrap();
    let id = nccl.unique_id().unwrap();
    let mut communicator = Communicator::init(&nccl, 1, &id, 0, &Config::new().non_blocking()).unwrap();
    communicator.wait_while(|| true).unwrap();
    let stream = stream(101);
    let bytes: Arc<[AtomicU8; 3]> = Arc::new([1, 2, 3].map(AtomicU8::new));
    // SAFETY: the array outlives the communicator, and is touched in the order of the stream only.
    let all = unsafe { DevicePointer::new(bytes.as_ptr().cast_mut().cast(), 3) };
    let part = |index: usize| all.slice(index..index + 1).unwrap();
    let copy = |communicator: &mut Communicator, from: usize, to: usize| {
        communicator
            .group(|group| {
                group.send(part(from), 1, DataType::Uint8, 0, stream)?;
                group.recv(part(to), 1, DataType::Uint8, 0, stream)
            })
            .unwrap();
        communicator.wait_while(|| true).unwrap();
    };
    double.hold(stream, true);
    copy(&mut communicator, 0, 1);
    let between = Arc::clone(&bytes);
    double.run(stream, move || {
        between[1].fetch_add(10, Ordering::Relaxed);
    });
    copy(&mut communicator, 1, 2);
    assert_eq!((double.launched(stream), double.done(stream)), (3, 0));
    double.hold(stream, false);
    assert!(double.wait(stream, 3, PATIENCE));
    assert_eq!(bytes.each_ref().map(|byte| byte.load(Ordering::Relaxed)), [1, 11, 11]);
    communicator.destroy().unwrap();
}

#[test]
fn a_stream_waits_for_the_place_of_another_and_no_longer() {
    let double = Double::open().unwrap();
    let (first, second) = (stream(102), stream(103));
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |stream, word: &'static str| {
        let order = Arc::clone(&order);
        double.run(stream, move || order.lock().unwrap().push(word));
    };
    double.hold(first, true);
    note(first, "before the mark");
    let mark = double.launched(first);
    double.order(second, first, mark);
    note(second, "after the wait");
    assert!(order.lock().unwrap().is_empty());
    double.hold(first, false);
    assert!(double.wait(second, 2, PATIENCE));
    assert_eq!(*order.lock().unwrap(), ["before the mark", "after the wait"]);
    // A mark of the past holds nobody up, even where its stream is held.
    double.hold(first, true);
    note(first, "later");
    double.order(second, first, mark);
    note(second, "at once");
    assert!(double.wait(second, 4, PATIENCE));
    assert_eq!(order.lock().unwrap().last(), Some(&"at once"));
    double.hold(first, false);
}

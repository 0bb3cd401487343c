//! The mistakes that a backend can make with a non-blocking communicator, made on purpose: each is refused and counted.
#![allow(clippy::unwrap_used)]

use accelerator_double::{HostAccelerator, double, nccl};
use lockstep_collective::{Accelerator, Device, Operand, Stream};
use nccl_rs::{Communicator, Config, DataType, State};

#[test]
fn a_mark_or_work_that_would_come_before_the_group_is_refused_until_success_was_seen() {
    let nccl = nccl();
    let id = nccl.unique_id().unwrap();
    double().set_polls(&id, 0, 3);
    let mut communicator = Communicator::init(&nccl, 1, &id, 0, &Config::new().non_blocking()).unwrap();
    communicator.wait_while(|| true).unwrap();
    let device = HostAccelerator::new();
    let memory = device.allocate("memory", 16).unwrap();
    let all = memory.pointer();
    let pinned = device.allocate_pinned(2).unwrap();
    let stream = Stream::Communication;
    let native = device.native(stream);
    communicator
        .group(|group| group.broadcast(all, all, 16, DataType::Uint8, 0, native))
        .unwrap();

    let early = device.record(stream).unwrap_err().to_string();
    assert!(
        early.contains("record") && early.contains("1 operations of NCCL"),
        "{early}"
    );
    let floats = Operand::Float32(all);
    assert!(device.add(all, floats, floats, false, stream).is_err());
    assert!(device.copy_to_host(all, &pinned, 0, stream).is_err());
    assert!(device.copy_to_device(&pinned, 0, all, stream).is_err());
    let half = all.slice(0..8).unwrap();
    assert!(device.narrow(half, all, stream).is_err());
    let compute = device.record(Stream::Compute).unwrap();
    assert!(device.wait(stream, &compute).is_err());
    assert_eq!(device.offences(), 6);

    assert_eq!(communicator.wait_while(|| true).unwrap(), State::Ready);
    let mark = device.record(stream).unwrap();
    assert!(double().wait(native, 1, std::time::Duration::from_secs(60)));
    assert!(device.is_done(&mark).unwrap());
    assert_eq!(device.offences(), 6);
    communicator.destroy().unwrap();
}

#[test]
fn additions_are_plain_float32_and_rounded_where_that_is_asked_for() {
    let device = HostAccelerator::new();
    let memory = device.allocate("memory", 768).unwrap();
    let part = |place: usize, bytes: usize| memory.pointer().slice(256 * place..256 * place + bytes).unwrap();
    let pinned = device.allocate_pinned(1).unwrap();
    let word = |low: f32, high: f32| u64::from(low.to_bits()) | u64::from(high.to_bits()) << 32;
    let stream = Stream::Compute;
    let run = |left: u64, right: Operand, round: bool| {
        pinned.words()[0].store(left, std::sync::atomic::Ordering::Relaxed);
        device.copy_to_device(&pinned, 0, part(0, 8), stream).unwrap();
        device
            .add(part(0, 8), Operand::Float32(part(0, 8)), right, round, stream)
            .unwrap();
        device.copy_to_host(part(0, 8), &pinned, 0, stream).unwrap();
        pinned.words()[0].load(std::sync::atomic::Ordering::Relaxed)
    };
    // 1 + 3/256 lies half way between two bfloat16 values, and the upper one is even.
    let sum = 1.0 + 3.0 / 256.0;
    pinned.words()[0].store(word(1.0, -0.0), std::sync::atomic::Ordering::Relaxed);
    device.copy_to_device(&pinned, 0, part(1, 8), stream).unwrap();
    device.narrow(part(2, 4), part(1, 8), stream).unwrap();
    for right in [Operand::Float32(part(1, 8)), Operand::Bf16(part(2, 4))] {
        assert_eq!(run(word(3.0 / 256.0, -0.0), right, false), word(sum, -0.0), "{right:?}");
        assert_eq!(
            run(word(3.0 / 256.0, 0.0), right, true),
            word(1.0 + 4.0 / 256.0, 0.0),
            "{right:?}"
        );
    }
}

//! libtorch's operators tell what they read and write of watched memory: on the stream that is current where they are called.
#![allow(clippy::unwrap_used, missing_docs)]

use lockstep_autograd::device::{Cuda, StreamName};
use lockstep_autograd::{FlatBuffer, run_backward};
use lockstep_device_recorder::{Completion, Range, Recorder, check};
use tch::{Kind, Tensor};

/// What the log says since the last call, each line without its thread.
fn new_lines(recorder: &Recorder, seen: &mut usize) -> Vec<String> {
    let log = recorder.log();
    let new = log.entries[*seen..].iter().map(|entry| {
        let text = log.describe(entry);
        text[text.find(": ").unwrap() + 2..].to_owned()
    });
    let new = new.collect();
    *seen = log.entries.len();
    new
}

/// Watched memory of 64 floats.
fn watched(recorder: &Recorder, name: &str) -> FlatBuffer {
    let buffer = FlatBuffer::heap(256).unwrap();
    let address = buffer.slice::<f32>(0, 64).unwrap().as_ptr().addr();
    recorder.watch(name, address, 256);
    buffer
}

#[test]
fn operands_are_read_results_are_written_and_views_touch_nothing() {
    let recorder = Recorder::start(Completion::AtOnce).unwrap();
    let mut seen = 0;
    let (a, b) = (watched(&recorder, "a"), watched(&recorder, "b"));
    let mut sum = a.tensor::<f32>(0, &[4, 4]).unwrap();
    let term = b.tensor::<f32>(64, &[4, 4]).unwrap();
    let _ = sum.transpose(0, 1).narrow(0, 1, 2).view([2, 4]);
    assert_eq!(new_lines(&recorder, &mut seen), [""; 0]);
    let _ = sum.f_add_(&term).unwrap();
    let lines = new_lines(&recorder, &mut seen);
    assert!(
        lines.contains(&"s0 write a[0..64] (aten::add_)".to_owned()),
        "{lines:?}"
    );
    assert!(
        lines.contains(&"s0 read b[64..128] (aten::add_)".to_owned()),
        "{lines:?}"
    );
    // From the first to the last byte of what has gaps: column 1 of four rows of 16 bytes.
    let mut column = sum.narrow(1, 1, 1);
    column.copy_(&Tensor::ones([4, 1], (Kind::Float, tch::Device::Cpu)));
    assert_eq!(new_lines(&recorder, &mut seen), ["s0 write a[4..56] (aten::copy_)"]);
    let _ = Tensor::cat(&[&term, &term], 0);
    assert_eq!(new_lines(&recorder, &mut seen), ["s0 read b[64..128] (aten::cat)"]);
    let ones = Tensor::ones([4, 4], (Kind::Float, tch::Device::Cpu));
    let _ = ones.f_mm_out(&sum, &term).unwrap();
    let lines = new_lines(&recorder, &mut seen);
    assert!(lines.contains(&"s0 write a[0..64] (aten::mm)".to_owned()), "{lines:?}");
}

#[test]
fn each_device_has_streams_of_its_own_in_the_log() {
    let recorder = Recorder::start(Completion::AtOnce).unwrap();
    let mut seen = 0;
    let buffer = watched(&recorder, "slots");
    for index in [0, 1] {
        let cuda = Cuda::open_registered_guard(index).unwrap();
        cuda.use_on_this_thread().unwrap();
        let mut slots = buffer.tensor::<f32>(0, &[64]).unwrap();
        let _ = slots.f_zero_().unwrap();
        let stream = StreamName::Communication;
        cuda.on_stream(stream, || slots.f_zero_().map(drop)).unwrap().unwrap();
        let first = 64 * index as i64;
        let second = recorder.stream_of_handle(cuda.native_stream(stream).unwrap().addr());
        assert_eq!(second, first + cuda.stream(stream));
        let lines = new_lines(&recorder, &mut seen);
        for stream in [first, second] {
            let line = format!("s{stream} write slots[0..256] (aten::zero_)");
            assert!(lines.contains(&line), "{lines:?}");
        }
    }
    Cuda::open_registered_guard(0).unwrap().use_on_this_thread().unwrap();
    let report = check(&recorder.log()).unwrap_err();
    assert!(report.to_string().contains("no event is recorded on s0"), "{report}");
}

#[test]
fn backward_tells_of_what_it_has_kept_and_a_log_can_be_narrowed() {
    let recorder = Recorder::start(Completion::AtOnce).unwrap();
    let buffer = watched(&recorder, "copies");
    let leaf = buffer.tensor::<f32>(0, &[8]).unwrap().set_requires_grad(true);
    let loss = (&leaf * &leaf).sum(Kind::Float);
    let _ = leaf.sin();
    let mut seen = 0;
    let forward = new_lines(&recorder, &mut seen);
    assert!(
        forward.contains(&"s0 read copies[0..32] (aten::mul)".to_owned()),
        "{forward:?}"
    );
    run_backward(&loss).unwrap();
    let backward = new_lines(&recorder, &mut seen);
    assert!(
        backward.contains(&"s0 read copies[0..32] (aten::mul)".to_owned()),
        "{backward:?}"
    );
    let part = recorder
        .log()
        .within(&[Range::new("copies", 8..12), Range::new("elsewhere", 0..8)]);
    assert!(
        !part.entries.is_empty() && part.to_string().contains("copies[8..12]"),
        "{part}"
    );
    assert!(!part.to_string().contains("copies[0..32]"), "{part}");
}

//! Device buffers have the views of flat buffers, additions are IEEE sums, and without a GPU everything says so.
#![allow(clippy::unwrap_used, missing_docs)]

use half::bf16;
use lockstep_autograd::cuda::{CudaLibraries, loaded_libraries, open_libraries};
use lockstep_autograd::device::{Cuda, DeviceError, add_out};
use lockstep_autograd::{AutogradError, DeviceBuffer, FlatBuffer, elements, run_backward, set_gradient_slot};
use rand::{Rng as _, SeedableRng as _};
use tch::{Device, Kind, Tensor};

#[test]
fn a_device_buffer_is_zeroed_aligned_and_seen_as_tensors_of_any_kind() {
    for bytes in [1, 255, 256, 4096, 100_000] {
        let buffer = DeviceBuffer::zeros(bytes, Device::Cpu).unwrap();
        assert_eq!(buffer.bytes(), bytes);
        assert_eq!(buffer.device(), Device::Cpu);
        assert_eq!(buffer.address(0, bytes).unwrap().as_ptr() as usize % 256, 0);
        assert!(
            elements::<u8>(&buffer.tensor::<u8>(0, &[bytes as i64]).unwrap())
                .iter()
                .all(|byte| *byte == 0)
        );
        assert!(buffer.tensor::<u8>(1, &[bytes as i64]).is_err());
        assert!(buffer.address(1, bytes).is_err());
    }
    let buffer = DeviceBuffer::zeros(64, Device::Cpu).unwrap();
    let mut words = buffer.tensor::<f32>(16, &[2, 2]).unwrap();
    let _ = words.fill_(1.0);
    let halves = buffer.tensor::<bf16>(16, &[8]).unwrap();
    assert_eq!(
        elements::<bf16>(&halves)
            .iter()
            .map(|h| h.to_bits())
            .collect::<Vec<_>>(),
        [0, 0x3f80].repeat(4)
    );
    assert_eq!(buffer.tensor::<f64>(8, &[1]).unwrap().double_value(&[0]), 0.0);
    assert!(buffer.tensor::<f32>(2, &[1]).is_err(), "an offset inside an element");
}

#[test]
fn views_of_one_device_buffer_do_not_disturb_each_others_graph() {
    let buffer = DeviceBuffer::zeros(1024, Device::Cpu).unwrap();
    let mut start = buffer.tensor::<f32>(0, &[1]).unwrap();
    let _ = start.fill_(3.0);
    let weight = buffer.tensor::<f32>(0, &[1]).unwrap().set_requires_grad(true);
    let mut slot = buffer.tensor::<f32>(256, &[1]).unwrap();
    set_gradient_slot(&weight, &slot).unwrap();
    let loss = (&weight * &weight).sum(Kind::Float);
    // A write to another view between forward and backward: the saved weight is not taken for changed.
    let _ = slot.fill_(100.0);
    run_backward(&loss).unwrap();
    drop(buffer);
    assert_eq!(slot.double_value(&[0]), 106.0);
}

#[test]
fn an_addition_gives_the_bits_of_the_ieee_sum() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let special = [0.0f32, -0.0, 1e-45, -1e-40, 1e30, -1e30, 1.0, f32::MIN_POSITIVE];
    let mut values = |count: usize| -> Vec<f32> {
        (0..count)
            .map(|i| {
                if i % 3 == 0 {
                    special[random.random_range(0..special.len())]
                } else {
                    f32::from_bits(random.random_range(0..0x7f00_0000u32) | random.random_range(0..2u32) << 31)
                }
            })
            .collect()
    };
    let (left, right) = (values(1003), values(1003));
    let rounded: Vec<bf16> = right.iter().map(|v| bf16::from_f32(*v)).collect();
    let expected: Vec<u32> = left.iter().zip(&right).map(|(a, b)| (a + b).to_bits()).collect();
    let expected_rounded: Vec<u32> = left
        .iter()
        .zip(&rounded)
        .map(|(a, b)| (a + b.to_f32()).to_bits())
        .collect();
    let mut memory = FlatBuffer::heap(2 * rounded.len()).unwrap();
    memory.slice_mut(0, rounded.len()).unwrap().copy_from_slice(&rounded);
    let rounded = memory.tensor::<bf16>(0, &[rounded.len() as i64]).unwrap();
    for (right, expected) in [(Tensor::from_slice(&right), expected), (rounded, expected_rounded)] {
        // In place, as the tree of lanes adds.
        let mut sum = Tensor::from_slice(&left);
        let same = sum.shallow_clone();
        add_out(&mut sum, &same, &right).unwrap();
        let bits: Vec<u32> = elements::<f32>(&sum).iter().map(|v| v.to_bits()).collect();
        assert_eq!(bits, expected);
    }
    let mut short = Tensor::from_slice(&left[..10]);
    let long = Tensor::from_slice(&left);
    assert!(matches!(add_out(&mut short, &long, &long), Err(DeviceError::Shape(_))));
}

#[test]
fn without_cuda_libraries_a_device_is_refused_with_the_reason() {
    if let CudaLibraries::Absent { reason } = open_libraries() {
        assert!(reason.contains("libtorch_cuda.so"), "{reason}");
        assert_eq!(Cuda::count().unwrap(), 0);
        let error = Cuda::open(0).unwrap_err().to_string();
        assert!(error.contains(reason.as_str()), "{error}");
        assert!(
            loaded_libraries()
                .iter()
                .all(|(name, _)| !name.starts_with("libtorch_cuda"))
        );
    }
    let count = Cuda::count().unwrap();
    let error = Cuda::open_registered_guard(count).unwrap_err();
    assert!(matches!(error, DeviceError::NoDevice(_)), "{error}");
}

#[test]
fn a_flat_buffer_and_a_device_buffer_refuse_the_same_ranges() {
    let flat = FlatBuffer::heap(64).unwrap();
    let device = DeviceBuffer::zeros(64, Device::Cpu).unwrap();
    let text = |result: Result<Tensor, AutogradError>| result.map(|t| t.size()).map_err(|e| e.to_string());
    for (offset, size) in [(0, 16), (0, 17), (2, 1), (60, 1), (60, 2), (64, 0)] {
        assert_eq!(
            text(flat.tensor::<f32>(offset, &[size])),
            text(device.tensor::<f32>(offset, &[size])),
            "{offset} {size}"
        );
    }
}

#[test]
fn the_memory_of_a_tensor_is_its_bytes_and_one_with_gaps_is_refused() {
    let whole = Tensor::from_slice(&[1i64, 2, 3, 4]).view([2, 2]);
    let row = whole.get(1);
    let memory = lockstep_autograd::memory_of(&row).unwrap();
    assert_eq!(memory.pointer().bytes(), 16);
    assert_eq!(memory.pointer().address().addr(), whole.data_ptr().addr() + 16);
    let error = lockstep_autograd::memory_of(&whole.transpose(0, 1))
        .map(|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("without gaps"), "{error}");
}

//! Additions of the lane tree and our own kernels: the bits of the CPU.

use half::bf16;
use lockstep_autograd::device::{CollectiveDevice, Cuda, StreamName, add_out};
use lockstep_autograd::{DeviceBuffer, Element};
use lockstep_collective::{Accelerator as _, Operand, Stream};
use lockstep_gpu_kernels::sources::LARGEST_BLOCK;
use lockstep_gpu_kernels::{Driver, Kernels, Nvrtc, reference};
use rand::Rng as _;
use tch::{Kind, Tensor};

use super::{bits, gpu, seeded, values};

/// Values on the device.
fn on_device<T: Element>(cuda: &Cuda, values: &[T], bytes_of: impl Fn(&T) -> Vec<u8>) -> DeviceBuffer {
    let bytes: Vec<u8> = values.iter().flat_map(bytes_of).collect();
    let buffer = DeviceBuffer::zeros(bytes.len(), cuda.device()).unwrap();
    let mut tensor = buffer.tensor::<u8>(0, &[bytes.len() as i64]).unwrap();
    tensor.copy_(&Tensor::from_slice(&bytes));
    buffer
}

fn floats(cuda: &Cuda, values: &[f32]) -> DeviceBuffer {
    on_device(cuda, values, |value| value.to_le_bytes().to_vec())
}

fn halves(cuda: &Cuda, values: &[u16]) -> DeviceBuffer {
    let values: Vec<bf16> = values.iter().map(|bits| bf16::from_bits(*bits)).collect();
    on_device(cuda, &values, |value| value.to_bits().to_le_bytes().to_vec())
}

fn back(buffer: &DeviceBuffer, count: usize) -> Vec<f32> {
    Vec::try_from(buffer.tensor::<f32>(0, &[count as i64]).unwrap()).unwrap()
}

fn words(buffer: &DeviceBuffer) -> Vec<i64> {
    let count = buffer.bytes() as i64 / 8;
    Vec::try_from(buffer.tensor::<i64>(0, &[count]).unwrap()).unwrap()
}

fn address(buffer: &DeviceBuffer) -> u64 {
    buffer.address(0, buffer.bytes()).unwrap().as_ptr().addr() as u64
}

/// Lengths around the borders of threads, blocks and libtorch's vectors.
const COUNTS: [usize; 6] = [1, 255, 257, 65_535, 1 << 20, 2_200_003];

#[test]
#[ignore = "needs a GPU"]
fn libtorch_s_additions_are_the_ieee_sums() {
    let (cuda, _alone) = gpu();
    let mut random = seeded();
    for count in COUNTS {
        let (left, right) = (values(&mut random, count), values(&mut random, count));
        let rounded: Vec<u16> = right.iter().map(|value| bf16::from_f32(*value).to_bits()).collect();
        let shape = [count as i64];
        let (a, b, h) = (floats(&cuda, &left), floats(&cuda, &right), halves(&cuda, &rounded));
        let mut out = Tensor::zeros(shape, (Kind::Float, cuda.device()));
        let (mut a, b) = (a.tensor::<f32>(0, &shape).unwrap(), b.tensor::<f32>(0, &shape).unwrap());
        add_out(&mut out, &a, &b).unwrap();
        let sums = Vec::<f32>::try_from(&out).unwrap();
        assert_eq!(bits(&sums), bits(&reference::tree_add(&left, &right)), "{count}");
        add_out(&mut out, &a, &h.tensor::<bf16>(0, &shape).unwrap()).unwrap();
        let sums = Vec::<f32>::try_from(&out).unwrap();
        assert_eq!(
            bits(&sums),
            bits(&reference::tree_add_bf16(&left, &rounded)),
            "bf16, {count}"
        );
        let left_again = a.shallow_clone();
        add_out(&mut a, &left_again, &b).unwrap();
        let sums = Vec::<f32>::try_from(&a).unwrap();
        assert_eq!(
            bits(&sums),
            bits(&reference::tree_add(&left, &right)),
            "in place, {count}"
        );
    }
}

#[test]
#[ignore = "needs a GPU"]
fn what_the_nccl_backend_asks_of_the_device_is_what_the_host_does() {
    let (cuda, _alone) = gpu();
    let mut random = seeded();
    let device = CollectiveDevice::new(cuda).unwrap();
    let count = 300_000;
    let (left, right) = (values(&mut random, count), values(&mut random, count));
    let take = |name: &str, bytes: usize| device.allocate(name, bytes).unwrap();
    let (a, b, sum, narrow) = (
        take("left", 4 * count),
        take("right", 4 * count),
        take("sum", 4 * count),
        take("narrow", 2 * count),
    );
    let pinned = device.allocate_pinned(count / 2).unwrap();
    let wait = || device.cuda().synchronize().unwrap();
    let word = |pair: &[f32]| u64::from(pair[0].to_bits()) | u64::from(pair[1].to_bits()) << 32;
    for (values, memory) in [(&left, &a), (&right, &b)] {
        for (word, pair) in pinned.words().iter().zip(values.chunks(2).map(word)) {
            word.store(pair, std::sync::atomic::Ordering::Relaxed);
        }
        let copied = device.copy_to_device(&pinned, 0, memory.pointer(), Stream::Communication);
        copied.unwrap();
        wait();
    }
    let operands = (Operand::Float32(a.pointer()), Operand::Float32(b.pointer()));
    let added = device.add(sum.pointer(), operands.0, operands.1, true, Stream::Communication);
    added.unwrap();
    device
        .narrow(narrow.pointer(), sum.pointer(), Stream::Communication)
        .unwrap();
    let copied = device.copy_to_host(narrow.pointer(), &pinned, 0, Stream::Communication);
    copied.unwrap();
    wait();
    let found: Vec<u16> = pinned.words()[..count / 4]
        .iter()
        .flat_map(|word| word.load(std::sync::atomic::Ordering::Relaxed).to_le_bytes())
        .collect::<Vec<u8>>()
        .chunks(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    let expected: Vec<u16> = reference::tree_add(&left, &right)
        .into_iter()
        .map(reference::round_to_bf16)
        .collect();
    assert_eq!(found, expected);
}

#[test]
#[ignore = "needs a GPU"]
fn our_kernels_give_the_bits_of_their_references() {
    let (cuda, _alone) = gpu();
    let mut random = seeded();
    let driver = Driver::load().unwrap();
    println!("seen: {:?}, driver {}", driver.facts(0).unwrap(), driver.version());
    let kernels = Kernels::compile(&Nvrtc::load().unwrap(), &driver, 0).unwrap();
    let stream = cuda.native_stream(StreamName::Communication).unwrap();
    for count in COUNTS {
        let (left, right) = (values(&mut random, count), values(&mut random, count));
        let (a, b, out) = (
            floats(&cuda, &left),
            floats(&cuda, &right),
            DeviceBuffer::zeros(4 * count, cuda.device()).unwrap(),
        );
        cuda.synchronize().unwrap();
        // SAFETY: buffers of `count` elements on this device, kept until the device has done the work.
        unsafe { kernels.tree_add(stream, address(&out), address(&a), address(&b), count) }.unwrap();
        cuda.synchronize().unwrap();
        assert_eq!(
            bits(&back(&out, count)),
            bits(&reference::tree_add(&left, &right)),
            "{count}"
        );
    }

    // Blocks of every kind of length, with gaps between them.
    let (mut table, mut at) = (Vec::new(), 0u64);
    for count in [0, 1, 255, 256, 257, 5000, LARGEST_BLOCK - 1, LARGEST_BLOCK] {
        at += random.random_range(0..100u64);
        table.extend([at, count as u64]);
        at += count as u64;
    }
    let blocks = table.len() / 2;
    let all = values(&mut random, at as usize);
    let (input, places) = (
        floats(&cuda, &all),
        on_device(
            &cuda,
            &table.iter().map(|word| *word as i64).collect::<Vec<_>>(),
            |word| word.to_le_bytes().to_vec(),
        ),
    );
    let [sums, bad, dots, hashes] = [(); 4].map(|()| DeviceBuffer::zeros(8 * blocks, cuda.device()).unwrap());
    cuda.synchronize().unwrap();
    let (values, places) = (address(&input), address(&places));
    // SAFETY: all blocks lie in the values, and every result has a place for each block; nothing is freed before the wait.
    unsafe {
        let (sums, bad) = (address(&sums), address(&bad));
        kernels.square_sums(stream, values, places, blocks, sums, bad).unwrap();
        kernels
            .dots(stream, values, values, places, blocks, address(&dots))
            .unwrap();
        kernels
            .hashes(stream, values, places, blocks, address(&hashes))
            .unwrap();
    }
    cuda.synchronize().unwrap();
    let (sums, bad, dots, hashes) = (words(&sums), words(&bad), words(&dots), words(&hashes));
    for block in 0..blocks {
        let first = table[2 * block] as usize;
        let part = &all[first..first + table[2 * block + 1] as usize];
        let (sum, count) = reference::square_sum(part);
        assert_eq!(sums[block] as u64, sum.to_bits(), "square sum of block {block}");
        assert_eq!(bad[block] as u64, count, "values that are not finite in block {block}");
        assert_eq!(
            dots[block] as u64,
            reference::dot(part, part).to_bits(),
            "dot of block {block}"
        );
        assert_eq!(
            hashes[block] as u64,
            reference::block_hash(part),
            "hash of block {block}"
        );
    }
}

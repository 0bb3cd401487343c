//! The kernels' own source, compiled as C++ and launched through the driver's face, gives the bits of the references.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::ptr::null_mut;
use std::sync::Arc;

use half::bf16;
use lockstep_gpu_kernels::driver::Driver;
use lockstep_gpu_kernels::sources::LARGEST_BLOCK;
use lockstep_gpu_kernels::{Function, KernelError, Kernels, reference};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

fn driver() -> Arc<Driver> {
    Driver::load_from(Path::new(env!("LOCKSTEP_FAKE_DRIVER"))).unwrap()
}

fn kernels() -> Kernels {
    Kernels::from_images(&driver(), |_| b"kernels").unwrap()
}

fn seeded() -> StdRng {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

/// Ordinary, subnormal, zero of both signs, huge.
fn values(random: &mut StdRng, count: usize) -> Vec<f32> {
    (0..count)
        .map(|_| match random.random_range(0..8) {
            0 => f32::from_bits(random.random_range(0..0x0080_0000u32) | random.random_range(0..2u32) << 31),
            1 => [0.0, -0.0][random.random_range(0..2)],
            2 => [1e30, -1e30, 3e38, -3e38][random.random_range(0..4)],
            _ => random.random_range(-3.0..3.0),
        })
        .collect()
}

fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr().addr() as u64
}

fn address_mut<T>(slice: &mut [T]) -> u64 {
    slice.as_mut_ptr().expose_provenance() as u64
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Lengths around the borders of threads and blocks, and one beyond the largest grid.
const COUNTS: [usize; 9] = [0, 1, 255, 256, 257, 1000, 65_535, 65_536, 2_200_003];

#[test]
fn a_node_of_the_tree_is_the_ieee_sum() {
    let (kernels, mut random) = (kernels(), seeded());
    for count in COUNTS {
        let (left, right) = (values(&mut random, count), values(&mut random, count));
        let mut out = vec![7.0f32; count];
        // SAFETY: in the fake driver device memory is host memory; the slices have `count` elements and outlive the call.
        unsafe {
            kernels
                .tree_add(
                    null_mut(),
                    address_mut(&mut out),
                    address(&left),
                    address(&right),
                    count,
                )
                .unwrap();
        }
        assert_eq!(bits(&out), bits(&reference::tree_add(&left, &right)), "{count}");
        // In place, on the left.
        let mut sum = left.clone();
        let at = address_mut(&mut sum);
        // SAFETY: as above.
        unsafe { kernels.tree_add(null_mut(), at, at, address(&right), count).unwrap() };
        assert_eq!(bits(&sum), bits(&out), "{count}");
        let right: Vec<u16> = right.iter().map(|v| bf16::from_f32(*v).to_bits()).collect();
        // SAFETY: as above.
        unsafe {
            kernels
                .tree_add_bf16(
                    null_mut(),
                    address_mut(&mut out),
                    address(&left),
                    address(&right),
                    count,
                )
                .unwrap();
        }
        assert_eq!(bits(&out), bits(&reference::tree_add_bf16(&left, &right)), "{count}");
    }
}

/// A buffer cut into blocks of every kind of length, with gaps between them as tensors have.
fn cut(random: &mut StdRng) -> (Vec<u64>, usize) {
    let mut table = Vec::new();
    let mut at = 0;
    for count in [0, 1, 16, 255, 256, 257, 5000, LARGEST_BLOCK - 1, LARGEST_BLOCK] {
        at += random.random_range(0..100);
        table.extend([at as u64, count as u64]);
        at += count;
    }
    (table, at)
}

#[test]
fn a_block_gives_one_sum_whatever_the_grid_is() {
    let (kernels, mut random) = (kernels(), seeded());
    let (table, length) = cut(&mut random);
    let blocks = table.len() / 2;
    let mut left = values(&mut random, length);
    let right = values(&mut random, length);
    for i in [2, 5] {
        let (start, count) = (table[2 * i] as usize, table[2 * i + 1] as usize);
        left[start] = f32::NAN;
        left[start + count - 1] = f32::NEG_INFINITY;
    }
    let (mut sums, mut bad, mut dots) = (vec![0.0f64; blocks], vec![9u64; blocks], vec![0.0f64; blocks]);
    // SAFETY: as in the first test; the blocks lie in the slices.
    unsafe {
        let (left, right, table) = (address(&left), address(&right), address(&table));
        kernels
            .square_sums(
                null_mut(),
                left,
                table,
                blocks,
                address_mut(&mut sums),
                address_mut(&mut bad),
            )
            .unwrap();
        kernels
            .dots(null_mut(), right, right, table, blocks, address_mut(&mut dots))
            .unwrap();
    }
    for i in 0..blocks {
        let range = table[2 * i] as usize..(table[2 * i] + table[2 * i + 1]) as usize;
        let (sum, count) = reference::square_sum(&left[range.clone()]);
        assert_eq!((sums[i].is_nan(), bad[i]), (sum.is_nan(), count), "block {i}");
        assert!(
            sum.is_nan() || sums[i].to_bits() == sum.to_bits(),
            "block {i}: {} and {sum}",
            sums[i]
        );
        let expected = reference::dot(&right[range.clone()], &right[range.clone()]);
        assert_eq!(dots[i].to_bits(), expected.to_bits(), "block {i}");
        // The same number as the host's own sum, up to its other order.
        let host = lockstep_kernels::sums::dot(&right[range.clone()], &right[range]);
        assert!((dots[i] - host).abs() <= host.abs() * 1e-12, "{} and {host}", dots[i]);
        // Alone in its grid.
        let mut alone = [0.0f64];
        // SAFETY: as above.
        unsafe {
            kernels
                .dots(
                    null_mut(),
                    address(&right),
                    address(&right),
                    address(&table[2 * i..]),
                    1,
                    address_mut(&mut alone),
                )
                .unwrap();
        }
        assert_eq!(alone[0].to_bits(), dots[i].to_bits(), "block {i} alone");
    }
}

#[test]
fn a_block_has_the_hash_that_the_host_gives_it() {
    let (kernels, mut random) = (kernels(), seeded());
    let (table, length) = cut(&mut random);
    let blocks = table.len() / 2;
    let values = values(&mut random, length);
    let mut hashes = vec![1u64; blocks];
    // SAFETY: as in the first test.
    unsafe {
        kernels
            .hashes(
                null_mut(),
                address(&values),
                address(&table),
                blocks,
                address_mut(&mut hashes),
            )
            .unwrap();
    }
    for i in 0..blocks {
        let block = &values[table[2 * i] as usize..(table[2 * i] + table[2 * i + 1]) as usize];
        assert_eq!(hashes[i], lockstep_kernels::sums::block_hash(block), "block {i}");
        assert_eq!(hashes[i], reference::block_hash(block), "block {i}");
    }
}

#[test]
fn rounding_is_to_the_nearest_ties_to_even_and_keeps_nan() {
    let (kernels, mut random) = (kernels(), seeded());
    let mut all: Vec<f32> = (0..u32::MAX).step_by(65_521).map(f32::from_bits).collect();
    all.extend(values(&mut random, 10_000));
    // Ties, one above and one below, for both parities.
    all.extend([0x3f80_8000u32, 0x3f81_8000, 0x3f80_8001, 0x3f81_7fff, 0x7f7f_ffff].map(f32::from_bits));
    let mut out = vec![0u16; all.len()];
    // SAFETY: as in the first test.
    unsafe {
        kernels
            .round_to_bf16(null_mut(), address_mut(&mut out), address(&all), all.len())
            .unwrap();
    }
    for (value, out) in all.iter().zip(out) {
        assert_eq!(out, reference::round_to_bf16(*value), "{:#x}", value.to_bits());
        let host = bf16::from_f32(*value);
        assert!(
            out == host.to_bits() || value.is_nan() && bf16::from_bits(out).is_nan(),
            "{value}"
        );
    }
}

#[test]
fn a_driver_says_what_a_device_is_and_what_it_refuses() {
    let driver = driver();
    assert_eq!(driver.version(), 13000);
    let facts = driver.facts(0).unwrap();
    assert_eq!(
        (facts.name.as_str(), facts.capability, facts.multiprocessors),
        ("a GPU made of C++", (8, 9), 3)
    );
    assert!(matches!(driver.facts(1), Err(KernelError::Driver { code: 101, .. })));
    let error = driver.module(b"nothing").err().unwrap().to_string();
    assert!(
        error.contains("cuModuleLoadData") && error.contains("image is invalid"),
        "{error}"
    );
    let module = driver.module(b"kernels").unwrap();
    let unknown = Function {
        name: "no_such_kernel",
        arguments: 0,
    };
    let error = module.kernel(unknown).err().unwrap().to_string();
    assert!(
        error.contains("no_such_kernel") && error.contains("not found"),
        "{error}"
    );
    let kernel = module
        .kernel(lockstep_gpu_kernels::sources::TREE_ADD.functions[0])
        .unwrap();
    // SAFETY: too few arguments are refused before anything is launched.
    let error = unsafe { kernel.launch(1, null_mut(), &[0, 0]) }
        .unwrap_err()
        .to_string();
    assert!(error.contains("takes 4 arguments, not 2"), "{error}");
    // SAFETY: as above: more blocks than a launch can have.
    assert!(unsafe { kernel.launch(usize::MAX, null_mut(), &[0; 4]) }.is_err());
}

#[test]
fn a_library_that_is_not_there_or_is_another_is_a_typed_error() {
    let error = Driver::load_from(Path::new("no/such/libcuda.so.1")).err().unwrap();
    assert!(matches!(error, KernelError::NoLibrary { .. }), "{error}");
    assert!(error.to_string().contains("libcuda.so.1"), "{error}");
    let error = Driver::load_from(Path::new("libm.so.6")).err().unwrap();
    assert!(
        matches!(error, KernelError::NoFunction { function: "cuInit", .. }),
        "{error}"
    );
}

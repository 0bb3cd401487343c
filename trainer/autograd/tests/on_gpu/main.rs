//! What only a GPU can show of the shim: libtorch's own guard, allocator and autograd thread under the functions that other
//! tests run over a recording guard, and our kernels on the hardware. Ignored where tests usually run; on a machine with a
//! GPU: `cargo test --release -p lockstep-autograd --test on_gpu -- --ignored --nocapture`, with LD_LIBRARY_PATH at the CUDA
//! build's `torch/lib` where the binary was built for the CPU.
#![allow(clippy::unwrap_used, missing_docs)]

mod kernels;
mod memory;
mod streams;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use lockstep_autograd::cuda::{CudaLibraries, open_libraries};
use lockstep_autograd::device::Cuda;
use lockstep_autograd::device::settings::{Attention, Products, Settings};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// GPU 0, for one test at a time: they count bytes and fill its memory.
fn gpu() -> (Arc<Cuda>, MutexGuard<'static, ()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    static OPENED: OnceLock<Arc<Cuda>> = OnceLock::new();
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cuda = OPENED.get_or_init(|| {
        assert_eq!(
            *open_libraries(),
            CudaLibraries::Loaded,
            "set LD_LIBRARY_PATH to the CUDA build's torch/lib"
        );
        let settings = Settings {
            products: Products::Cublas,
            attention: Attention::MemoryEfficient,
        };
        settings.apply().unwrap();
        Cuda::open(0).unwrap()
    });
    cuda.use_on_this_thread().unwrap();
    (Arc::clone(cuda), alone)
}

fn seeded() -> StdRng {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

/// Ordinary, subnormal, zero of both signs, huge: what flushing to zero or a contraction would change.
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

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

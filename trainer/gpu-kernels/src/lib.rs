//! GPU kernels that are compiled when a run starts, without nvcc and without CUDA at build or link time.
//!
//! What lives here:
//! - [`sources`]: the kernels' source (`kernels/*.cu`), and what each takes. The same source compiles as C++, which is how
//!   its bits are tested without a GPU.
//! - [`nvrtc`]: NVIDIA's run-time compiler, opened at run time.
//! - [`driver`]: CUDA's driver, opened at run time: modules and launches on a stream.
//! - [`kernels`]: the kernels, compiled and loaded, with the arguments that each takes.
//! - [`reference`](mod@reference): the same in slow, obvious Rust.
//!
//! Data flows: source → NVRTC → machine code for the device's architecture → module → launches on libtorch's streams, over
//! addresses of device memory.

pub mod driver;
mod error;
pub mod kernels;
mod library;
pub mod nvrtc;
pub mod reference;
pub mod sources;

pub use driver::{DeviceFacts, Driver};
pub use error::KernelError;
pub use kernels::Kernels;
pub use nvrtc::{Architecture, Nvrtc};
pub use sources::{Function, SOURCES, Source};

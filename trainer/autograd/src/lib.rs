//! Gradient slots, gradient-ready hooks, custom functions and tensors over foreign memory, for tch.
//!
//! What lives here: the C++ that training links (`shim.cpp`, `device.cpp`) and its safe Rust face.
//! - [`set_gradient_slot`] makes a float32 view of the flat gradient buffer the `.grad` of a leaf: gradients accumulate
//!   there in place ([`hooks`]).
//! - [`on_gradient_ready`] calls a closure when a leaf's gradient has been accumulated, in backward order ([`hooks`]).
//! - [`custom`] makes tensors the outputs of a function whose backward is a Rust closure ([`function`]).
//! - [`FlatBuffer`] is memory that Rust owns, seen as tensors of any kind and as slices ([`memory`]); [`DeviceBuffer`] is
//!   memory of a device, seen as tensors ([`device_buffer`]).
//! - [`cuda`] opens libtorch's CUDA libraries; [`device`] is a GPU's streams, events, statistics and settings.
//! - [`TensorBytes`] counts what tensors take of the host's memory ([`tensor_bytes`]).
//! - [`take_subnormals_for_zero`] and [`keep_freed_memory`] are settings of a thread and of the process, for speed.
//!
//! Data flows: flat buffers → leaves and slots → forward (custom functions record nodes) → `backward()` → closures
//! write into the slots → hooks tell the buckets.

pub mod cuda;
pub mod device;
mod device_buffer;
mod errors;
mod function;
mod hooks;
mod memory;
mod shim;
mod tensor_bytes;

pub use device_buffer::{DeviceBuffer, memory_of};
pub use errors::AutogradError;
pub use function::{custom, run_backward};
pub use hooks::{accumulate_in_float32, on_gradient_ready, set_gradient_slot};
pub use memory::{Element, FlatBuffer, HeapMemory, Memory, elements, elements_mut, keep_freed_memory};
pub use shim::{library_versions, take_subnormals_for_zero};
pub use tensor_bytes::TensorBytes;

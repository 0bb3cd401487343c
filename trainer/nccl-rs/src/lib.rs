//! Safe bindings of NCCL 2.29: collectives and point-to-point operations between GPUs. The library is opened at run time,
//! so that a program with this crate links and starts where there is no CUDA.
//!
//! Way of a call: [`Nccl::load`] opens the library and resolves every function once → one rank makes a [`UniqueId`] and
//! carries it to the others → [`Communicator::init`] with a [`Config`] → operations on [`DevicePointer`]s and
//! [`Stream`]s are asked for inside of [`Communicator::group`] → [`Communicator::async_state`] says when they are on the
//! stream → [`Communicator::finalize`] and [`Communicator::destroy`], or [`Communicator::abort`].
//!
//! Rules that hold throughout (from NCCL's src/group.cc, init.cc and enqueue.cc of 2.29.7):
//! 1. Non-blocking calls return [`State::InProgress`] as a normal value. Until it has turned into [`State::Ready`] nothing
//!    of the group is on the stream, and every other call is refused here with [`Error::InProgress`].
//! 2. After an error of a communicator only [`Communicator::abort`] is left; after that, or after `destroy`, each call is
//!    [`Error::Gone`]. What the library would answer with damage is refused before it is called.
//! 3. A communicator is used by one thread at a time, and all of a process' communicators of one device by the same.
//! 4. Memory is given as [`DevicePointer`], whose constructor is the one place where the caller promises how long it lives
//!    and who touches it.
//!
//! ```no_run
//! use nccl_rs::{Communicator, Config, DataType, DevicePointer, Nccl, Stream, UniqueId};
//!
//! # fn example(id: &UniqueId, memory: *mut std::ffi::c_void, stream: Stream) -> Result<(), nccl_rs::Error> {
//! let nccl = Nccl::load()?;
//! let mut communicator = Communicator::init(&nccl, 4, id, 2, &Config::new().non_blocking())?;
//! communicator.wait_while(|| true)?;
//! // SAFETY: 4 MiB of device memory that outlive the communicator; only `stream` works on them.
//! let parameters = unsafe { DevicePointer::new(memory, 4 << 20) };
//! communicator.group(|group| group.broadcast(parameters, parameters, 4 << 20, DataType::Uint8, 0, stream))?;
//! communicator.wait_while(|| true)?; // Now an event on the stream covers the broadcast.
//! # Ok(()) }
//! ```

mod api;
mod buffer;
mod communicator;
mod config;
mod error;
mod facts;
mod group;
mod id;
mod library;
mod memory;
mod operations;
pub mod raw;
mod version;

pub use buffer::{DataType, DevicePointer, MemoryStatistic, Reduction, Stream};
pub use communicator::Communicator;
pub use config::{BlockPolicy, Config};
pub use error::{Code, Error};
pub use facts::Registration;
pub use group::Group;
pub use id::UniqueId;
pub use library::Nccl;
pub use memory::DeviceMemory;
pub use version::Version;

/// What a call has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Through: what was enqueued is on its stream (and may still run there).
    Ready,
    /// Under way; poll [`Communicator::async_state`].
    InProgress,
}

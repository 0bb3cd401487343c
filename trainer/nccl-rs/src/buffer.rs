//! What operations work on: device memory, streams, types of elements and kinds of reduction.

use std::ffi::{c_int, c_void};
use std::ops::Range;

use crate::error::Error;
use crate::raw::StreamHandle;

/// A range of device memory: an address and a length in bytes. Its one unsafe constructor carries the whole contract,
/// so that the operations on it are ordinary calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePointer {
    address: *mut c_void,
    bytes: usize,
}

// SAFETY: the address is only handed to the library, never read here; who may touch the memory when is the contract of
// `DevicePointer::new`, which speaks of streams and not of threads.
unsafe impl Send for DevicePointer {}
// SAFETY: as above.
unsafe impl Sync for DevicePointer {}

impl DevicePointer {
    /// The `bytes` bytes at `address`.
    ///
    /// ```no_run
    /// # let address = std::ptr::null_mut();
    /// // SAFETY: an allocation of 4096 bytes that lives until the communicator is gone.
    /// let whole = unsafe { nccl_rs::DevicePointer::new(address, 4096) };
    /// let half = whole.slice(2048..4096);
    /// ```
    ///
    /// # Safety
    /// It is memory of the communicator's device (of this process, for a test double), `bytes` bytes long. From the call
    /// that is given it until that operation's end on its stream – or until the communicator's abort has returned – the
    /// memory stays allocated, nothing writes what the operation reads, and nothing reads or writes what it writes,
    /// except in the order of the stream.
    pub const unsafe fn new(address: *mut c_void, bytes: usize) -> DevicePointer {
        DevicePointer { address, bytes }
    }

    /// The address.
    pub const fn address(self) -> *mut c_void {
        self.address
    }

    /// Length in bytes.
    pub const fn bytes(self) -> usize {
        self.bytes
    }

    /// The part from byte `range.start` to before byte `range.end`; `None` if it is not inside.
    ///
    /// ```
    /// # let mut memory = [0u8; 64];
    /// // SAFETY: no operation is ever given it here.
    /// let whole = unsafe { nccl_rs::DevicePointer::new(memory.as_mut_ptr().cast(), 64) };
    /// assert_eq!(whole.slice(16..64).map(|part| part.bytes()), Some(48));
    /// assert_eq!(whole.slice(16..65), None);
    /// ```
    pub fn slice(self, range: Range<usize>) -> Option<DevicePointer> {
        (range.start <= range.end && range.end <= self.bytes).then(|| DevicePointer {
            address: self.address.wrapping_byte_add(range.start),
            bytes: range.end - range.start,
        })
    }

    /// Refuses an operation that needs more than there is.
    pub(crate) fn check(self, call: &'static str, which: &'static str, needs: usize) -> Result<*mut c_void, Error> {
        if needs <= self.bytes {
            Ok(self.address)
        } else {
            Err(Error::BufferTooSmall {
                call,
                which,
                has: self.bytes,
                needs,
            })
        }
    }
}

/// A stream of the communicator's device (`cudaStream_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(StreamHandle);

// SAFETY: a handle that only CUDA looks behind; its calls on streams are thread-safe.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// The stream with this handle.
    ///
    /// ```no_run
    /// # let handle = std::ptr::null_mut();
    /// // SAFETY: from a pool of streams that lives as long as the process.
    /// let stream = unsafe { nccl_rs::Stream::from_raw(handle) };
    /// ```
    ///
    /// # Safety
    /// It is a stream of the communicator's device (null: its default stream) and lives as long as anything is on it.
    pub const unsafe fn from_raw(handle: StreamHandle) -> Stream {
        Stream(handle)
    }

    /// Its handle.
    pub const fn handle(self) -> StreamHandle {
        self.0
    }
}

/// The type of an operation's elements (`ncclDataType_t`). To move bytes, whatever they are, take [`DataType::Uint8`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum DataType {
    /// 8-bit signed.
    Int8 = 0,
    /// 8-bit unsigned: bytes.
    Uint8 = 1,
    /// 32-bit signed.
    Int32 = 2,
    /// 32-bit unsigned.
    Uint32 = 3,
    /// 64-bit signed.
    Int64 = 4,
    /// 64-bit unsigned.
    Uint64 = 5,
    /// IEEE half.
    Float16 = 6,
    /// IEEE single.
    Float32 = 7,
    /// IEEE double.
    Float64 = 8,
    /// Brain float.
    Bfloat16 = 9,
    /// 8-bit float with 4 bits of exponent.
    Float8E4M3 = 10,
    /// 8-bit float with 5 bits of exponent.
    Float8E5M2 = 11,
}

impl DataType {
    /// Every type, in the order of their numbers.
    pub const ALL: [DataType; 12] = [
        DataType::Int8,
        DataType::Uint8,
        DataType::Int32,
        DataType::Uint32,
        DataType::Int64,
        DataType::Uint64,
        DataType::Float16,
        DataType::Float32,
        DataType::Float64,
        DataType::Bfloat16,
        DataType::Float8E4M3,
        DataType::Float8E5M2,
    ];

    /// Bytes of one element.
    ///
    /// ```
    /// assert_eq!(nccl_rs::DataType::Bfloat16.bytes(), 2);
    /// ```
    pub const fn bytes(self) -> usize {
        match self {
            DataType::Int8 | DataType::Uint8 | DataType::Float8E4M3 | DataType::Float8E5M2 => 1,
            DataType::Float16 | DataType::Bfloat16 => 2,
            DataType::Int32 | DataType::Uint32 | DataType::Float32 => 4,
            DataType::Int64 | DataType::Uint64 | DataType::Float64 => 8,
        }
    }

    /// The type with this number of `ncclDataType_t`.
    ///
    /// ```
    /// assert_eq!(nccl_rs::DataType::from_number(9), Some(nccl_rs::DataType::Bfloat16));
    /// assert_eq!(nccl_rs::DataType::from_number(12), None);
    /// ```
    pub fn from_number(number: c_int) -> Option<DataType> {
        DataType::ALL.into_iter().find(|kind| *kind as c_int == number)
    }
}

/// How values of several ranks become one (`ncclRedOp_t`). The order of the additions is the library's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Reduction {
    /// Sum.
    Sum = 0,
    /// Product.
    Product = 1,
    /// Largest.
    Max = 2,
    /// Smallest.
    Min = 3,
    /// Sum divided by the number of ranks.
    Average = 4,
}

impl Reduction {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Reduction; 5] = [
        Reduction::Sum,
        Reduction::Product,
        Reduction::Max,
        Reduction::Min,
        Reduction::Average,
    ];

    /// The kind with this number of `ncclRedOp_t`.
    ///
    /// ```
    /// assert_eq!(nccl_rs::Reduction::from_number(2), Some(nccl_rs::Reduction::Max));
    /// ```
    pub fn from_number(number: c_int) -> Option<Reduction> {
        Reduction::ALL.into_iter().find(|kind| *kind as c_int == number)
    }
}

/// A value of `ncclCommMemStat_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum MemoryStatistic {
    /// Bytes that a suspension would free.
    Suspendable = 0,
    /// 1 while suspended, else 0.
    Suspended = 1,
    /// Bytes that stay in a suspension.
    Persistent = 2,
    /// All bytes of device memory that NCCL holds for the communicator.
    Total = 3,
}

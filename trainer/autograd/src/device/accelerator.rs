//! What NCCL's backend needs of the device: memory, pinned words, additions and copies on a stream.
//!
//! Everything with a stream is enqueued there and returns. Ranges come as addresses, whose maker has promised the memory
//! until the work has ended on its stream; here they become tensors for the length of a call.

use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError};

use half::bf16;
use lockstep_collective::{Accelerator, CollectiveError, DeviceMemory, Operand, Pinned, Stream};
use nccl_rs::DevicePointer;
use tch::{Device, Kind, Tensor};

use super::collectives::{failed, name_of};
use super::{CollectiveDevice, DeviceError, StreamName, add_out};
use crate::memory::view;
use crate::{DeviceBuffer, Element, Memory};

/// Elements that are rounded at once.
const ROUNDED_AT_ONCE: usize = 1 << 20;

/// Words in a pinned tensor, which lives as long as they do.
struct PinnedWords {
    _tensor: Tensor,
    first: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the tensor is never touched again, it only keeps the memory; the words are atomic.
unsafe impl Send for PinnedWords {}
// SAFETY: as above.
unsafe impl Sync for PinnedWords {}

impl Pinned for PinnedWords {
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: so many initialised words, aligned, for as long as the tensor lives; the host has only this view of them,
        // and the device writes them when nobody reads (the contract of `Pinned`).
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

/// A range as a tensor.
fn tensor<T: Element>(range: DevicePointer, device: Device) -> Result<Tensor, DeviceError> {
    let memory: Arc<dyn Memory> = Arc::new(DeviceMemory::new(range, Arc::new(())));
    let count = range.bytes() / size_of::<T>();
    view::<T>(&memory, device, 0, &[count as i64]).map_err(|error| DeviceError::Shape(error.to_string()))
}

/// Bytes of pinned words, from word `first` on, as a tensor.
fn bytes_of(words: &Arc<dyn Pinned>, first: usize, bytes: usize) -> Result<Tensor, DeviceError> {
    let part = words.words().get(first..).filter(|part| part.len() * 8 >= bytes);
    let part = part.ok_or_else(|| {
        DeviceError::Shape(format!(
            "{bytes} bytes from word {first} on do not lie in {} pinned words",
            words.words().len()
        ))
    })?;
    let address = part.as_ptr().cast_mut().cast();
    // SAFETY: so many bytes of words that are kept below; who touches them when is the contract of `Pinned`.
    let range = unsafe { DevicePointer::new(address, bytes) };
    let memory: Arc<dyn Memory> = Arc::new(DeviceMemory::new(range, Arc::new(Arc::clone(words))));
    view::<u8>(&memory, Device::Cpu, 0, &[bytes as i64]).map_err(|error| DeviceError::Shape(error.to_string()))
}

impl CollectiveDevice {
    /// sum = left + right, then each sum rounded to bf16 in place, part by part through memory that is made once.
    fn add_rounded(
        &self,
        sum: &mut Tensor,
        left: &Tensor,
        right: &Tensor,
        round: bool,
        stream: StreamName,
    ) -> Result<(), DeviceError> {
        add_out(sum, left, right)?;
        if !round {
            return Ok(());
        }
        let of = |error: tch::TchError| DeviceError::of_tch("rounding", &error);
        let mut rounding = self.rounding.lock().unwrap_or_else(PoisonError::into_inner);
        let rounding = &mut rounding[usize::from(stream == StreamName::Communication)];
        let through = match rounding {
            Some(tensor) => &*tensor,
            None => {
                let made = Tensor::f_empty([ROUNDED_AT_ONCE as i64], (Kind::BFloat16, sum.device())).map_err(of)?;
                &*rounding.insert(made)
            }
        };
        for mut part in sum.f_split(ROUNDED_AT_ONCE as i64, 0).map_err(of)? {
            let mut halves = through.f_narrow(0, 0, part.numel() as i64).map_err(of)?;
            halves.f_copy_(&part).map_err(of)?;
            part.f_copy_(&halves).map_err(of)?;
        }
        Ok(())
    }

    fn try_add(
        &self,
        sum: DevicePointer,
        (left, right): (Operand, Operand),
        round: bool,
        stream: StreamName,
    ) -> Result<(), DeviceError> {
        let device = self.cuda().device();
        let operand = |operand: Operand| match operand {
            Operand::Float32(range) => tensor::<f32>(range, device),
            Operand::Bf16(range) => tensor::<bf16>(range, device),
        };
        let (mut sum, left, right) = (tensor::<f32>(sum, device)?, operand(left)?, operand(right)?);
        // A sum does not depend on the order of its two operands, and libtorch's is made for a float32 left one.
        let (left, right) = match left.kind() {
            Kind::Float => (left, right),
            _ => (right, left),
        };
        if left.kind() == Kind::BFloat16 {
            // Both bf16: the sum is made in float32.
            return self.cuda().on_stream(stream, || {
                sum.f_copy_(&left).map_err(|error| DeviceError::of_tch("add", &error))?;
                let widened = sum.shallow_clone();
                self.add_rounded(&mut sum, &widened, &right, round, stream)
            })?;
        }
        self.cuda()
            .on_stream(stream, || self.add_rounded(&mut sum, &left, &right, round, stream))?
    }

    fn try_narrow(&self, halves: DevicePointer, floats: DevicePointer, stream: StreamName) -> Result<(), DeviceError> {
        let device = self.cuda().device();
        let (mut halves, floats) = (tensor::<bf16>(halves, device)?, tensor::<f32>(floats, device)?);
        self.cuda().on_stream(stream, || {
            halves
                .f_copy_(&floats)
                .map_err(|error| DeviceError::of_tch("narrow", &error))
        })?
    }

    fn try_allocate(&self, bytes: usize) -> Result<DeviceMemory, DeviceError> {
        let buffer = DeviceBuffer::zeros(bytes, self.cuda().device())?;
        // Once, at the start: whoever writes it next may do so on any stream.
        self.cuda().synchronize()?;
        let address = buffer
            .address(0, bytes)
            .map_err(|error| DeviceError::Shape(error.to_string()))?;
        // SAFETY: memory of this device, kept by the buffer; who touches it when is ordered by streams.
        let pointer = unsafe { DevicePointer::new(address.as_ptr().cast(), bytes) };
        Ok(DeviceMemory::new(pointer, Arc::new(buffer)))
    }

    fn try_pinned(&self, words: usize) -> Result<Arc<dyn Pinned>, DeviceError> {
        let tensor = self.cuda().pinned(&[words as i64], Kind::Int64)?;
        let first = NonNull::new(tensor.data_ptr().cast()).unwrap_or(NonNull::dangling());
        let made: Arc<dyn Pinned> = Arc::new(PinnedWords {
            _tensor: tensor,
            first,
            count: words,
        });
        let mut kept = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(Arc::clone(&made));
        Ok(made)
    }
}

impl Accelerator for CollectiveDevice {
    fn allocate(&self, name: &str, bytes: usize) -> Result<DeviceMemory, CollectiveError> {
        self.try_allocate(bytes).map_err(|error| CollectiveError::Library {
            library: "the device",
            call: "allocate",
            why: format!("{bytes} bytes for {name}: {error}"),
        })
    }

    fn allocate_pinned(&self, words: usize) -> Result<Arc<dyn Pinned>, CollectiveError> {
        self.try_pinned(words).map_err(failed("allocate_pinned"))
    }

    fn native(&self, stream: Stream) -> nccl_rs::Stream {
        self.native_streams()[usize::from(stream == Stream::Communication)]
    }

    fn add(
        &self,
        sum: DevicePointer,
        left: Operand,
        right: Operand,
        round: bool,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        self.try_add(sum, (left, right), round, name_of(stream))
            .map_err(failed("add"))
    }

    fn narrow(&self, halves: DevicePointer, floats: DevicePointer, stream: Stream) -> Result<(), CollectiveError> {
        self.try_narrow(halves, floats, name_of(stream))
            .map_err(failed("narrow"))
    }

    fn copy_to_host(
        &self,
        from: DevicePointer,
        to: &Arc<dyn Pinned>,
        first: usize,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        let copied = || {
            let mut to = bytes_of(to, first, from.bytes())?;
            let from = tensor::<u8>(from, self.cuda().device())?;
            self.cuda().copy(name_of(stream), &mut to, &from)
        };
        copied().map_err(failed("copy_to_host"))
    }

    fn copy_to_device(
        &self,
        from: &Arc<dyn Pinned>,
        first: usize,
        to: DevicePointer,
        stream: Stream,
    ) -> Result<(), CollectiveError> {
        let copied = || {
            let from = bytes_of(from, first, to.bytes())?;
            let mut to = tensor::<u8>(to, self.cuda().device())?;
            self.cuda().copy(name_of(stream), &mut to, &from)
        };
        copied().map_err(failed("copy_to_device"))
    }

    fn is_done(&self, recorded: &lockstep_collective::Recorded) -> Result<bool, CollectiveError> {
        CollectiveDevice::is_done(self, recorded).map_err(failed("is_done"))
    }
}

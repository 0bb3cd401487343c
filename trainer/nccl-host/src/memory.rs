//! Mapped memory: a rank's own writable mappings and its peers' read-only ones.
//!
//! [`HostMemory`] is made either privately (`anonymous`, one rank alone) or over a sealed memfd whose descriptor goes to
//! the peers, who make a [`PeerMemory`] of it. Views are plain slices; which rank may write when is the business of the
//! collectives' write-after-read rules, and a peer that breaks them can spoil numbers but never memory safety: sizes are
//! sealed, its mapping stays readable after its death, and every bit pattern is a valid `u8`, `u64` and `f32`.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::error::Error;
use crate::stream;

/// Mappings end on this border.
const PAGE: usize = 4096;

/// What must be sealed before a peer trusts a descriptor: nobody can change its size, and nobody but its maker can write.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::FUTURE_WRITE)
    .union(SealFlags::SEAL);

/// A mapping that is unmapped on drop.
struct Mapping {
    start: NonNull<u8>,
    mapped: usize,
}

// SAFETY: a mapping belongs to the process, not to the thread that made it, and this value is its only owner.
unsafe impl Send for Mapping {}
// SAFETY: through a shared reference the safe functions only read; writers hold `&mut` or answer for their own pointer.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and length are those that mmap returned, and no view outlives the owner of the mapping.
        // An error here would mean a wrong length; there is nothing left to do about it.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

impl Mapping {
    /// A view of elements `range`, of which `len` bytes of the mapping are in use.
    fn view<T: Plain>(&self, len: usize, range: Range<usize>) -> &[T] {
        check::<T>(len, &range);
        // SAFETY: the range was checked against the mapping's length, the mapping is page aligned, it lives as long as
        // `self`, and every bit pattern is a valid T.
        unsafe {
            let first = self.start.as_ptr().cast::<T>().add(range.start);
            std::slice::from_raw_parts(first, range.len())
        }
    }
}

/// Types of which every bit pattern is valid.
trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u64 {}
impl Plain for f32 {}

/// Like slice indexing: a range that is out of bounds is a defect of the caller.
#[track_caller]
fn check<T>(len: usize, range: &Range<usize>) {
    let end = len / size_of::<T>();
    assert!(
        range.start <= range.end && range.end <= end,
        "the range {}..{} is not inside a buffer of {end} elements",
        range.start,
        range.end
    );
}

/// Rounded up to whole pages, at least one.
fn pages(bytes: usize) -> Result<usize, Error> {
    bytes
        .max(1)
        .checked_next_multiple_of(PAGE)
        .filter(|mapped| *mapped <= isize::MAX as usize)
        .ok_or(Error::TooLarge { bytes })
}

/// Bytes that the machine can give without pushing anybody out.
fn available_memory() -> Result<u64, Error> {
    let failed = |source| Error::System {
        call: "reading /proc/meminfo",
        source,
    };
    let report = std::fs::read_to_string("/proc/meminfo").map_err(failed)?;
    report
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        })
        .map(|kib| kib.saturating_mul(1024))
        .ok_or_else(|| failed(std::io::Error::other("it has no line MemAvailable")))
}

/// This rank's own memory: page aligned, zeroed when made, writable, at one address for its whole life.
pub struct HostMemory {
    mapping: Arc<Mapping>,
    len: usize,
}

/// Keeps a [`HostMemory`]'s mapping alive: for whoever holds its address (tensors over it) longer than the communicator.
#[derive(Clone)]
pub struct MemoryHold {
    mapping: Arc<Mapping>,
    len: usize,
}

impl MemoryHold {
    /// The first byte; as [`HostMemory::ptr`].
    pub fn ptr(&self) -> NonNull<u8> {
        self.mapping.start
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl HostMemory {
    /// Memory of this process alone, `bytes` long.
    ///
    /// # Errors
    /// The system has no memory to give.
    pub fn anonymous(bytes: usize) -> Result<HostMemory, Error> {
        let mapped = pages(bytes)?;
        // SAFETY: no address is asked for, so no existing mapping is touched.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        let mapping = Arc::new(own(start, mapped)?);
        // SAFETY: advice on a mapping that was just made. Advice may be refused; that costs speed only.
        let _ = unsafe { rustix::mm::madvise(mapping.start.as_ptr().cast(), mapped, Advice::LinuxHugepage) };
        Ok(HostMemory { mapping, len: bytes })
    }

    /// As [`HostMemory::anonymous`], for memory of which only parts will ever be touched: small pages, so that the rest costs
    /// nothing.
    pub(crate) fn sparse(bytes: usize) -> Result<HostMemory, Error> {
        let memory = HostMemory::anonymous(bytes)?;
        // SAFETY: advice on a mapping that was just made. Advice may be refused; that costs memory only.
        let _ = unsafe {
            rustix::mm::madvise(
                memory.mapping.start.as_ptr().cast(),
                memory.mapping.mapped,
                Advice::LinuxNoHugepage,
            )
        };
        Ok(memory)
    }

    /// Memory that peers can map: the descriptor is sealed, and is not needed here once it was passed on.
    pub(crate) fn shared(name: &str, bytes: usize) -> Result<(HostMemory, OwnedFd), Error> {
        let mapped = pages(bytes)?;
        // The kernel would promise the pages, populate them, and kill somebody when they run out.
        let available = available_memory()?;
        if mapped as u64 > available {
            return Err(Error::NoMemory { bytes, available });
        }
        let failed = |call: &'static str| move |source: rustix::io::Errno| Error::system(call, source);
        let descriptor = rustix::fs::memfd_create(
            format!("lockstep-{name}"),
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )
        .map_err(failed("memfd_create"))?;
        rustix::fs::ftruncate(&descriptor, mapped as u64).map_err(failed("ftruncate"))?;
        // SAFETY: no address is asked for, so no existing mapping is touched.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                &descriptor,
                0,
            )
        };
        let mapping = Arc::new(own(start, mapped)?);
        rustix::fs::fcntl_add_seals(&descriptor, SEALS).map_err(failed("fcntl(F_ADD_SEALS)"))?;
        Ok((HostMemory { mapping, len: bytes }, descriptor))
    }

    /// A handle that keeps the mapping where it is, even after this value is gone.
    pub fn hold(&self) -> MemoryHold {
        MemoryHold {
            mapping: Arc::clone(&self.mapping),
            len: self.len,
        }
    }

    /// The first byte. Whoever writes through it answers for the collectives' write-after-read rules.
    pub fn ptr(&self) -> NonNull<u8> {
        self.mapping.start
    }

    /// Length in bytes, as it was asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes `range`. Panics, like indexing, when they are not inside.
    #[track_caller]
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.mapping.view(self.len, range)
    }

    /// The float32 elements `range`. Panics, like indexing, when they are not inside.
    #[track_caller]
    pub fn floats(&self, range: Range<usize>) -> &[f32] {
        self.mapping.view(self.len, range)
    }

    /// The bytes `range`, to write. Panics, like indexing, when they are not inside.
    #[track_caller]
    pub fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        self.view_mut(range)
    }

    /// The float32 elements `range`, to write. Panics, like indexing, when they are not inside.
    #[track_caller]
    pub fn floats_mut(&mut self, range: Range<usize>) -> &mut [f32] {
        self.view_mut(range)
    }

    /// The 64-bit words `range`. Panics, like indexing, when they are not inside.
    #[track_caller]
    pub fn words(&self, range: Range<usize>) -> &[u64] {
        self.mapping.view(self.len, range)
    }

    /// The 64-bit words `range`, to write. Panics, like indexing, when they are not inside.
    #[track_caller]
    pub fn words_mut(&mut self, range: Range<usize>) -> &mut [u64] {
        self.view_mut(range)
    }

    /// Copies `source` to the bytes from `start` on. What is too long to stay in a cache goes past the caches, which spares
    /// reading what is overwritten. Panics, like indexing, when the copy does not fit.
    #[track_caller]
    pub fn copy_in(&mut self, start: usize, source: &[u8]) {
        stream::copy(self.bytes_mut(start..start + source.len()), source);
    }

    #[track_caller]
    fn view_mut<T: Plain>(&mut self, range: Range<usize>) -> &mut [T] {
        check::<T>(self.len, &range);
        // SAFETY: the range was checked against the mapping's length, the mapping is page aligned and lives as long as
        // `self`, every bit pattern is a valid T, and `&mut self` makes this the only view made by safe code.
        unsafe {
            let first = self.mapping.start.as_ptr().cast::<T>().add(range.start);
            std::slice::from_raw_parts_mut(first, range.len())
        }
    }
}

/// A peer's memory, read-only here: the kernel refuses a write, and the seals refuse a change of size.
pub struct PeerMemory {
    mapping: Mapping,
    len: usize,
}

impl PeerMemory {
    /// Maps what a peer has sent, after checking that it is `bytes` long and sealed: an unsealed descriptor could be
    /// shortened under a reader, who would die of SIGBUS.
    pub(crate) fn map(descriptor: BorrowedFd<'_>, bytes: usize, rank: u32) -> Result<PeerMemory, Error> {
        let mapped = pages(bytes)?;
        let refused = |why: String| Error::Refused { rank: Some(rank), why };
        let seals = rustix::fs::fcntl_get_seals(descriptor)
            .map_err(|source| refused(format!("its memory cannot be sealed ({source})")))?;
        if !seals.contains(SEALS) {
            return Err(refused("its memory is not sealed against a change of size".into()));
        }
        let actual = rustix::fs::fstat(descriptor)
            .map_err(|source| Error::system("fstat", source))?
            .st_size;
        if u64::try_from(actual) != Ok(mapped as u64) {
            return Err(refused(format!(
                "its memory is {actual} bytes long where {mapped} were announced"
            )));
        }
        // SAFETY: no address is asked for, so no existing mapping is touched.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::POPULATE,
                descriptor.as_fd(),
                0,
            )
        };
        Ok(PeerMemory {
            mapping: own(start, mapped)?,
            len: bytes,
        })
    }

    /// The first byte, to read.
    pub(crate) fn ptr(&self) -> NonNull<u8> {
        self.mapping.start
    }

    /// The bytes `range`. Panics, like indexing, when they are not inside.
    #[track_caller]
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.mapping.view(self.len, range)
    }

    /// The float32 elements `range`. Panics, like indexing, when they are not inside.
    #[track_caller]
    pub fn floats(&self, range: Range<usize>) -> &[f32] {
        self.mapping.view(self.len, range)
    }

    /// The 64-bit words `range`. Panics, like indexing, when they are not inside.
    #[track_caller]
    pub fn words(&self, range: Range<usize>) -> &[u64] {
        self.mapping.view(self.len, range)
    }
}

/// Takes what mmap returned.
fn own(start: rustix::io::Result<*mut std::ffi::c_void>, mapped: usize) -> Result<Mapping, Error> {
    let start = start.map_err(|source| Error::system("mmap", source))?;
    let start = NonNull::new(start.cast()).ok_or(Error::TooLarge { bytes: mapped })?;
    Ok(Mapping { start, mapped })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_seen_by_the_peer_as_it_is_written() {
        for bytes in [0, 1, 4095, 4096, 4097, 1 << 20] {
            let (mut own, descriptor) = HostMemory::shared("test", bytes).unwrap();
            let peer = PeerMemory::map(descriptor.as_fd(), bytes, 1).unwrap();
            drop(descriptor);
            assert_eq!((own.len(), own.ptr().as_ptr() as usize % PAGE), (bytes, 0));
            assert!(own.bytes(0..bytes).iter().all(|byte| *byte == 0));
            own.bytes_mut(0..bytes).fill(7);
            assert!(peer.bytes(0..bytes).iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn a_passed_descriptor_gives_no_way_to_write_or_to_resize() {
        let (_own, descriptor) = HostMemory::shared("test", 4096).unwrap();
        assert!(rustix::io::pwrite(&descriptor, &[1], 0).is_err());
        assert!(rustix::fs::ftruncate(&descriptor, 0).is_err());
        assert!(rustix::fs::ftruncate(&descriptor, 8192).is_err());
        // SAFETY: no address is asked for, so no existing mapping is touched.
        let writable = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(std::ptr::null_mut(), 4096, protection, MapFlags::SHARED, &descriptor, 0)
        };
        assert!(writable.is_err());
    }

    #[test]
    fn descriptors_that_could_be_shortened_under_a_reader_are_refused() {
        let unsealed = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&unsealed, 4096).unwrap();
        let refusal = PeerMemory::map(unsealed.as_fd(), 4096, 3).err().unwrap().to_string();
        assert!(
            refusal.contains("rank 3 was refused") && refusal.contains("not sealed"),
            "{refusal}"
        );

        let (_own, sealed) = HostMemory::shared("test", 4096).unwrap();
        let refusal = PeerMemory::map(sealed.as_fd(), 4097, 3).err().unwrap().to_string();
        assert!(
            refusal.contains("4096 bytes long where 8192 were announced"),
            "{refusal}"
        );

        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(PeerMemory::map(file.as_fd(), 4096, 3).is_err());
    }

    #[test]
    #[should_panic(expected = "the range 1..3 is not inside a buffer of 2 elements")]
    fn a_view_outside_the_buffer_panics_like_indexing() {
        HostMemory::anonymous(11).unwrap().floats(1..3);
    }

    #[test]
    fn more_than_the_machine_has_is_an_error_not_a_crash() {
        assert!(matches!(HostMemory::anonymous(usize::MAX), Err(Error::TooLarge { .. })));
        assert!(matches!(
            HostMemory::shared("test", 1 << 60),
            Err(Error::NoMemory { .. })
        ));
    }
}

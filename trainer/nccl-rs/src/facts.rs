//! What a communicator tells of itself, and memory that it is told of.

use std::ffi::{c_int, c_void};

use crate::buffer::{DevicePointer, MemoryStatistic};
use crate::communicator::Communicator;
use crate::error::Error;
use crate::raw::{CommHandle, ResultCode};

/// Memory that a communicator knows for zero-copy operations; give it back with [`Communicator::deregister`]. Otherwise
/// it ends with the communicator.
#[derive(Debug)]
#[must_use = "a registration that is forgotten stays until the communicator's end"]
pub struct Registration {
    owner: CommHandle,
    handle: *mut c_void,
}

// SAFETY: two handles that are only handed back to the library.
unsafe impl Send for Registration {}

impl Communicator {
    /// How many ranks there are (`ncclCommCount`).
    ///
    /// ```no_run
    /// # fn example(communicator: &mut nccl_rs::Communicator) -> Result<(), nccl_rs::Error> {
    /// println!("rank {} of {}, device {}", communicator.rank()?, communicator.count()?, communicator.device()?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What the life of the communicator does not allow.
    pub fn count(&mut self) -> Result<u32, Error> {
        self.number("ncclCommCount", self.nccl.api.count)
    }

    /// This rank's number (`ncclCommUserRank`).
    ///
    /// # Errors
    /// What the life of the communicator does not allow.
    pub fn rank(&mut self) -> Result<u32, Error> {
        self.number("ncclCommUserRank", self.nccl.api.user_rank)
    }

    /// Its CUDA device (`ncclCommCuDevice`).
    ///
    /// # Errors
    /// What the life of the communicator does not allow.
    pub fn device(&mut self) -> Result<u32, Error> {
        self.number("ncclCommCuDevice", self.nccl.api.device)
    }

    fn number(
        &mut self,
        call: &'static str,
        function: unsafe extern "C" fn(CommHandle, *mut c_int) -> ResultCode,
    ) -> Result<u32, Error> {
        self.check_ready(call)?;
        let mut number = 0;
        // SAFETY: the handle is live and ready; it writes one number.
        let answer = unsafe { function(self.handle, &raw mut number) };
        self.nccl.checked(call, answer)?;
        Ok(number.cast_unsigned())
    }

    /// What memory of the device NCCL holds for it (`ncclCommMemStats`), in bytes; no allocator of ours counts it.
    ///
    /// ```no_run
    /// # fn example(communicator: &mut nccl_rs::Communicator) -> Result<(), nccl_rs::Error> {
    /// let bytes = communicator.memory(nccl_rs::MemoryStatistic::Total)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What the life of the communicator does not allow.
    pub fn memory(&mut self, statistic: MemoryStatistic) -> Result<u64, Error> {
        const CALL: &str = "ncclCommMemStats";
        self.check_ready(CALL)?;
        let mut value = 0;
        // SAFETY: the handle is live and ready; it writes one number.
        let answer = unsafe { (self.nccl.api.mem_stats)(self.handle, statistic as c_int, &raw mut value) };
        self.nccl.checked(CALL, answer)?;
        Ok(value)
    }

    /// Makes memory known for zero-copy operations (`ncclCommRegister`).
    ///
    /// ```no_run
    /// # fn example(communicator: &mut nccl_rs::Communicator, buffer: nccl_rs::DevicePointer) -> Result<(), nccl_rs::Error> {
    /// let registration = communicator.register(buffer)?;
    /// communicator.deregister(registration)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What the life of the communicator does not allow, and what NCCL says.
    pub fn register(&mut self, buffer: DevicePointer) -> Result<Registration, Error> {
        const CALL: &str = "ncclCommRegister";
        self.check_ready(CALL)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the handle is live and ready; that the memory is good is the contract of the pointer.
        let answer =
            unsafe { (self.nccl.api.register)(self.handle, buffer.address(), buffer.bytes(), &raw mut handle) };
        self.nccl.checked(CALL, answer)?;
        Ok(Registration {
            owner: self.handle,
            handle,
        })
    }

    /// Takes a registration back (`ncclCommDeregister`).
    ///
    /// # Errors
    /// [`Error::Foreign`] if it is another communicator's.
    pub fn deregister(&mut self, registration: Registration) -> Result<(), Error> {
        const CALL: &str = "ncclCommDeregister";
        self.check_ready(CALL)?;
        if registration.owner != self.handle {
            return Err(Error::Foreign {
                call: CALL,
                what: "the registration",
            });
        }
        // SAFETY: the handle is live and ready, and the registration is its own, given back once.
        let answer = unsafe { (self.nccl.api.deregister)(self.handle, registration.handle) };
        self.nccl.checked(CALL, answer).map(|_| ())
    }
}

//! Operations that MPI has been asked for and that are not done: a fixed number of places, each empty or with one.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::Arc;

use lockstep_collective::CollectiveError;
use mpi::ffi;

use crate::fault::{check, failed};

/// An MPI communicator of our own, and where the ranks of the generation are in it.
#[derive(Clone)]
pub(crate) struct Group {
    pub(crate) handle: ffi::MPI_Comm,
    /// MPI's rank, by rank.
    pub(crate) places: Arc<[c_int]>,
}

/// What messages are for; each kind has an order of its own between two ranks.
#[derive(Clone, Copy)]
pub(crate) enum Tag {
    Header = 1,
    Slots,
    Partials,
    Gather,
}

/// A message that has arrived, or one that has been sent (of no length).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    /// Its place.
    pub(crate) place: usize,
    /// Bytes received.
    pub(crate) bytes: usize,
}

/// Places of operations.
pub(crate) struct Requests {
    requests: Vec<ffi::MPI_Request>,
    /// Of each place: the peer, and whether it receives.
    about: Vec<(u32, bool)>,
    indices: Vec<c_int>,
    statuses: Vec<ffi::MPI_Status>,
    under_way: usize,
    done: Vec<Done>,
}

impl Requests {
    pub(crate) fn new(places: usize) -> Requests {
        // SAFETY: a constant of MPI's.
        let empty = unsafe { ffi::RSMPI_REQUEST_NULL };
        // SAFETY: plain integers, for which zero is a value; MPI overwrites them before they are read.
        let status = unsafe { MaybeUninit::<ffi::MPI_Status>::zeroed().assume_init() };
        Requests {
            requests: vec![empty; places],
            about: vec![(0, false); places],
            indices: vec![0; places],
            statuses: vec![status; places],
            under_way: 0,
            done: Vec::with_capacity(places),
        }
    }

    /// How many operations there can be at a time.
    pub(crate) fn places(&self) -> usize {
        self.requests.len()
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.under_way == 0
    }

    /// A rank that something is under way with.
    pub(crate) fn waits_for(&self) -> Option<u32> {
        // SAFETY: a constant of MPI's.
        let empty = unsafe { ffi::RSMPI_REQUEST_NULL };
        let mut places = self.requests.iter().zip(&self.about);
        places.find(|(request, _)| **request != empty).map(|(_, about)| about.0)
    }

    /// Starts to send `bytes` bytes.
    ///
    /// # Errors
    /// MPI refuses.
    ///
    /// # Safety
    /// The memory stays, and is not written, until the operation is done.
    pub(crate) unsafe fn send(
        &mut self,
        place: usize,
        group: &Group,
        peer: u32,
        tag: Tag,
        memory: *const u8,
        bytes: usize,
    ) -> Result<(), CollectiveError> {
        let count = count_of(bytes)?;
        // SAFETY: the caller answers for the memory; the place is empty, so no operation is lost.
        let code = unsafe {
            ffi::MPI_Isend(
                memory.cast::<c_void>(),
                count,
                ffi::RSMPI_UINT8_T,
                group.places[peer as usize],
                tag as c_int,
                group.handle,
                &mut self.requests[place],
            )
        };
        self.started(place, peer, false, code)
    }

    /// Starts to receive at most `bytes` bytes.
    ///
    /// # Errors
    /// MPI refuses.
    ///
    /// # Safety
    /// The memory stays, and nobody else touches it, until the operation is done.
    pub(crate) unsafe fn receive(
        &mut self,
        place: usize,
        group: &Group,
        peer: u32,
        tag: Tag,
        memory: *mut u8,
        bytes: usize,
    ) -> Result<(), CollectiveError> {
        let count = count_of(bytes)?;
        // SAFETY: the caller answers for the memory; the place is empty, so no operation is lost.
        let code = unsafe {
            ffi::MPI_Irecv(
                memory.cast::<c_void>(),
                count,
                ffi::RSMPI_UINT8_T,
                group.places[peer as usize],
                tag as c_int,
                group.handle,
                &mut self.requests[place],
            )
        };
        self.started(place, peer, true, code)
    }

    fn started(&mut self, place: usize, peer: u32, receives: bool, code: c_int) -> Result<(), CollectiveError> {
        check(if receives { "MPI_Irecv" } else { "MPI_Isend" }, code, Some(peer))?;
        self.about[place] = (peer, receives);
        self.under_way += 1;
        Ok(())
    }

    /// Lets MPI work for a moment. What is done since the last call; never waits.
    ///
    /// # Errors
    /// An operation has failed; its peer is named.
    pub(crate) fn test(&mut self) -> Result<&[Done], CollectiveError> {
        self.done.clear();
        if self.under_way == 0 {
            return Ok(&self.done);
        }
        let mut count = 0;
        // SAFETY: the three arrays have one length, and every request is one of ours or none.
        let code = unsafe {
            ffi::MPI_Testsome(
                self.requests.len() as c_int,
                self.requests.as_mut_ptr(),
                &mut count,
                self.indices.as_mut_ptr(),
                self.statuses.as_mut_ptr(),
            )
        };
        let in_statuses = code == ffi::MPI_ERR_IN_STATUS as c_int;
        if !in_statuses {
            check("MPI_Testsome", code, None)?;
        }
        // MPI_UNDEFINED, which is negative, where it found none at work.
        for (index, status) in self
            .indices
            .iter()
            .zip(&self.statuses)
            .take(usize::try_from(count).unwrap_or(0))
        {
            let place = *index as usize;
            let (peer, receives) = self.about[place];
            if in_statuses {
                check(
                    if receives { "MPI_Irecv" } else { "MPI_Isend" },
                    status.MPI_ERROR,
                    Some(peer),
                )?;
            }
            let mut bytes = 0;
            if receives {
                // SAFETY: the status is of a receive that is done.
                let code = unsafe { ffi::MPI_Get_count(status, ffi::RSMPI_UINT8_T, &mut bytes) };
                check("MPI_Get_count", code, Some(peer))?;
            }
            self.done.push(Done {
                place,
                bytes: usize::try_from(bytes).unwrap_or(0),
            });
        }
        self.under_way -= self.done.len();
        Ok(&self.done)
    }

    /// Takes back receives that no message has come for. Whatever is left under way then needs its memory for good.
    pub(crate) fn cancel(&mut self) {
        // SAFETY: a constant of MPI's.
        let empty = unsafe { ffi::RSMPI_REQUEST_NULL };
        for request in self.requests.iter_mut().filter(|request| **request != empty) {
            // SAFETY: the request is under way. An error would mean that MPI is down, and then nothing is received.
            let _ = unsafe { ffi::MPI_Cancel(request) };
        }
        for _ in 0..1000 {
            if self.test().is_err() || self.is_idle() {
                return;
            }
        }
    }
}

fn count_of(bytes: usize) -> Result<c_int, CollectiveError> {
    c_int::try_from(bytes).map_err(|_| failed("MPI_Isend", format!("a message of {bytes} bytes is too long for MPI")))
}

//! Payload behind the headers of full collectives: all-gather, long slot tables, broadcast. All ranks have entered the same
//! call with the same arguments before anything here moves.

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::ops::Range;

use lockstep_collective::{BufferId, CollectiveError, GatherRange};
use mpi::ffi;
use nccl_host::Error;

use crate::calls::Header;
use crate::chunks::{cut, joined};
use crate::communicator::Communicator;
use crate::fault::{check, failed};
use crate::inbox::INLINE;
use crate::requests::{Requests, Tag};
use crate::wait::Wait;

/// Messages to or from one peer that are under way at a time.
const AHEAD: usize = 4;
/// Bytes of one broadcast by MPI, whose counts are 32 bits wide.
const BROADCAST: usize = 1 << 30;

/// Messages between this rank and another, in one direction: (memory, bytes), in their order.
struct Queue {
    peer: u32,
    receives: bool,
    messages: VecDeque<(*mut u8, usize)>,
}

impl Communicator {
    /// Every range from its owner to everyone.
    pub(crate) fn gather(
        &mut self,
        buffer: BufferId,
        ranges: &[GatherRange],
        mine: &Header,
    ) -> Result<(), CollectiveError> {
        let memory = &mut self.arena.buffers[buffer.index()];
        let messages: Vec<VecDeque<(*mut u8, usize)>> = (0..self.size)
            .map(|owner| {
                let pieces = joined(ranges, owner)
                    .into_iter()
                    .flat_map(|range| cut(range, self.options.gather_bytes));
                pieces
                    .map(|piece| (memory.bytes_mut(piece.clone()).as_mut_ptr(), piece.len()))
                    .collect()
            })
            .collect();
        let queues = self.peers().flat_map(|peer| {
            [
                Queue {
                    peer,
                    receives: true,
                    messages: messages[peer as usize].clone(),
                },
                Queue {
                    peer,
                    receives: false,
                    messages: messages[self.rank as usize].clone(),
                },
            ]
        });
        let queues = queues.collect();
        // SAFETY: all of it lies in the buffer, which stays until the calls end and is given away where one fails; the
        // ranges of owners do not overlap, which is the caller's rule, and no view of them is alive.
        unsafe { self.drain(queues, Tag::Gather, mine) }
    }

    /// The values of every rank: those that came with the header as they are, longer ones by themselves.
    pub(crate) fn long_tables(
        &mut self,
        own: &[u64],
        counts: &[usize],
        inline: Vec<Vec<u64>>,
        mine: &Header,
    ) -> Result<Vec<Vec<u64>>, CollectiveError> {
        let mut tables = inline;
        let mut queues = Vec::new();
        let bytes = |values: &[u64]| size_of_val(values);
        let mut outgoing = own.to_vec();
        for peer in self.peers() {
            let table = &mut tables[peer as usize];
            let count = counts[peer as usize];
            if count > INLINE {
                table.resize(count, 0);
                let message = (table.as_mut_ptr().cast(), bytes(table));
                queues.push(Queue {
                    peer,
                    receives: true,
                    messages: [message].into(),
                });
            } else if table.len() != count {
                return Err(Error::Mismatch {
                    rank: peer,
                    theirs: format!("exchange_slots with {} values of its own", table.len()),
                    ours: format!("exchange_slots with {count} values of that rank"),
                }
                .into());
            }
            if own.len() > INLINE {
                queues.push(Queue {
                    peer,
                    receives: false,
                    messages: [(outgoing.as_mut_ptr().cast(), bytes(&outgoing))].into(),
                });
            }
        }
        // SAFETY: nobody touches the tables before the messages are done; on failure they are never freed.
        match unsafe { self.drain(queues, Tag::Slots, mine) } {
            Ok(()) => Ok(tables),
            Err(error) => {
                std::mem::forget((tables, outgoing));
                Err(error)
            }
        }
    }

    /// Moves all messages of all queues.
    ///
    /// # Safety
    /// The memory of every message stays until all are done, and for good on failure; nobody else touches it meanwhile.
    unsafe fn drain(&mut self, mut queues: Vec<Queue>, tag: Tag, mine: &Header) -> Result<(), CollectiveError> {
        let mut requests = Requests::new(queues.len() * AHEAD);
        // By place, the bytes that are to come.
        let mut expected = vec![0; requests.places()];
        let mut free: Vec<usize> = (0..requests.places()).collect();
        let mut wait = Wait::new();
        loop {
            for place in free.drain(..) {
                let queue = &mut queues[place / AHEAD];
                let Some((memory, bytes)) = queue.messages.pop_front() else {
                    continue;
                };
                expected[place] = bytes;
                // SAFETY: the caller answers for it.
                unsafe {
                    match queue.receives {
                        true => requests.receive(place, &self.group, queue.peer, tag, memory, bytes)?,
                        false => requests.send(place, &self.group, queue.peer, tag, memory, bytes)?,
                    }
                }
            }
            if requests.is_idle() {
                return Ok(());
            }
            for done in requests.test()? {
                let queue = &queues[done.place / AHEAD];
                if queue.receives && done.bytes != expected[done.place] {
                    return Err(failed(
                        "MPI_Irecv",
                        format!(
                            "rank {} sent {} bytes where {} were expected",
                            queue.peer, done.bytes, expected[done.place]
                        ),
                    ));
                }
                free.push(done.place);
            }
            match free.is_empty() {
                true => self.pass(&mut wait, mine, requests.waits_for())?,
                false => wait.progress(),
            }
        }
    }

    /// Bytes of a buffer from `root` to everyone, by MPI's own tree.
    pub(crate) fn spread(
        &mut self,
        buffer: BufferId,
        bytes: Range<usize>,
        root: u32,
        mine: &Header,
    ) -> Result<(), CollectiveError> {
        for piece in cut(bytes, BROADCAST) {
            let count = piece.len() as c_int;
            let memory = self.arena.buffers[buffer.index()].bytes_mut(piece).as_mut_ptr();
            // SAFETY: constants of MPI's.
            let (mut request, byte) = unsafe { (ffi::RSMPI_REQUEST_NULL, ffi::RSMPI_UINT8_T) };
            // SAFETY: the buffer stays until the operation is done, and is given away where it fails; no view of it is
            // alive. All ranks have agreed on root and length.
            let code = unsafe {
                ffi::MPI_Ibcast(
                    memory.cast::<c_void>(),
                    count,
                    byte,
                    self.group.places[root as usize],
                    self.group.handle,
                    &mut request,
                )
            };
            check("MPI_Ibcast", code, None)?;
            let mut wait = Wait::new();
            loop {
                let mut done = 0;
                // SAFETY: the request is under way; the status is not wanted.
                let code = unsafe { ffi::MPI_Test(&mut request, &mut done, ffi::RSMPI_STATUS_IGNORE) };
                check("MPI_Ibcast", code, None)?;
                if done != 0 {
                    break;
                }
                let missing = if root == self.rank {
                    self.peers().next()
                } else {
                    Some(root)
                };
                self.pass(&mut wait, mine, missing)?;
            }
        }
        Ok(())
    }
}

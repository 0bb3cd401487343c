//! Work beside NCCL on the same streams: functions of the test, and waits for other streams. They stand for kernels, copies
//! and events of CUDA, so that what a backend puts between its groups runs in the order in which it was asked for.
//!
//! Unlike a kernel of NCCL, such work belongs to no communicator: it stays on its stream when one is aborted.

use std::ffi::c_void;

use crate::state::State;

/// A test's function: it moves memory, and never calls the double, which is locked meanwhile.
pub(crate) type Function = unsafe extern "C" fn(*mut c_void);

/// Something on a stream that is not NCCL's.
pub(crate) enum Beside {
    /// Calls the function once.
    Run {
        function: Function,
        /// What it is called with; an address.
        user: usize,
    },
    /// Ends when so many kernels of the other stream have ended.
    Wait { stream: usize, place: u64 },
}

impl State {
    /// Puts it on a stream, and runs what can run.
    pub(crate) fn put_beside(&mut self, stream: usize, work: Beside) {
        let number = self.new_kernel();
        let queue = self.streams.entry(stream).or_default();
        queue.queue.push_back((queue.launched, number));
        queue.launched += 1;
        self.beside.insert(number, work);
        self.advance();
    }

    /// Does the work beside NCCL that is first on its stream; says whether there was any.
    pub(crate) fn advance_beside(&mut self) -> bool {
        let ready = self.streams.values().filter(|stream| !stream.held).find_map(|stream| {
            let (_, number) = stream.queue.front()?;
            match self.beside.get(number)? {
                Beside::Run { .. } => Some(*number),
                Beside::Wait { stream, place } => {
                    let done = self.streams.get(stream).map_or(0, crate::state::Stream::done);
                    (done >= *place).then_some(*number)
                }
            }
        });
        let Some(number) = ready else { return false };
        if let Some(Beside::Run { function, user }) = self.beside.remove(&number) {
            // SAFETY: who put it on the stream promised that it may be called from any thread, once, with this.
            unsafe { function(std::ptr::with_exposed_provenance_mut(user)) };
        }
        self.end(number);
        true
    }
}

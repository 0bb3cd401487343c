//! Streams: kernels wait in line, run when they are first on all of their streams, and end when all their operations have
//! met the other side.

use nccl_rs::raw;

use crate::moving;
use crate::operation::{Call, Operation};
use crate::state::{Handle, Kernel, State};

impl State {
    /// Puts a kernel on its streams, fails both sides where it does not match one that is there, and runs what can run.
    pub(crate) fn put_on_streams(&mut self, kernel: Kernel) {
        let number = self.new_kernel();
        for stream in &kernel.streams {
            let stream = self.streams.entry(*stream).or_default();
            stream.queue.push_back((stream.launched, number));
            stream.launched += 1;
        }
        self.kernels.insert(number, kernel);
        self.refuse_mismatches(number);
        self.advance();
    }

    /// Takes a communicator's kernels off, spoiling what they were to write.
    pub(crate) fn take_off_streams(&mut self, owner: Handle) {
        let mine: Vec<u64> = self.kernels_of(owner).collect();
        for number in mine {
            let Some(kernel) = self.kernels.get(&number) else {
                continue;
            };
            let ranks = self.worlds[kernel.world].ranks;
            for operation in kernel.operations.iter().filter(|operation| !operation.done) {
                let ranges = operation.ranges(kernel.rank, ranks);
                moving::spoil(ranges.written, ranges.written_bytes);
            }
            self.end(number);
        }
        self.advance();
    }

    pub(crate) fn kernels_of(&self, owner: Handle) -> impl Iterator<Item = u64> {
        self.kernels
            .iter()
            .filter(move |(_, kernel)| kernel.owner == owner)
            .map(|(number, _)| *number)
    }

    /// Runs all that can run, until nothing does.
    pub(crate) fn advance(&mut self) {
        while self.advance_beside() || self.advance_once() {}
        crate::state::changed();
    }

    fn advance_once(&mut self) -> bool {
        let running: Vec<u64> = self
            .kernels
            .keys()
            .copied()
            .filter(|number| self.runs(*number))
            .collect();
        let mut moved = false;
        for number in &running {
            for place in 0..self.kernels.get(number).map_or(0, |kernel| kernel.operations.len()) {
                moved |= self.run_operation(*number, place, &running);
            }
        }
        for number in running {
            let through = self
                .kernels
                .get(&number)
                .is_some_and(|kernel| kernel.operations.iter().all(|operation| operation.done));
            if through {
                self.end(number);
                moved = true;
            }
        }
        moved
    }

    fn runs(&self, number: u64) -> bool {
        let Some(kernel) = self.kernels.get(&number) else {
            return false;
        };
        !kernel.stuck
            && kernel.streams.iter().all(|stream| {
                self.streams.get(stream).is_some_and(|stream| {
                    !stream.held && stream.queue.front().is_some_and(|(_, first)| *first == number)
                })
            })
    }

    /// Moves the data of one operation if all its sides run.
    fn run_operation(&mut self, number: u64, place: usize, running: &[u64]) -> bool {
        let kernel = &self.kernels[&number];
        let operation = &kernel.operations[place];
        if operation.done {
            return false;
        }
        let mut sides = self.sides(kernel, operation);
        let wanted = if operation.call.is_pair() {
            2
        } else {
            self.worlds[kernel.world].ranks as usize
        };
        if sides.len() < wanted || sides.iter().any(|(side, _)| !running.contains(side)) {
            return false;
        }
        if operation.call.is_pair() {
            let (send, receive) = match operation.call {
                Call::Send => (operation.clone(), self.at(sides[1]).clone()),
                _ => (self.at(sides[1]).clone(), operation.clone()),
            };
            moving::pair(&send, &receive);
        } else {
            sides.sort_by_key(|(side, _)| self.kernels[side].rank);
            let all: Vec<Operation> = sides.iter().map(|side| self.at(*side).clone()).collect();
            moving::collective(&all);
        }
        for (side, place) in sides {
            if let Some(kernel) = self.kernels.get_mut(&side) {
                kernel.operations[place].done = true;
            }
        }
        true
    }

    fn at(&self, (number, place): (u64, usize)) -> &Operation {
        &self.kernels[&number].operations[place]
    }

    /// An operation and those on streams that it meets: itself first, then the pair's other half or the other ranks'.
    fn sides(&self, kernel: &Kernel, operation: &Operation) -> Vec<(u64, usize)> {
        let mut own = Vec::new();
        let mut others = Vec::new();
        for (number, other) in &self.kernels {
            if other.world != kernel.world {
                continue;
            }
            for (place, candidate) in other.operations.iter().enumerate() {
                if std::ptr::eq(candidate, operation) {
                    own.push((*number, place));
                } else if meets(kernel.rank, operation, other.rank, candidate) {
                    others.push((*number, place));
                }
            }
        }
        own.append(&mut others);
        own
    }

    /// Invariant 3: both sides of what does not match fail.
    fn refuse_mismatches(&mut self, number: u64) {
        let mut failed: Vec<(u64, String)> = Vec::new();
        let kernel = &self.kernels[&number];
        for operation in &kernel.operations {
            for (side, place) in self.sides(kernel, operation).into_iter().skip(1) {
                let other = self.at((side, place));
                if other.terms() != operation.terms() {
                    let words = format!(
                        "rank {} asked for {:?} ({}) where rank {} asked for {:?} ({})",
                        kernel.rank,
                        operation.call,
                        operation.terms(),
                        self.kernels[&side].rank,
                        other.call,
                        other.terms()
                    );
                    failed.push((number, words.clone()));
                    failed.push((side, words));
                }
            }
        }
        for (number, words) in failed {
            let code = self.refuse(raw::INVALID_ARGUMENT, words);
            if let Some(kernel) = self.kernels.get_mut(&number) {
                kernel.stuck = true;
                if let Some(communicator) = self.communicators.get_mut(&kernel.owner) {
                    communicator.result = code;
                }
            }
        }
    }

    pub(crate) fn end(&mut self, number: u64) {
        self.kernels.remove(&number);
        for stream in self.streams.values_mut() {
            stream.queue.retain(|(_, queued)| *queued != number);
        }
    }
}

/// Whether two operations of one world are two sides of one thing.
fn meets(rank: u32, operation: &Operation, other_rank: u32, other: &Operation) -> bool {
    if operation.sequence != other.sequence || other.done {
        return false;
    }
    match operation.call {
        Call::Send => other.call == Call::Recv && other.other == rank && operation.other == other_rank,
        Call::Recv => other.call == Call::Send && other.other == rank && operation.other == other_rank,
        _ => !other.call.is_pair() && other_rank != rank,
    }
}

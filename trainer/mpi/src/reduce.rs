//! `reduce_lanes`: every rank sends its partials of what others own, and every owner adds what it has received, chunk by
//! chunk, in tree order.
//!
//! A chunk of every foreign partial lands in a *stage*; there are few stages, used in turn, so that what is added still
//! lies in the cache, and a reduction costs stages × partials × chunk bytes of memory, however large the model is. While
//! the chunk of one stage is added, messages for the others are under way.

use std::ops::Range;

use lockstep_collective::backend::{Memories, Reduction};
use lockstep_collective::{BufferId, CollectiveError, HostMemory, ReduceLanes};
use nccl_host::Error;

use crate::calls::{Header, Kind};
use crate::chunks::{Chunk, chunks_of};
use crate::communicator::{Communicator, digest};
use crate::requests::{Requests, Tag};
use crate::wait::Wait;
use crate::wire::{is_bf16, pack_if_bf16, pack_in_place, unpack};

/// All memory of this rank, as the arithmetic of the lane tree sees it.
pub(crate) struct Arena {
    rank: u32,
    /// By number.
    pub(crate) buffers: Vec<HostMemory>,
    /// Stages of received partials, then places of packed messages.
    staging: Option<HostMemory>,
    /// What is being added.
    view: View,
}

/// Where the foreign partials of the elements that are being added lie in the staging memory.
#[derive(Default)]
struct View {
    /// The request's buffers: a partial's number is its buffer's place here.
    buffers: Vec<BufferId>,
    /// By rank, the number of its first foreign partial.
    first: Vec<usize>,
    /// Where the elements of foreign partial 0 begin, and how far it is to those of the next.
    start: usize,
    stride: usize,
    /// The element that lies there.
    element: usize,
}

impl Arena {
    pub(crate) fn new(rank: u32) -> Arena {
        Arena {
            rank,
            buffers: Vec::new(),
            staging: None,
            view: View::default(),
        }
    }

    /// Never frees what it has: MPI may still use it.
    pub(crate) fn give_away(&self) {
        for memory in self.buffers.iter().chain(&self.staging) {
            std::mem::forget(memory.hold());
        }
    }

    /// Staging memory for `elements` values. What lay there before is gone.
    fn stage(&mut self, elements: usize) -> Result<&mut HostMemory, CollectiveError> {
        let bytes = elements * size_of::<f32>();
        if self.staging.as_ref().is_none_or(|memory| memory.len() < bytes) {
            // Mapped when touched: what is never used costs nothing.
            self.staging = None;
            self.staging = Some(HostMemory::anonymous(bytes)?);
        }
        Ok(self.staging())
    }

    fn staging(&mut self) -> &mut HostMemory {
        match &mut self.staging {
            Some(memory) => memory,
            None => unreachable!("a reduction stages before it moves anything"),
        }
    }
}

impl Arena {
    /// A chunk of a partial as it travels, and its bytes: where it lies, or packed at `start` of the staging memory; by
    /// halves where it may and can.
    fn message(&mut self, buffer: BufferId, chunk: &Chunk, start: usize, halves: bool) -> (*const u8, usize) {
        let partial = &self.buffers[buffer.index()];
        let Some(staging) = &mut self.staging else {
            unreachable!("a reduction stages before it moves anything")
        };
        let packed = staging.floats_mut(start..start + chunk.elements);
        if let [piece] = chunk.pieces.as_slice() {
            let values = partial.floats(piece.clone());
            return match halves && pack_if_bf16(values, packed) {
                true => (packed.as_ptr().cast(), chunk.elements * size_of::<u16>()),
                false => (values.as_ptr().cast(), size_of_val(values)),
            };
        }
        let mut end = 0;
        for piece in &chunk.pieces {
            packed[end..end + piece.len()].copy_from_slice(partial.floats(piece.clone()));
            end += piece.len();
        }
        let size = match halves && is_bf16(packed) {
            true => {
                pack_in_place(packed);
                size_of::<u16>()
            }
            false => size_of::<f32>(),
        };
        (packed.as_ptr().cast(), chunk.elements * size)
    }
}

impl Memories for Arena {
    fn floats(&self, rank: u32, buffer: BufferId, elements: Range<usize>) -> &[f32] {
        if rank == self.rank {
            return self.buffers[buffer.index()].floats(elements);
        }
        let View {
            buffers,
            first,
            start,
            stride,
            element,
        } = &self.view;
        let partial = buffers.iter().position(|other| *other == buffer).unwrap_or(0);
        let from = start + (first[rank as usize] + partial) * stride + (elements.start - element);
        match &self.staging {
            Some(memory) => memory.floats(from..from + elements.len()),
            None => &[],
        }
    }

    fn own_mut(&mut self, buffer: BufferId) -> &mut HostMemory {
        &mut self.buffers[buffer.index()]
    }

    fn own(&self, buffer: BufferId) -> Option<&HostMemory> {
        self.buffers.get(buffer.index())
    }
}

/// What this rank sends to one owner: every chunk, of each of its partials.
struct Sending {
    owner: u32,
    chunks: Vec<Chunk>,
    partials: usize,
    /// Messages started.
    next: usize,
}

/// A chunk of every foreign partial, on its way.
#[derive(Clone, Default)]
struct Stage {
    /// Of the chunk.
    elements: usize,
    /// Messages that are still to come.
    missing: usize,
}

/// One reduction on its way. Its places, in MPI and in the staging memory: one for every foreign partial in each stage, then
/// some for each owner.
struct Moving<'a> {
    buffers: &'a [BufferId],
    /// What this rank owns.
    owned: Vec<Chunk>,
    /// Foreign partials: the ranks that hold them, in their order there.
    sources: Vec<u32>,
    stages: Vec<Stage>,
    sendings: Vec<Sending>,
    /// Stages, and places for messages to each owner.
    ahead: usize,
    /// Elements of a chunk at most.
    chunk: usize,
    requests: Requests,
}

impl Moving<'_> {
    fn receive_places(&self) -> usize {
        self.ahead * self.sources.len()
    }

    /// Where the message of a place lies in the staging memory.
    fn place(&self, place: usize) -> usize {
        place * self.chunk
    }
}

impl Communicator {
    /// Moves and adds; the request was checked.
    pub(crate) fn reduce(
        &mut self,
        request: &ReduceLanes<'_>,
        reduction: &Reduction<'_>,
    ) -> Result<(), CollectiveError> {
        let words = request
            .owners
            .iter()
            .flat_map(|(range, owner)| [range.start as u64, range.end as u64, u64::from(*owner)]);
        let lanes = request.rank_lanes.iter().map(|lanes| u64::from(lanes.end));
        let known = [self.requests, u64::from(request.bucket), request.wire as u64];
        self.requests = digest(known.into_iter().chain(lanes).chain(words));
        self.reductions += 1;
        let mine = self.header(Kind::ReduceLanes, u64::from(request.bucket));

        let mut moving = self.plan(request);
        let stages = moving.receive_places();
        self.arena.stage(moving.place(moving.requests.places()))?;
        for place in stages..moving.requests.places() {
            self.send_next(&mut moving, place)?;
        }
        if moving.sources.is_empty() {
            reduction.run(&mut self.arena);
        } else {
            self.receive_and_add(&mut moving, reduction, &mine)?;
        }
        let mut wait = Wait::new();
        while !moving.requests.is_idle() {
            self.advance(&mut moving, &mut wait, &mine)?;
        }
        Ok(())
    }

    fn plan<'a>(&mut self, request: &ReduceLanes<'a>) -> Moving<'a> {
        let chunk = self.options.chunk_bytes / size_of::<f32>();
        let partials: Vec<usize> = request
            .rank_lanes
            .iter()
            .map(|lanes| request.tree.maximal_subtrees(lanes.clone()).len())
            .collect();
        let chunks = |owner| chunks_of(request.owners, owner, chunk);
        let owned = chunks(self.rank);
        let (mut sources, mut first) = (Vec::new(), Vec::new());
        for (rank, count) in (0u32..).zip(&partials) {
            first.push(sources.len());
            if rank != self.rank && !owned.is_empty() {
                sources.extend(std::iter::repeat_n(rank, *count));
            }
        }
        let own = partials[self.rank as usize];
        let sendings: Vec<Sending> = self
            .peers()
            .map(|owner| Sending {
                owner,
                chunks: chunks(owner),
                partials: own,
                next: 0,
            })
            .filter(|sending| own > 0 && !sending.chunks.is_empty())
            .collect();
        let ahead = self.options.chunks_ahead;
        self.arena.view = View {
            buffers: request.buffers.to_vec(),
            first,
            start: 0,
            stride: chunk,
            element: 0,
        };
        Moving {
            buffers: request.buffers,
            requests: Requests::new(ahead * (sources.len() + sendings.len())),
            owned,
            sources,
            stages: vec![Stage::default(); ahead],
            sendings,
            ahead,
            chunk,
        }
    }

    /// Receives chunk after chunk, and adds each as soon as it is whole.
    fn receive_and_add(
        &mut self,
        moving: &mut Moving<'_>,
        reduction: &Reduction<'_>,
        mine: &Header,
    ) -> Result<(), CollectiveError> {
        for chunk in 0..moving.ahead.min(moving.owned.len()) {
            self.receive_chunk(moving, chunk)?;
        }
        let mut wait = Wait::new();
        for chunk in 0..moving.owned.len() {
            let stage = chunk % moving.ahead;
            while moving.stages[stage].missing > 0 {
                self.advance(moving, &mut wait, mine)?;
            }
            let mut place = moving.place(stage * moving.sources.len());
            for piece in &moving.owned[chunk].pieces {
                self.arena.view.start = place;
                self.arena.view.element = piece.start;
                reduction.run_on(piece.clone(), &mut self.arena);
                place += piece.len();
            }
            if chunk + moving.ahead < moving.owned.len() {
                self.receive_chunk(moving, chunk + moving.ahead)?;
            }
        }
        Ok(())
    }

    /// Asks for a chunk of every foreign partial.
    fn receive_chunk(&mut self, moving: &mut Moving<'_>, chunk: usize) -> Result<(), CollectiveError> {
        let stage = chunk % moving.ahead;
        let elements = moving.owned[chunk].elements;
        moving.stages[stage] = Stage {
            elements,
            missing: moving.sources.len(),
        };
        for (source, peer) in moving.sources.iter().enumerate() {
            let place = stage * moving.sources.len() + source;
            let start = moving.place(place);
            let memory = self.arena.staging().floats_mut(start..start + elements).as_mut_ptr();
            // SAFETY: nobody looks at a stage before its messages are all there; the staging memory stays for the whole
            // reduction, and a failure gives it away.
            unsafe {
                moving.requests.receive(
                    place,
                    &self.group,
                    *peer,
                    Tag::Partials,
                    memory.cast(),
                    elements * size_of::<f32>(),
                )?;
            }
        }
        Ok(())
    }

    /// Sends the next message, if there is one, to the owner that `place` belongs to.
    fn send_next(&mut self, moving: &mut Moving<'_>, place: usize) -> Result<(), CollectiveError> {
        let start = moving.place(place);
        let sending = &mut moving.sendings[(place - moving.stages.len() * moving.sources.len()) / moving.ahead];
        let Some(chunk) = sending.chunks.get(sending.next / sending.partials) else {
            return Ok(());
        };
        let buffer = moving.buffers[sending.next % sending.partials];
        sending.next += 1;
        let halves = self.options.halves_when_near || !self.ranks[sending.owner as usize].is_near;
        let (memory, bytes) = self.arena.message(buffer, chunk, start, halves);
        self.sent += bytes as u64;
        // SAFETY: a partial is not written between its publish and the end of its reduction, this place of the staging
        // memory is written again when this message is done only, and a failure gives both away.
        unsafe {
            moving
                .requests
                .send(place, &self.group, sending.owner, Tag::Partials, memory, bytes)
        }
    }

    /// Tests once; unpacks what has come, and sends what may follow. Where nothing was done, passes a moment.
    fn advance(&mut self, moving: &mut Moving<'_>, wait: &mut Wait, mine: &Header) -> Result<(), CollectiveError> {
        let done = moving.requests.test()?.to_vec();
        if done.is_empty() {
            return self.pass(wait, mine, moving.requests.waits_for());
        }
        wait.progress();
        for done in done {
            if done.place >= moving.receive_places() {
                self.send_next(moving, done.place)?;
                continue;
            }
            let (stage, source) = (done.place / moving.sources.len(), done.place % moving.sources.len());
            let whole = moving.stages[stage].elements * size_of::<f32>();
            if done.bytes == whole / 2 {
                let start = moving.place(done.place);
                unpack(
                    self.arena
                        .staging()
                        .floats_mut(start..start + moving.stages[stage].elements),
                );
            } else if done.bytes != whole {
                return Err(Error::Mismatch {
                    rank: moving.sources[source],
                    theirs: format!("reduce_lanes with a message of {} bytes", done.bytes),
                    ours: format!("reduce_lanes with one of {whole} or half that"),
                }
                .into());
            }
            moving.stages[stage].missing -= 1;
        }
        Ok(())
    }
}

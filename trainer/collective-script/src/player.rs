//! One rank's part of a script: it makes the calls, late now and then, and checks every bit that comes of them.

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lockstep_collective::{Accelerator, BufferId, Collective, LaneTree, ReduceLanes};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::payload::Payload;
use crate::{Round, Script};

/// One rank's part of a script.
pub struct Player<'a> {
    script: &'a Script,
    collective: Box<dyn Collective>,
    payload: Payload,
    delays: StdRng,
    partials: Vec<BufferId>,
    parameters: BufferId,
    bytes: BufferId,
}

impl<'a> Player<'a> {
    /// A player on a communicator of [`Script::size`] ranks.
    pub fn new(script: &'a Script, collective: Box<dyn Collective>) -> Player<'a> {
        Player::with_payload(script, collective, Payload::on_host())
    }

    /// As [`Player::new`], where buffers lie on `device`.
    pub fn on_device(script: &'a Script, collective: Box<dyn Collective>, device: Arc<dyn Accelerator>) -> Player<'a> {
        Player::with_payload(script, collective, Payload::on_device(device))
    }

    fn with_payload(script: &'a Script, mut collective: Box<dyn Collective>, payload: Payload) -> Player<'a> {
        assert_eq!(collective.size(), script.size, "the script is for another world");
        let rank = collective.rank();
        let tree = LaneTree::full(script.lanes);
        let most = script
            .rank_lanes
            .iter()
            .map(|lanes| tree.maximal_subtrees(lanes.clone()).len())
            .max();
        let mut allocate = |name: &str, bytes| collective.allocate(name, bytes).unwrap();
        let partials = (0..most.unwrap().max(1))
            .map(|i| allocate(&format!("partial {i}"), 4 * script.elements))
            .collect();
        let parameters = allocate("parameters", 4 * script.elements);
        let bytes = allocate("bytes", script.bytes.last().unwrap().0.end);
        let delays = StdRng::seed_from_u64(script.seed ^ u64::from(rank) << 32);
        Player {
            script,
            collective,
            payload,
            delays,
            partials,
            parameters,
            bytes,
        }
    }

    /// Now and then a rank is late.
    fn delay(&mut self) {
        match self.delays.random_range(0..8) {
            0 => thread::sleep(Duration::from_micros(self.delays.random_range(0..800))),
            1 => thread::yield_now(),
            _ => {}
        }
    }

    /// Plays this rank's part and checks it. Panics, with the seed, at the first wrong bit.
    pub fn play(mut self) {
        for round in 0..self.script.rounds.len() {
            self.reduce(round);
            self.gather(round);
            self.broadcast(round);
            self.gather_bytes(round);
            self.exchange(round);
        }
    }

    fn reduce(&mut self, round: usize) {
        let script = self.script;
        let tree = script.tree(round);
        let mine = tree.maximal_subtrees(script.rank_lanes[self.collective.rank() as usize].clone());
        for (bucket, elements) in (0u32..).zip(&script.buckets) {
            for (lanes, buffer) in mine.iter().zip(&self.partials) {
                let values: Vec<f32> = elements
                    .clone()
                    .map(|place| script.partial(round, lanes.clone(), place))
                    .collect();
                self.payload
                    .write_floats(self.collective.as_mut(), *buffer, elements.start, &values);
            }
            self.delay();
            self.collective.publish(bucket).unwrap();
            if script.rounds[round].eager {
                self.reduce_bucket(bucket, &tree);
            }
        }
        if !script.rounds[round].eager {
            (0..script.buckets.len() as u32).for_each(|bucket| self.reduce_bucket(bucket, &tree));
        }
        let rank = self.collective.rank();
        let result = self
            .payload
            .read_floats(self.collective.as_ref(), self.partials[0], 0..script.elements);
        for (piece, owner) in script.pieces.iter().flatten() {
            for place in piece.clone() {
                if *owner == rank {
                    let whole = script.whole(round, place);
                    assert_eq!(
                        result[place].to_bits(),
                        whole.to_bits(),
                        "seed {} element {place}",
                        script.seed
                    );
                } else if let Some(lanes) = mine.first() {
                    let own = script.partial(round, lanes.clone(), place);
                    assert_eq!(
                        result[place].to_bits(),
                        own.to_bits(),
                        "seed {}: {place} was not owned",
                        script.seed
                    );
                }
            }
        }
    }

    fn reduce_bucket(&mut self, bucket: u32, tree: &LaneTree) {
        self.delay();
        let request = ReduceLanes {
            bucket,
            owners: &self.script.pieces[bucket as usize],
            rank_lanes: &self.script.rank_lanes,
            tree,
            buffers: &self.partials,
            wire: self.script.wire,
        };
        self.payload.before();
        self.collective.reduce_lanes(&request).unwrap();
        self.payload.after();
    }

    /// Owners copy their sums into the parameters; then everybody has everything.
    fn gather(&mut self, round: usize) {
        let script = self.script;
        let rank = self.collective.rank();
        for (piece, _) in script.pieces.iter().flatten().filter(|piece| piece.1 == rank) {
            let sums = self
                .payload
                .read_floats(self.collective.as_ref(), self.partials[0], piece.clone());
            self.payload
                .write_floats(self.collective.as_mut(), self.parameters, piece.start, &sums);
        }
        let in_bytes = |piece: &Range<usize>| 4 * piece.start..4 * piece.end;
        let ranges: Vec<_> = script
            .pieces
            .iter()
            .flatten()
            .map(|(piece, owner)| (in_bytes(piece), *owner))
            .collect();
        self.delay();
        self.payload.before();
        self.collective.all_gather_v(self.parameters, &ranges).unwrap();
        self.payload.after();
        let gathered = self
            .payload
            .read_floats(self.collective.as_ref(), self.parameters, 0..script.elements);
        for (place, value) in gathered.iter().enumerate() {
            let whole = script.whole(round, place);
            assert_eq!(
                value.to_bits(),
                whole.to_bits(),
                "seed {} gathered element {place}",
                script.seed
            );
        }
    }

    fn broadcast(&mut self, round: usize) {
        let script = self.script;
        let Round { root, broadcast, .. } = &script.rounds[round];
        let rank = self.collective.rank();
        let own: Vec<u8> = broadcast
            .clone()
            .map(|place| script.word(2, round, rank, place) as u8)
            .collect();
        self.payload
            .write(self.collective.as_mut(), self.bytes, broadcast.start, &own);
        self.delay();
        self.payload.before();
        self.collective.broadcast(self.bytes, broadcast.clone(), *root).unwrap();
        self.payload.after();
        let received = self
            .payload
            .read(self.collective.as_ref(), self.bytes, broadcast.clone());
        for (byte, place) in received.iter().zip(broadcast.clone()) {
            assert_eq!(
                *byte,
                script.word(2, round, *root, place) as u8,
                "seed {} byte {place}",
                script.seed
            );
        }
        // What follows writes the same bytes, and peers may still be reading them.
        self.collective.barrier().unwrap();
    }

    fn gather_bytes(&mut self, round: usize) {
        let script = self.script;
        let rank = self.collective.rank();
        for (piece, _) in script.bytes.iter().filter(|piece| piece.1 == rank) {
            let own: Vec<u8> = piece
                .clone()
                .map(|place| script.word(3, round, rank, place) as u8)
                .collect();
            self.payload
                .write(self.collective.as_mut(), self.bytes, piece.start, &own);
        }
        self.delay();
        self.payload.before();
        self.collective.all_gather_v(self.bytes, &script.bytes).unwrap();
        self.payload.after();
        for (piece, owner) in &script.bytes {
            let received = self.payload.read(self.collective.as_ref(), self.bytes, piece.clone());
            for (byte, place) in received.iter().zip(piece.clone()) {
                assert_eq!(
                    *byte,
                    script.word(3, round, *owner, place) as u8,
                    "seed {} byte {place}",
                    script.seed
                );
            }
        }
    }

    /// Several tables in a row, nothing between: each must be the one that was meant.
    fn exchange(&mut self, round: usize) {
        let script = self.script;
        let rank = self.collective.rank();
        for (number, length) in script.rounds[round].tables.iter().enumerate() {
            let kind = 4 + number as u64;
            let owners: Vec<u32> = (0..*length)
                .map(|slot| (script.word(0, round, 0, slot) % u64::from(script.size)) as u32)
                .collect();
            // Slots of others hold rubbish before, which must neither count nor stay.
            let mut table: Vec<u64> = (0..*length).map(|slot| script.word(kind, round, rank, slot)).collect();
            self.delay();
            self.collective.exchange_slots(&mut table, &owners).unwrap();
            for (slot, value) in table.iter().enumerate() {
                assert_eq!(
                    *value,
                    script.word(kind, round, owners[slot], slot),
                    "seed {} slot {slot}",
                    script.seed
                );
            }
        }
    }
}

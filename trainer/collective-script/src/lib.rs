//! Random scripts of collectives with their answers, for the tests of every backend.
//!
//! A [`Script`] is a pure function of its seed: world, lanes, owners, payload, delays. A [`Player`] plays one rank of it on
//! any [`Collective`] and checks all that it receives, bit for bit, against one process that adds and copies by the
//! definition of the lane tree.
#![allow(clippy::unwrap_used)] // A player's failure is a test's failure.

mod payload;

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lockstep_collective::{Aborter, Accelerator, BufferId, Collective, LaneTree, ReduceLanes, Wire, round_to_bf16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub use payload::Payload;

/// How long a script may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What all ranks agree on before they start; a pure function of the seed.
pub struct Script {
    seed: u64,
    /// Ranks.
    pub size: u32,
    lanes: u32,
    rank_lanes: Vec<Range<u32>>,
    /// Elements of the flat gradient buffer, cut into buckets.
    elements: usize,
    buckets: Vec<Range<usize>>,
    /// Owner of each piece of each bucket.
    pieces: Vec<Vec<(Range<usize>, u32)>>,
    /// Bytes of another buffer, cut anywhere.
    bytes: Vec<(Range<usize>, u32)>,
    rounds: Vec<Round>,
    wire: Wire,
    /// Whether sums go by rank instead of by the lane tree.
    by_rank: bool,
}

struct Round {
    working: Vec<bool>,
    /// Reduce each bucket at once after its publish, or all at the end.
    eager: bool,
    /// Lengths of the tables exchanged in a row.
    tables: Vec<usize>,
    root: u32,
    broadcast: Range<usize>,
}

/// `0..end` cut into `pieces` neighbouring ranges, some of them empty.
fn cut(random: &mut StdRng, end: usize, pieces: usize) -> Vec<Range<usize>> {
    let mut borders: Vec<usize> = (1..pieces).map(|_| random.random_range(0..=end)).collect();
    borders.extend([0, end]);
    borders.sort();
    borders.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

impl Script {
    /// The script of a seed, with 1 to 8 ranks.
    pub fn new(seed: u64) -> Script {
        Script::with_size(seed, StdRng::seed_from_u64(seed).random_range(1..=8))
    }

    /// The script of a seed, with `size` ranks.
    pub fn with_size(seed: u64, size: u32) -> Script {
        let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
        let lanes = random.random_range(1..=16);
        let rank_lanes = cut(&mut random, lanes as usize, size as usize)
            .iter()
            .map(|r| r.start as u32..r.end as u32)
            .collect();
        let elements = [0, 1, 7, 1023, 2048, 4097, 50_021][random.random_range(0..7)];
        let buckets = {
            let count = random.random_range(1..=4);
            cut(&mut random, elements, count)
        };
        let pieces = buckets
            .iter()
            .map(|bucket| {
                let count = random.random_range(1..=12);
                let cuts = cut(&mut random, bucket.len(), count);
                let place = |piece: Range<usize>| bucket.start + piece.start..bucket.start + piece.end;
                cuts.into_iter()
                    .map(|piece| (place(piece), random.random_range(0..size)))
                    .collect()
            })
            .collect();
        let length = random.random_range(0..5000);
        let bytes = cut(&mut random, length, 9)
            .into_iter()
            .map(|piece| (piece, random.random_range(0..size)))
            .collect();
        let rounds = (0..random.random_range(1..=5))
            .map(|_| {
                let mut working: Vec<bool> = (0..lanes).map(|_| random.random_bool(0.75)).collect();
                working[random.random_range(0..lanes as usize)] = true;
                let tables = [0, 1, 2, 3, 500, 513, 3000];
                Round {
                    working,
                    eager: random.random(),
                    tables: (0..random.random_range(2..5))
                        .map(|_| tables[random.random_range(0..7)])
                        .collect(),
                    root: random.random_range(0..size),
                    broadcast: {
                        let mut ends = [random.random_range(0..=length), random.random_range(0..=length)];
                        ends.sort();
                        ends[0]..ends[1]
                    },
                }
            })
            .collect();
        Script {
            seed,
            size,
            lanes,
            rank_lanes,
            elements,
            buckets,
            pieces,
            bytes,
            rounds,
            wire: if random.random_bool(0.3) {
                Wire::Bf16
            } else {
                Wire::Float32
            },
            by_rank: random.random_bool(0.2),
        }
    }

    /// The order of the sums in a round.
    fn tree(&self, round: usize) -> LaneTree {
        let working = &self.rounds[round].working;
        match self.by_rank {
            true => LaneTree::by_rank(working, &self.rank_lanes),
            false => LaneTree::new(working),
        }
    }

    /// The sum that one rank gives away, as it gives it away.
    fn partial(&self, round: usize, lanes: Range<u32>, place: usize) -> f32 {
        let sum = match self.by_rank {
            true => self.one_after_the_other(round, lanes.clone(), place),
            false => self.node(round, lanes.clone(), place),
        };
        self.rounded(sum.unwrap(), self.is_whole(round, &lanes))
    }

    /// The whole sum.
    fn whole(&self, round: usize, place: usize) -> f32 {
        if !self.by_rank {
            return self.node(round, 0..self.lanes, place).unwrap();
        }
        let partials: Vec<f32> = self
            .ranks_with_work(round)
            .map(|lanes| self.partial(round, lanes, place))
            .collect();
        let mut sum = partials[0];
        for (number, partial) in partials.iter().enumerate().skip(1) {
            sum = self.rounded(sum + partial, number + 1 == partials.len());
        }
        sum
    }

    /// Whether these lanes have all the work of a round: their sum is the whole one.
    fn is_whole(&self, round: usize, lanes: &Range<u32>) -> bool {
        let working = &self.rounds[round].working;
        (0u32..)
            .zip(working)
            .all(|(lane, works)| !works || lanes.contains(&lane))
    }

    fn ranks_with_work(&self, round: usize) -> impl Iterator<Item = Range<u32>> + '_ {
        let works = move |lane: u32| self.rounds[round].working[lane as usize];
        self.rank_lanes
            .iter()
            .filter(move |lanes| (*lanes).clone().any(works))
            .cloned()
    }

    fn one_after_the_other(&self, round: usize, lanes: Range<u32>, place: usize) -> Option<f32> {
        let working = |lane: &u32| self.rounds[round].working[*lane as usize];
        lanes
            .filter(working)
            .map(|lane| self.value(round, lane, place))
            .reduce(|sum, value| sum + value)
    }

    /// As the wire rounds what is not the whole sum.
    fn rounded(&self, sum: f32, is_whole: bool) -> f32 {
        let mut values = [sum];
        if self.wire == Wire::Bf16 && !is_whole {
            round_to_bf16(&mut values);
        }
        values[0]
    }

    /// A word that depends on all its arguments.
    fn word(&self, kind: u64, round: usize, who: u32, place: usize) -> u64 {
        let mut word = self.seed ^ kind << 60 ^ (round as u64) << 50 ^ u64::from(who) << 40 ^ place as u64;
        for _ in 0..2 {
            word = (word ^ word >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        word ^ word >> 29
    }

    /// What lane `lane` adds to element `place`: signs and magnitudes so mixed that every order of adding shows.
    fn value(&self, round: usize, lane: u32, place: usize) -> f32 {
        let word = self.word(1, round, lane, place);
        let magnitude = 2f32.powi((word % 24) as i32 - 12);
        let sign = if word & 1 << 40 == 0 { 1.0 } else { -1.0 };
        sign * magnitude * (1.0 + (word >> 41) as f32 / (1u64 << 23) as f32)
    }

    /// The definition of the lane tree.
    fn node(&self, round: usize, lanes: Range<u32>, place: usize) -> Option<f32> {
        if lanes.len() == 1 {
            let value = || self.rounded(self.value(round, lanes.start, place), self.is_whole(round, &lanes));
            return self.rounds[round].working[lanes.start as usize].then(value);
        }
        let mut p = 1;
        while 2 * p < lanes.end - lanes.start {
            p *= 2;
        }
        let middle = lanes.start + p;
        match (
            self.node(round, lanes.start..middle, place),
            self.node(round, middle..lanes.end, place),
        ) {
            (Some(left), Some(right)) => Some(self.rounded(left + right, self.is_whole(round, &lanes))),
            (left, right) => left.or(right),
        }
    }
}

/// An aborter that ends a script which has not ended by itself.
pub fn patient() -> Aborter {
    let aborter = Aborter::new();
    let later = aborter.clone();
    thread::spawn(move || {
        thread::sleep(PATIENCE);
        later.abort("the test has run out of patience");
    });
    aborter
}

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

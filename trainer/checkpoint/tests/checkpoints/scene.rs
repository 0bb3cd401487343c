//! Random tensors whose every value is known from (seed, step, tensor, array, element), written by worlds of any size.

use std::ops::Range;

use lockstep_checkpoint::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// A seed of its own for each run, printed so that a failure can be run again with `CHECKPOINT_SEED`.
pub(crate) fn seed(what: &str) -> u64 {
    let given = std::env::var("CHECKPOINT_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("{what}: CHECKPOINT_SEED={seed}");
    seed
}

/// Tensors of a run.
#[derive(Clone)]
pub(crate) struct Scene {
    pub(crate) seed: u64,
    pub(crate) tensors: Vec<TensorEntry>,
}

/// Which blocks of which tensor an owner has: tensor, blocks.
type Share = Vec<(usize, Range<usize>)>;

impl Scene {
    /// A few tensors of all kinds.
    pub(crate) fn random(seed: u64) -> Scene {
        let mut random = StdRng::seed_from_u64(seed);
        let count = random.random_range(1..=6);
        let tensors = (0..count).map(|n| tensor(n, &mut random)).collect();
        Scene { seed, tensors }
    }

    /// The bits of a value: any bits, those of NaNs among them.
    fn bits(&self, step: u64, tensor: usize, array: usize, element: usize) -> u32 {
        let mut word = self.seed ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for part in [tensor as u64, array as u64, element as u64] {
            word = (word ^ part).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word ^= word >> 29;
        }
        (word >> 16) as u32
    }

    pub(crate) fn values(&self, step: u64, tensor: usize, array: usize, elements: Range<usize>) -> Vec<f32> {
        elements
            .map(|element| f32::from_bits(self.bits(step, tensor, array, element)))
            .collect()
    }

    pub(crate) fn run(&self, step: u64, term: u64, generation: u64) -> RunValues {
        RunValues {
            run_id: format!("run-{}", self.seed),
            config_hash: ContentHash::of(b"config").to_string(),
            config_toml: "[run]\nname = \"a \\\"quoted\\\" name\"\n".to_owned(),
            step,
            term,
            generation,
            cursor: step * 32,
            schedule_version: step / 7,
            words: [
                ("momo.h".to_owned(), 2.5f64.to_bits() ^ step),
                ("momo.rho".to_owned(), u64::MAX),
            ]
            .into(),
            parameter_hash: ContentHash::of(&step.to_le_bytes()).to_string(),
        }
    }

    /// Deals the blocks to owners at random: hidden tensors whole, others in any runs.
    fn shares(&self, owners: usize, random: &mut StdRng) -> Vec<Share> {
        let mut shares = vec![Share::new(); owners];
        for (t, tensor) in self.tensors.iter().enumerate() {
            let blocks = tensor.block_count(&tensor.arrays[0]);
            let mut first = 0;
            while first < blocks {
                let count = random.random_range(1..=blocks - first);
                shares[random.random_range(0..owners)].push((t, first..first + count));
                first += count;
            }
        }
        shares
    }

    /// Writes the parts of a step, each as its own owner would, with values borrowed or owned.
    pub(crate) fn write_parts(&self, store: &Store, step: u64, owners: usize, random: &mut StdRng) -> Vec<PartEntry> {
        let mut entries = Vec::new();
        for share in self.shares(owners, random) {
            let mut part = Part::new();
            for (t, blocks) in share {
                let tensor = &self.tensors[t];
                for (a, array) in tensor.arrays.iter().enumerate() {
                    let borders: Vec<Range<usize>> = tensor.blocks(array).collect();
                    // An array of one block per tensor, such as a row for each row of a matrix, goes with the tensor.
                    let elements = borders[blocks.start].start..borders[blocks.end - 1].end;
                    let values = self.values(step, t, a, elements.clone());
                    part.add(tensor, &array.name, elements, values).unwrap();
                }
            }
            entries.push(store.write(&part.seal().unwrap()).unwrap());
        }
        entries
    }

    /// Writes and commits a checkpoint.
    pub(crate) fn write(&self, store: &Store, step: u64, owners: usize, random: &mut StdRng) -> CheckpointName {
        self.write_in_term(store, step, 1, owners, random)
    }

    pub(crate) fn write_in_term(
        &self,
        store: &Store,
        step: u64,
        term: u64,
        owners: usize,
        random: &mut StdRng,
    ) -> CheckpointName {
        let parts = self.write_parts(store, step, owners, random);
        let manifest = Manifest::new(self.run(step, term, 1), self.tensors.clone(), parts).unwrap();
        store.commit(&manifest).unwrap()
    }

    /// Reads everything as a world of `owners` would, each owner its own random pieces, and compares every bit.
    pub(crate) fn check(&self, reader: &Reader, owners: usize, random: &mut StdRng) {
        let step = reader.name().step;
        assert_eq!(reader.manifest().tensors(), self.tensors);
        assert_eq!(reader.manifest().run().cursor, step * 32);
        for share in self.shares(owners, random) {
            for (t, blocks) in share {
                let tensor = &self.tensors[t];
                for (a, array) in tensor.arrays.iter().enumerate() {
                    let borders: Vec<Range<usize>> = tensor.blocks(array).collect();
                    let whole = borders[blocks.start].start..borders[blocks.end - 1].end;
                    self.check_range(reader, t, a, whole);
                    let from = random.random_range(0..=array.elements());
                    let to = random.random_range(from..=array.elements());
                    self.check_range(reader, t, a, from..to);
                }
            }
        }
    }

    fn check_range(&self, reader: &Reader, t: usize, a: usize, elements: Range<usize>) {
        let (tensor, array) = (&self.tensors[t].name, &self.tensors[t].arrays[a].name);
        let mut read = vec![0.0; elements.len()];
        reader.read(tensor, array, elements.clone(), &mut read).unwrap();
        let expected = self.values(reader.name().step, t, a, elements.clone());
        let same = read.iter().zip(&expected).all(|(r, e)| r.to_bits() == e.to_bits());
        assert!(same, "{tensor}/{array}{elements:?} of {} was read wrong", reader.name());
    }

    /// Reads every array; what comes must be right or an error. Returns how many were refused.
    pub(crate) fn refusals(&self, reader: &Reader) -> usize {
        let mut refused = 0;
        for (t, tensor) in self.tensors.iter().enumerate() {
            for (a, array) in tensor.arrays.iter().enumerate() {
                let mut read = vec![0.0; array.elements()];
                if reader
                    .read(&tensor.name, &array.name, 0..array.elements(), &mut read)
                    .is_ok()
                {
                    self.check_range(reader, t, a, 0..array.elements());
                } else {
                    assert!(
                        read.iter().all(|value| value.is_nan()),
                        "values of a refused array were given out"
                    );
                    refused += 1;
                }
            }
        }
        refused
    }
}

fn tensor(number: usize, random: &mut StdRng) -> TensorEntry {
    let name = format!("layers.{number}.a \"name\" é");
    let arrays: &[&str] = [
        &["master"][..],
        &["master", "momentum"],
        &["master", "momentum", "second"],
    ]
    .choose(random)
    .unwrap();
    if random.random_bool(0.4) {
        let shape = [random.random_range(1..=60), random.random_range(1..=60)];
        let mut tensor = TensorEntry::new(&name, &shape, TensorKind::Hidden, arrays);
        if random.random_bool(0.5) {
            tensor.arrays.push(ArrayEntry {
                name: "rows".to_owned(),
                shape: vec![shape[0]],
            });
        }
        return tensor;
    }
    let shape = match random.random_range(0..6) {
        0 => vec![],
        1 => vec![random.random_range(1..300)],
        2 => vec![BLOCK],
        3 => vec![2, BLOCK / 2 + 1],
        4 => vec![BLOCK - 1],
        _ => vec![random.random_range(1..=5), random.random_range(1..=BLOCK)],
    };
    TensorEntry::new(&name, &shape, TensorKind::Other, arrays)
}

//! A run whose weights, gradients and optimiser are tensors of a device, here of the CPU, against the host's: the same
//! losses, and the same bits in every world.
#![allow(clippy::unwrap_used, missing_docs)]

use lockstep_autograd::{FlatBuffer, run_backward};
use lockstep_config::{OptimizerSection, Precision};
use lockstep_inventory::gpt2::Shape;
use lockstep_inventory::{Treatment, treatments};
use lockstep_kernels::real::{bf16, convert};
use lockstep_kernels::sums::block_hash;
use lockstep_optim::decision::{ModelState, TensorStep, decide, local_steps};
use lockstep_optim::piece::BLOCK;
use lockstep_optim::products::Products;
use lockstep_optim::settings::Optimizer;
use lockstep_optim::tensors::sums::Halving;
use lockstep_trainer::device::owned::{DeviceOwned, Stepped};
use lockstep_trainer::device::pending::Pending;
use lockstep_trainer::device::shard::{HostShard, Shard};
use lockstep_trainer::device::write_copy;
use lockstep_trainer::model::arithmetic::Arithmetic;
use lockstep_trainer::model::gpt2::Gpt2;
use lockstep_trainer::model::initial::values;
use lockstep_trainer::model::lane_losses::LaneLosses;
use lockstep_trainer::model::weights::Weights;
use lockstep_trainer::model::{Batch, Model, OpenGate};
use lockstep_trainer::sharding::layout::Layout;
use lockstep_trainer::sharding::owners::OwnerMap;
use lockstep_trainer::step::owned::{Kind, OfBlock, Owned, Probe};
use lockstep_trainer::step::update_slots::UpdateSlots;
use tch::Device;

/// Its embedding is more than one block, so that two ranks share it.
const SHAPE: Shape = Shape {
    layers: 1,
    heads: 2,
    width: 48,
    vocabulary: 1500,
    context: 24,
    bias: true,
    qk_norm: true,
};
const ROWS: usize = 2;
const COLUMNS: usize = 24;
const STEPS: u64 = 8;
const RATE: f64 = 1e-3;

/// All ranks of a world over one set of buffers: what a collective would bring is there.
struct World {
    model: Gpt2,
    layout: Layout,
    treatments: Vec<Treatment>,
    optimizer: Optimizer,
    weights: Weights,
    shards: Vec<Shard>,
    slots: UpdateSlots,
    state: ModelState,
    losses: LaneLosses,
}

/// What a step leaves.
#[derive(Debug, PartialEq)]
struct Outcome {
    loss: f64,
    square: f64,
    hash: [u8; 32],
    orthogonality: f64,
    effective: f64,
}

impl World {
    fn new(arithmetic: Arithmetic, keys: &str, products: Products, world: u32) -> World {
        tch::set_num_threads(1);
        let model = Gpt2::new(SHAPE);
        let section = OptimizerSection::parse(keys.parse().unwrap(), "device.rs", Precision::Fp32).unwrap();
        let treatments = treatments(&section, model.inventory(), Some(24)).unwrap();
        let layout = Layout::new(model.inventory(), &treatments, products != Products::Float32);
        let map = OwnerMap::new(&treatments, &layout, world);
        let optimizer = Optimizer::new(&section);
        let mut working = FlatBuffer::heap(layout.working_bytes).unwrap();
        let gradients = FlatBuffer::heap(layout.gradient_elements * 4).unwrap();
        for (spec, place) in model.inventory().iter().zip(&layout.places) {
            let initial = values(spec, 5);
            match (arithmetic, place.bf16) {
                (Arithmetic::Tensors, _) => write_copy(&working, place, &initial).unwrap(),
                (Arithmetic::Host, true) => {
                    let copies = working.slice_mut::<bf16>(place.working.start, initial.len());
                    convert::<f32, bf16>(&initial, copies.unwrap());
                }
                (Arithmetic::Host, false) => {
                    let copies = working.slice_mut::<f32>(place.working.start, initial.len());
                    copies.unwrap().copy_from_slice(&initial);
                }
            }
        }
        let tensors = || {
            model
                .inventory()
                .iter()
                .zip(&treatments)
                .zip(&layout.places)
                .enumerate()
        };
        let shard = |rank: u32| match arithmetic {
            Arithmetic::Host => {
                let mut owned = Owned::new(optimizer.clone(), map.clone(), rank);
                for (tensor, ((spec, treatment), place)) in tensors() {
                    owned.start(tensor, spec, treatment, place, &values(spec, 5));
                }
                Shard::Host(Box::new(HostShard {
                    owned,
                    layout: layout.clone(),
                    gradients: gradients.clone(),
                    working: working.clone(),
                }))
            }
            Arithmetic::Tensors => {
                let sums = Box::new(Halving);
                let mut owned = DeviceOwned::new(optimizer.clone(), map.clone(), rank, Device::Cpu, sums);
                for (tensor, (of, place)) in tensors() {
                    let buffers = (&gradients, &working);
                    owned.start(tensor, of, place, &values(of.0, 5), buffers).unwrap();
                }
                Shard::Device(Box::new(owned))
            }
        };
        let shards = (0..world).map(shard).collect();
        let weights = Weights::in_buffers(
            (model.inventory(), &layout),
            products,
            arithmetic,
            &working,
            std::slice::from_ref(&gradients),
        );
        World {
            weights: weights.unwrap(),
            slots: UpdateSlots::new(&layout, &map, &optimizer, false),
            losses: LaneLosses::new(1, Device::Cpu).unwrap(),
            state: ModelState::default(),
            model,
            layout,
            treatments,
            optimizer,
            shards,
        }
    }

    /// Two micro-batches, forward and backward: Σ loss and the count of its tokens.
    fn accumulate(&mut self, step: u64) -> (f64, usize) {
        self.weights.begin_lane(0, false).unwrap();
        self.losses.clear().unwrap();
        for index in 0..2 {
            let token = |at: usize| ((at as u64 * 7919 + (step * 2 + index) * 104_729) % 977 % 61) as i64;
            let tokens: Vec<i64> = (0..=ROWS * COLUMNS).map(token).collect();
            let batch = Batch {
                rows: ROWS,
                columns: COLUMNS,
                inputs: &tokens[..ROWS * COLUMNS],
                targets: &tokens[1..],
            };
            let loss = self.model.loss(&self.weights, batch, &mut OpenGate).unwrap();
            run_backward(&loss).unwrap();
            self.losses.add(0, &loss).unwrap();
        }
        assert!(self.weights.end_lane().unwrap().is_empty());
        (self.losses.sums().unwrap().read().unwrap()[0], 2 * ROWS * COLUMNS)
    }

    fn square_sums(&self) -> Vec<OfBlock<(f64, u64)>> {
        let all = self.shards.iter().map(|shard| shard.square_sums().unwrap()).collect();
        let mut sums = Pending::joined(all).unwrap().read().unwrap().concat();
        sums.sort_by_key(|(block, _)| *block);
        let blocks: Vec<usize> = sums.iter().map(|(block, _)| *block).collect();
        assert_eq!(blocks, (0..self.layout.blocks).collect::<Vec<_>>());
        sums
    }

    /// Bucket by bucket, read once.
    fn step_by_bucket(&mut self, scale: f32, steps: &[TensorStep], probe: Probe) -> Vec<Stepped> {
        let mut all = Vec::new();
        for bucket in &self.layout.buckets {
            for kind in [Kind::Hidden, Kind::Other] {
                for shard in &mut self.shards {
                    all.push(shard.step_in(&bucket.elements, kind, scale, steps, probe).unwrap());
                }
            }
        }
        Pending::joined(all).unwrap().read().unwrap()
    }

    fn step(&mut self, step: u64) -> Outcome {
        let (loss, tokens) = self.accumulate(step);
        let (loss, sums) = (loss / tokens as f64, self.square_sums());
        assert!(sums.iter().all(|(_, (_, bad))| *bad == 0));
        let scale = (1.0 / tokens as f64) as f32;
        let probe = self.slots.begin(step);
        let effective = match self.optimizer.is_global() {
            true => {
                for shard in &mut self.shards {
                    let prepared = shard.prepare(scale, probe).unwrap().read().unwrap();
                    self.slots.record_prepared(&prepared);
                }
                let totals = self.slots.prepared(self.model.inventory(), probe).unwrap();
                let (optimizer, treatments) = (&self.optimizer, &self.treatments);
                let (decision, state) =
                    decide(optimizer, treatments, self.state, RATE, loss, &totals.measured).unwrap();
                self.state = state;
                for shard in &mut self.shards {
                    let applied = shard.apply(scale, &decision.steps).unwrap().read().unwrap();
                    self.slots.record_applied(&applied);
                }
                decision.effective_learning_rate
            }
            false => {
                let decision = local_steps(&self.optimizer, &self.treatments, RATE);
                for (prepared, applied) in self.step_by_bucket(scale, &decision.steps, probe) {
                    self.slots.record_prepared(&prepared);
                    self.slots.record_applied(&applied);
                }
                decision.effective_learning_rate
            }
        };
        let totals = self.slots.prepared(self.model.inventory(), probe).unwrap();
        Outcome {
            loss,
            square: sums.iter().map(|(_, (square, _))| square).sum(),
            hash: self.slots.applied().0,
            orthogonality: totals.orthogonality.map_or(0.0, |(_, error)| error),
            effective,
        }
    }

    fn run(&mut self) -> Vec<Outcome> {
        (1..=STEPS).map(|step| self.step(step)).collect()
    }

    /// Every master at its place, and the hash of every block.
    fn masters(&self) -> (Vec<f32>, Vec<OfBlock<u64>>) {
        let mut buffer = FlatBuffer::heap(self.layout.gradient_elements * 4).unwrap();
        let mut hashes = Vec::new();
        for shard in &self.shards {
            hashes.extend(shard.hashes().unwrap().read().unwrap());
            match shard {
                Shard::Host(host) => host.owned.write_masters(&mut buffer).unwrap(),
                Shard::Device(owned) => owned.write_masters(&buffer).unwrap(),
            }
        }
        hashes.sort_unstable();
        (
            buffer.slice::<f32>(0, self.layout.gradient_elements).unwrap().to_vec(),
            hashes,
        )
    }
}

const METHODS: [&str; 5] = [
    "method = \"muonmax\"\nmomo = { lower_bound = 0.0 }\nhidden = [\"!*.norm*\", { match = \"*.qkv.weight\", split = 3 }, \"blocks.*.weight\"]",
    "method = \"muon\"\nweight_decay = 0.1",
    "method = \"normuon\"",
    "method = \"adamw\"",
    "method = \"momo\"",
];

#[test]
fn a_run_on_tensors_follows_the_host_step_by_step() {
    for keys in METHODS {
        // In bf16 every element of a gradient is a few hundredths apart, and a polar factor takes small ones as seriously as
        // large ones.
        for (products, near, masters_near) in [(Products::Float32, 1e-4, 1e-4), (Products::NativeBf16, 1e-2, 5e-2)] {
            let [mut host, mut device] =
                [Arithmetic::Host, Arithmetic::Tensors].map(|set| World::new(set, keys, products, 1));
            for (step, (host, device)) in host.run().iter().zip(&device.run()).enumerate() {
                let place = format!("step {step} in {products:?} under\n{keys}\n{host:?}\n{device:?}");
                for (ours, theirs) in [
                    (device.loss, host.loss),
                    (device.effective, host.effective),
                    (device.square.sqrt(), host.square.sqrt()),
                ] {
                    let limit = if ours == device.loss { near / 10.0 } else { near };
                    assert!((ours / theirs - 1.0).abs() < limit, "{ours} {theirs}: {place}");
                }
                assert!(
                    (device.orthogonality - host.orthogonality).abs() < 10.0 * near,
                    "{place}"
                );
            }
            let ((ours, hashes), (theirs, _)) = (device.masters(), host.masters());
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let apart = norm(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b)) / norm(&mut theirs.iter().copied());
            println!("{products:?}: masters are {apart:.1e} apart under {keys:?}");
            assert!(
                apart < masters_near,
                "masters are {apart} apart in {products:?} under\n{keys}"
            );
            for place in &device.layout.places {
                for block in place.blocks.clone() {
                    let elements = Layout::block_elements(place, block);
                    assert_eq!(hashes[block], (block, block_hash(&ours[elements])));
                }
            }
        }
    }
}

#[test]
fn a_run_on_tensors_has_the_same_bits_in_every_world() {
    for keys in METHODS {
        let new = |world| World::new(Arithmetic::Tensors, keys, Products::NativeBf16, world);
        let mut alone = new(1);
        let shared = alone
            .layout
            .places
            .iter()
            .any(|place| !place.hidden && place.blocks.len() > 1);
        assert!(shared, "a tensor of more than {BLOCK} elements");
        let expected = alone.run();
        for world in [2, 3] {
            let mut several = new(world);
            assert_eq!(several.run(), expected, "{world} ranks under\n{keys}");
            assert_eq!(several.masters(), alone.masters());
        }
    }
}

/// Whether a word is used as a call, in code before the tests of a file.
fn calls(source: &str, word: &str) -> bool {
    let code = source.split("#[cfg(test)]").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.into_iter().any(|line| line.contains(word))
}

#[test]
fn nothing_on_the_way_of_a_step_reads_a_value_of_the_device() {
    macro_rules! sources {
        ($($path:literal),*) => { [$(($path, include_str!($path))),*] };
    }
    let sources = sources![
        "../src/model/tensors.rs",
        "../src/model/gpt2.rs",
        "../src/device/mod.rs",
        "../src/device/owned.rs",
        "../src/step/mod.rs",
        "../src/step/filling.rs",
        "../src/step/gathering.rs",
        "../src/step/updating.rs",
        "../autograd/src/device/collectives.rs",
        "../optim/src/tensors/application.rs",
        "../optim/src/tensors/hidden.rs",
        "../optim/src/tensors/other.rs",
        "../optim/src/tensors/piece.rs",
        "../optim/src/tensors/sums.rs"
    ];
    let reads = [
        "_value(",
        "synchroni",
        "try_from(",
        "elements::<",
        "elements_mut",
        "Device::Cpu",
        ".print(",
        "f_nonzero",
        "f_equal",
    ];
    for (path, source) in sources {
        for word in reads {
            assert!(
                !calls(source, word),
                "{path} uses {word}: the device would be waited for"
            );
        }
    }
    assert!(
        calls(include_str!("../optim/src/tensors/table.rs"), "try_from("),
        "what reads is found"
    );
}

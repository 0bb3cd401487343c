//! Recorded gradients, made by a seeded generator, and their way through the optimiser's replay.
//!
//! Gradients of matrices are low rank plus noise and drift from step to step, as those of networks do. The noise keeps every
//! singular value of the momentum far above the rounding of float32, and in square matrices a constant diagonal does (a test
//! says how far): the polar factor of a matrix with singular values near 0 hangs on bits that float32 does not hold, and no
//! comparison of factors would mean anything.

pub mod case;

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tch::Tensor;

/// Steps of every recording.
pub const STEPS: usize = 15;

/// The step whose mini-batch has a far smaller loss than the others, so that the model can fall below a bound.
const DIP: usize = 9;

/// A recorded tensor.
pub struct Recorded {
    pub name: &'static str,
    pub shape: &'static [i64],
    /// Whether the optimiser takes it as hidden.
    pub hidden: bool,
    /// Size of its gradients.
    scale: f64,
}

const fn hidden(name: &'static str, shape: &'static [i64], scale: f64) -> Recorded {
    Recorded {
        name,
        shape,
        hidden: true,
        scale,
    }
}

const fn other(name: &'static str, shape: &'static [i64], scale: f64) -> Recorded {
    Recorded {
        name,
        shape,
        hidden: false,
        scale,
    }
}

/// Matrices of all shapes; a vector of more than two of the optimiser's blocks of 65,536 elements, and one of one element.
pub const TENSORS: [Recorded; 10] = [
    hidden("layers.tall", &[48, 20], 0.3),
    hidden("layers.wide", &[16, 40], 0.3),
    hidden("layers.square", &[24, 24], 0.3),
    hidden("layers.row", &[1, 32], 1.0),
    hidden("layers.column", &[18, 1], 1.0),
    hidden("layers.conv", &[8, 4, 3], 0.3),
    other("embedding", &[30, 9], 0.1),
    other("long", &[140_001], 3e-4),
    other("bias", &[37], 0.5),
    other("gain", &[1], 5.0),
];

/// Parameters, gradients and losses, as float32 values.
pub struct Recording {
    /// By tensor.
    pub start: Vec<Vec<f32>>,
    /// By step and tensor.
    pub gradients: Vec<Vec<Vec<f32>>>,
    pub losses: Vec<f32>,
}

/// A standard normal number (Box and Muller).
pub fn gaussian(random: &mut StdRng) -> f64 {
    let (u, angle): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

fn gaussians(random: &mut StdRng, count: usize) -> Vec<f64> {
    (0..count).map(|_| gaussian(random)).collect()
}

impl Recording {
    /// Prints the seed.
    pub fn new(seed: u64) -> Recording {
        // As in training; small tensors gain nothing, and threads that wait for each other on a busy machine lose much.
        tch::set_num_threads(1);
        println!("recorded gradients of seed {seed}");
        let random = &mut StdRng::seed_from_u64(seed);
        let mut gradients: Vec<Vec<Vec<f32>>> = (0..STEPS).map(|_| Vec::new()).collect();
        let mut start = Vec::new();
        for tensor in &TENSORS {
            let rows = tensor.shape[0] as usize;
            let count = tensor.shape.iter().product::<i64>() as usize;
            let columns = count / rows;
            // Not much larger than a step, some of which are 1e-6 long: a difference of float32 values is no finer than
            // their spacing, and this one is to say how far a step went to a thousandth.
            start.push(gaussians(random, count).iter().map(|x| (x * 1e-5) as f32).collect());
            // Rank two: Σ uᵣ(step)·vᵣᵀ, where u turns from one direction towards another.
            let rank = 2;
            let from = gaussians(random, rows * rank);
            let towards = gaussians(random, rows * rank);
            let right = gaussians(random, columns * rank);
            for (step, gradients) in gradients.iter_mut().enumerate() {
                let angle = step as f64 * 0.1;
                let noise = gaussians(random, count);
                let element = |i: usize| {
                    let (row, column) = (i / columns, i % columns);
                    let low_rank: f64 = (0..rank)
                        .map(|r| {
                            let left = from[row * rank + r] * angle.cos() + towards[row * rank + r] * angle.sin();
                            left * right[column * rank + r]
                        })
                        .sum();
                    let diagonal = if row == column { 4.0 } else { 0.0 };
                    (tensor.scale * (low_rank + diagonal + 0.5 * noise[i])) as f32
                };
                gradients.push((0..count).map(element).collect());
            }
        }
        let losses = (0..STEPS)
            .map(|step| match step {
                DIP => 1.0,
                _ => (4.0 - 0.02 * step as f64 + 0.05 * gaussian(random)) as f32,
            })
            .collect();
        Recording {
            start,
            gradients,
            losses,
        }
    }

    fn double(values: &[f32], tensor: usize) -> Tensor {
        let doubles: Vec<f64> = values.iter().map(|x| f64::from(*x)).collect();
        Tensor::from_slice(&doubles).reshape(TENSORS[tensor].shape)
    }

    /// The first parameters of a tensor, float64.
    pub fn start(&self, tensor: usize) -> Tensor {
        Self::double(&self.start[tensor], tensor)
    }

    /// All gradients of a step, float64.
    pub fn gradients(&self, step: usize) -> Vec<Tensor> {
        let gradients = self.gradients[step].iter().enumerate();
        gradients.map(|(tensor, values)| Self::double(values, tensor)).collect()
    }

    /// The input of a replay.
    pub fn safetensors(&self) -> Vec<u8> {
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let shape = |tensor: usize| TENSORS[tensor].shape.iter().map(|n| *n as usize).collect::<Vec<_>>();
        let mut all = vec![("loss".to_owned(), vec![STEPS], bytes(&self.losses))];
        for (tensor, recorded) in TENSORS.iter().enumerate() {
            let name = recorded.name;
            all.push((format!("param.{name}"), shape(tensor), bytes(&self.start[tensor])));
            for (step, gradients) in self.gradients.iter().enumerate() {
                all.push((format!("grad.{step}.{name}"), shape(tensor), bytes(&gradients[tensor])));
            }
        }
        let views = all
            .iter()
            .map(|(name, shape, data)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    /// Replays under `[optimizer]` keys; the hidden tensors are those of [`TENSORS`] unless a key says otherwise.
    pub fn replay(&self, learning_rate: f64, optimizer: &str) -> Replayed {
        let hidden: Vec<&str> = TENSORS.iter().filter(|t| t.hidden).map(|t| t.name).collect();
        let case = format!("lr = {learning_rate:?}\nhidden = {hidden:?}\n[optimizer]\n{optimizer}");
        let bytes = lockstep_optim::replay::replay(&case, "family.rs", &self.safetensors())
            .unwrap_or_else(|error| panic!("{error}\n{case}"));
        Replayed::read(self, bytes)
    }
}

/// What a replay gave.
pub struct Replayed {
    pub bytes: Vec<u8>,
    /// By step, the first being the start, and tensor: float64.
    pub parameters: Vec<Vec<Tensor>>,
    /// By step.
    pub effective: Vec<f64>,
}

impl Replayed {
    fn read(recording: &Recording, bytes: Vec<u8>) -> Replayed {
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let found: HashMap<String, Vec<f32>> = file
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let floats = view.data().chunks_exact(4);
                let floats = floats.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                (name, floats.collect())
            })
            .collect();
        let mut parameters = vec![(0..TENSORS.len()).map(|tensor| recording.start(tensor)).collect()];
        for step in 0..STEPS {
            let tensors = TENSORS.iter().enumerate();
            let of_step =
                tensors.map(|(i, tensor)| Recording::double(&found[&format!("param.{step}.{}", tensor.name)], i));
            parameters.push(of_step.collect());
        }
        let effective = found["effective_lr"].iter().map(|rate| f64::from(*rate)).collect();
        Replayed {
            bytes,
            parameters,
            effective,
        }
    }

    /// What a step changed in a tensor.
    pub fn update(&self, step: usize, tensor: usize) -> Tensor {
        &self.parameters[step + 1][tensor] - &self.parameters[step][tensor]
    }
}

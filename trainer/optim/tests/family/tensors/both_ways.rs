//! The recorded gradients through the pieces over slices and through those over tensors, each with sums and a model of the
//! loss of its own, and how far apart their updates are.

use lockstep_config::{OptimizerSection, Precision};
use lockstep_inventory::{Initial, Role, TensorSpec, Treatment, treatments};
use lockstep_optim::decision::{Decision, Measured, ModelState, TensorStep, decide, local_steps};
use lockstep_optim::piece::{BLOCK, Piece};
use lockstep_optim::results::Applied;
use lockstep_optim::settings::Optimizer;
use lockstep_optim::tensors::piece::{GradientSum, TensorPiece};
use lockstep_optim::tensors::results;
use lockstep_optim::tensors::sums::Halving;
use lockstep_optim::tensors::table::read;
use tch::Tensor;

use crate::recorded::{Recording, STEPS, TENSORS};

/// Clip factor ÷ token count; [`sums`] are the recorded gradients divided by it.
pub const SCALE: f32 = 0.5;

/// The gradient sums of a step whose means are the recorded gradients.
pub fn sums(recording: &Recording, step: usize) -> Vec<Vec<f32>> {
    let doubled = |gradient: &Vec<f32>| gradient.iter().map(|g| g / SCALE).collect();
    recording.gradients[step].iter().map(doubled).collect()
}

/// A learning rate and `[optimizer]` keys, laid over the recorded tensors.
pub struct Rules {
    pub keys: String,
    pub rate: f64,
    pub optimizer: Optimizer,
    pub treatments: Vec<Treatment>,
}

impl Rules {
    pub fn new(rate: f64, keys: &str) -> Rules {
        let section = OptimizerSection::parse(keys.parse().unwrap(), "tensors.rs", Precision::Fp32)
            .unwrap_or_else(|error| panic!("{error}\n{keys}"));
        let inventory: Vec<TensorSpec> = TENSORS
            .iter()
            .map(|tensor| TensorSpec {
                name: tensor.name.to_owned(),
                shape: tensor.shape.to_vec(),
                layer: 0,
                role: if tensor.hidden { Role::Hidden } else { Role::Embedding },
                initial: Initial::Zeros,
            })
            .collect();
        Rules {
            keys: keys.to_owned(),
            rate,
            treatments: treatments(&section, &inventory, None).unwrap(),
            optimizer: Optimizer::new(&section),
        }
    }

    pub fn local_steps(&self) -> Decision {
        local_steps(&self.optimizer, &self.treatments, self.rate)
    }

    /// The steps of all tensors, by way of the model if there is one.
    fn decide(&self, state: &mut ModelState, loss: f64, measured: &[Measured]) -> Decision {
        if !self.optimizer.is_global() {
            return self.local_steps();
        }
        let (decision, next) = decide(&self.optimizer, &self.treatments, *state, self.rate, loss, measured).unwrap();
        *state = next;
        decision
    }
}

/// What a step left, by tensor.
pub struct Step {
    pub masters: Vec<Vec<f32>>,
    pub applied: Vec<Vec<Applied>>,
    pub effective: f64,
}

fn floats(values: &Tensor) -> Vec<f32> {
    Vec::try_from(values.flatten(0, -1)).unwrap()
}

/// The recording through the pieces over slices.
fn on_slices(recording: &Recording, rules: &Rules) -> Vec<Step> {
    let Rules {
        optimizer, treatments, ..
    } = rules;
    let mut pieces: Vec<Piece> = TENSORS
        .iter()
        .zip(treatments)
        .zip(&recording.start)
        .map(|((tensor, treatment), start)| Piece::new(tensor.name, treatment, start, optimizer))
        .collect();
    let mut working = recording.start.clone();
    let mut state = ModelState::default();
    let run = |step: usize| {
        let gradients = sums(recording, step);
        let mut measured = Vec::new();
        for ((piece, gradient), working) in pieces.iter_mut().zip(&gradients).zip(&working) {
            let prepared = piece.prepare(gradient, SCALE, working, optimizer, None).unwrap();
            let sum = |value: fn(&lockstep_optim::results::BlockSums) -> f64| prepared.blocks.iter().map(value).sum();
            measured.push(Measured {
                duals: match piece {
                    Piece::Hidden(_) => prepared.duals.clone(),
                    Piece::Other(_) => vec![sum(|sums| sums.dual)],
                },
                gradient_dot: sum(|sums| sums.gradient_dot),
                momentum_dot: sum(|sums| sums.momentum_dot),
            });
        }
        let decision = rules.decide(&mut state, f64::from(recording.losses[step]), &measured);
        let mut applied = Vec::new();
        for (tensor, piece) in pieces.iter_mut().enumerate() {
            let step = &decision.steps[tensor];
            let gradient = &gradients[tensor];
            applied.push(
                piece
                    .apply(gradient, SCALE, step, optimizer, &mut working[tensor])
                    .unwrap(),
            );
        }
        Step {
            masters: pieces.iter().map(|piece| piece.master().to_vec()).collect(),
            applied,
            effective: decision.effective_learning_rate,
        }
    };
    (0..STEPS).map(run).collect()
}

/// One tensor on its device, whole or cut after some of its blocks.
struct Cut {
    pieces: Vec<(TensorPiece, i64, i64)>,
    working: Tensor,
}

impl Cut {
    fn new(tensor: usize, recording: &Recording, rules: &Rules, first_blocks: usize) -> Cut {
        let start = Tensor::from_slice(&recording.start[tensor]);
        let count = start.numel();
        let border = match rules.treatments[tensor].is_hidden() {
            true => count,
            false => (first_blocks * BLOCK).min(count),
        };
        let pieces = [(0, border), (border, count)]
            .into_iter()
            .filter(|(from, to)| from < to)
            .map(|(from, to)| {
                let (from, length) = (from as i64, (to - from) as i64);
                let (name, treatment) = (TENSORS[tensor].name, &rules.treatments[tensor]);
                let master = start.narrow(0, from, length);
                let piece = TensorPiece::new(name, treatment, &master, &rules.optimizer).unwrap();
                (piece, from, length)
            });
        Cut {
            pieces: pieces.collect(),
            working: start,
        }
    }

    fn master(&self) -> Tensor {
        let parts: Vec<Tensor> = self
            .pieces
            .iter()
            .map(|(piece, ..)| piece.master().flatten(0, -1))
            .collect();
        Tensor::cat(&parts, 0)
    }

    fn prepare(&mut self, gradient: &Tensor, rules: &Rules) -> Measured {
        let mut measured = Measured::default();
        let numbers = |values: Option<Tensor>| -> Vec<f64> {
            let words = values.map(|values| read(&values).unwrap()).unwrap_or_default();
            words.into_iter().map(f64::from_bits).collect()
        };
        let (mut block_duals, mut gradient_dots, mut momentum_dots) = (Vec::new(), Vec::new(), Vec::new());
        for (piece, from, length) in &mut self.pieces {
            let gradient = GradientSum {
                sum: &gradient.narrow(0, *from, *length),
                scale: SCALE,
            };
            let working = self.working.narrow(0, *from, *length);
            let prepared = piece
                .prepare(gradient, &working, &rules.optimizer, &Halving, None)
                .unwrap();
            measured.duals.extend(numbers(prepared.duals));
            block_duals.extend(numbers(prepared.block_duals));
            gradient_dots.extend(numbers(prepared.gradient_dots));
            momentum_dots.extend(numbers(prepared.momentum_dots));
        }
        if measured.duals.is_empty() {
            measured.duals.push(block_duals.iter().sum());
        }
        // Block after block, as the slots are added.
        measured.gradient_dot = gradient_dots.iter().sum();
        measured.momentum_dot = momentum_dots.iter().sum();
        measured
    }

    fn apply(&mut self, gradient: &Tensor, step: &TensorStep, rules: &Rules) -> Vec<Applied> {
        let mut out = Vec::new();
        for (piece, from, length) in &mut self.pieces {
            let gradient = GradientSum {
                sum: &gradient.narrow(0, *from, *length),
                scale: SCALE,
            };
            let mut working = self.working.narrow(0, *from, *length);
            let applied = piece
                .apply(gradient, step, &rules.optimizer, &Halving, &mut working)
                .unwrap();
            let results::Applied { hashes, square_sums } = applied;
            assert!(hashes.equal(&piece.hashes(&Halving).unwrap()));
            let pairs = read(&hashes).unwrap().into_iter().zip(read(&square_sums).unwrap());
            out.extend(pairs.map(|(hash, square_sum)| Applied {
                hash,
                square_sum: f64::from_bits(square_sum),
            }));
        }
        assert!(
            self.working.equal(&self.master()),
            "the working copy is the master in float32"
        );
        out
    }
}

/// As blocks before a cut: none.
pub const WHOLE: usize = usize::MAX / BLOCK;

/// The first `steps` steps of the recording through the pieces over tensors, other tensors cut after `first_blocks` blocks.
pub fn on_tensors(recording: &Recording, rules: &Rules, first_blocks: usize, steps: usize) -> Vec<Step> {
    let mut cuts: Vec<Cut> = (0..TENSORS.len())
        .map(|tensor| Cut::new(tensor, recording, rules, first_blocks))
        .collect();
    let mut state = ModelState::default();
    let run = |step: usize| {
        let gradients: Vec<Tensor> = sums(recording, step).iter().map(|g| Tensor::from_slice(g)).collect();
        let pairs = cuts.iter_mut().zip(&gradients);
        let measured: Vec<Measured> = pairs.map(|(cut, gradient)| cut.prepare(gradient, rules)).collect();
        let decision = rules.decide(&mut state, f64::from(recording.losses[step]), &measured);
        let applied = cuts
            .iter_mut()
            .zip(&gradients)
            .zip(&decision.steps)
            .map(|((cut, gradient), step)| cut.apply(gradient, step, rules))
            .collect();
        Step {
            masters: cuts.iter().map(|cut| floats(&cut.master())).collect(),
            applied,
            effective: decision.effective_learning_rate,
        }
    };
    (0..steps).map(run).collect()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

/// The largest distance between the updates of both as a part of the update, over all steps and tensors.
pub fn most_apart(recording: &Recording, rules: &Rules) -> f64 {
    let (host, device) = (on_slices(recording, rules), on_tensors(recording, rules, WHOLE, STEPS));
    let mut most = 0.0f64;
    let (mut host_old, mut device_old) = (&recording.start, &recording.start);
    for (step, (host, device)) in host.iter().zip(&device).enumerate() {
        let rates = (host.effective - device.effective).abs();
        assert!(rates <= 1e-6 * host.effective, "step {step} of\n{}", rules.keys);
        for (tensor, recorded) in TENSORS.iter().enumerate() {
            let update = |new: &[f32], old: &[f32]| -> Vec<f64> {
                new.iter()
                    .zip(old)
                    .map(|(new, old)| f64::from(*new) - f64::from(*old))
                    .collect()
            };
            let ours = update(&device.masters[tensor], &device_old[tensor]);
            let theirs = update(&host.masters[tensor], &host_old[tensor]);
            let size = norm(theirs.iter().copied());
            let apart = norm(ours.iter().zip(&theirs).map(|(a, b)| a - b));
            assert!(size > 0.0 || host.effective == 0.0, "{} did not move", recorded.name);
            if size > 0.0 {
                // Float32 holds a parameter to 6e-8 of itself, and so an update that is far smaller no better than that.
                let held = norm(host.masters[tensor].iter().map(|p| f64::from(*p))) / 100.0;
                most = most.max(apart / size.max(held));
            }
            let blocks = device.masters[tensor].chunks(match rules.treatments[tensor].is_hidden() {
                true => usize::MAX,
                false => BLOCK,
            });
            for ((block, ours), theirs) in blocks.zip(&device.applied[tensor]).zip(&host.applied[tensor]) {
                assert_eq!(
                    ours.hash,
                    lockstep_kernels::sums::block_hash(block),
                    "{}",
                    recorded.name
                );
                let near = (ours.square_sum - theirs.square_sum).abs() <= 1e-4 * theirs.square_sum;
                assert!(near, "{}: {ours:?} {theirs:?}", recorded.name);
            }
        }
        (host_old, device_old) = (&host.masters, &device.masters);
    }
    most
}

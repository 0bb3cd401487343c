//! Recorded gradients through the optimiser, on one process: what training does with them, without the training.
//!
//! Data flows: a case (TOML: `lr`, `hidden`, `[optimizer]`) and a safetensors file (`param.NAME`, `grad.K.NAME` for steps
//! K = 0…, `loss`) → [`Single`], which holds every tensor as an owner would → `param.K.NAME` after each step and
//! `effective_lr`. All float32.

use std::collections::BTreeMap;

use lockstep_config::{ConfigError, OptimizerSection, Precision};
use lockstep_inventory::{Initial, Role, TensorSpec, Treatment, TreatmentError, treatments};
use lockstep_kernels::sums::square_sum;
use safetensors::{Dtype, SafeTensors};
use toml::{Table, Value};

use crate::OptimError;
use crate::decision::{Decision, Measured, ModelState, decide, local_steps};
use crate::piece::{BLOCK, Piece};
use crate::settings::Optimizer;

/// Why a case cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The case is not TOML, or a key of it is missing or wrong.
    #[error("{origin}: {reason}")]
    Case {
        /// The file.
        origin: String,
        /// What and what to do.
        reason: String,
    },
    /// A key of `[optimizer]`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A rule about tensors.
    #[error("{origin}: {error}")]
    Rules {
        /// The file.
        origin: String,
        /// The rule.
        error: Box<TreatmentError>,
    },
    /// The recorded tensors cannot be used.
    #[error("the recorded tensors: {0}")]
    Input(String),
    /// A step failed.
    #[error("step {step}: {error}")]
    Step {
        /// The step, from 0.
        step: usize,
        /// Why.
        error: OptimError,
    },
}

/// Every tensor at one owner: the optimiser without ranks.
pub struct Single {
    optimizer: Optimizer,
    treatments: Vec<Treatment>,
    pieces: Vec<Piece>,
    working: Vec<Vec<f32>>,
    model: ModelState,
}

impl Single {
    /// Tensors `(name, initial values)` in the order of `treatments`.
    pub fn new(optimizer: Optimizer, treatments: Vec<Treatment>, tensors: &[(&str, &[f32])]) -> Single {
        let pieces = tensors
            .iter()
            .zip(&treatments)
            .map(|((name, values), treatment)| Piece::new(name, treatment, values, &optimizer))
            .collect();
        Single {
            optimizer,
            treatments,
            pieces,
            working: tensors.iter().map(|(_, values)| values.to_vec()).collect(),
            model: ModelState::default(),
        }
    }

    /// One step with the mean gradients of all tensors and the loss at the parameters.
    ///
    /// # Errors
    /// A gradient, a factor or the model that is not finite.
    pub fn step(&mut self, gradients: &[&[f32]], loss: f64, learning_rate: f64) -> Result<Decision, OptimError> {
        let mut square = 0.0;
        for gradient in gradients {
            for block in gradient.chunks(BLOCK) {
                let (sum, bad) = square_sum(block);
                if bad > 0 {
                    return Err(OptimError::NotFinite {
                        what: format!("{bad} gradient values"),
                    });
                }
                square += sum;
            }
        }
        let scale = match self.optimizer.keys().clip_norm {
            Some(limit) if square.sqrt() > limit => (limit / square.sqrt()) as f32,
            _ => 1.0,
        };
        let optimizer = &self.optimizer;
        let mut measured = Vec::new();
        for ((piece, gradient), working) in self.pieces.iter_mut().zip(gradients).zip(&self.working) {
            let prepared = piece.prepare(gradient, scale, working, optimizer, None)?;
            let mut sums = Measured::default();
            let mut dual = 0.0;
            for block in &prepared.blocks {
                dual += block.dual;
                sums.gradient_dot += block.gradient_dot;
                sums.momentum_dot += block.momentum_dot;
            }
            sums.duals = match piece {
                Piece::Hidden(_) => prepared.duals,
                Piece::Other(_) => vec![dual],
            };
            measured.push(sums);
        }
        let decision = match optimizer.is_global() {
            true => {
                let (decision, model) =
                    decide(optimizer, &self.treatments, self.model, learning_rate, loss, &measured)?;
                self.model = model;
                decision
            }
            false => local_steps(optimizer, &self.treatments, learning_rate),
        };
        let tensors = self.pieces.iter_mut().zip(gradients).zip(&mut self.working);
        for (((piece, gradient), working), step) in tensors.zip(&decision.steps) {
            piece.apply(gradient, scale, step, optimizer, working)?;
        }
        Ok(decision)
    }

    /// The parameters of a tensor.
    pub fn master(&self, tensor: usize) -> &[f32] {
        self.pieces[tensor].master()
    }
}

/// Replays `input` (the bytes of a safetensors file) under `case` and returns the bytes of the file of results. `origin`
/// names the case in errors.
///
/// # Errors
/// One sentence about what is missing or wrong in the case or the file; a step that fails.
pub fn replay(case: &str, origin: &str, input: &[u8]) -> Result<Vec<u8>, ReplayError> {
    let case = Case::read(case, origin)?;
    let file =
        SafeTensors::deserialize(input).map_err(|error| ReplayError::Input(format!("not safetensors: {error}")))?;
    let recorded = Recorded::read(&file)?;
    let inventory = recorded.inventory(&case.hidden)?;
    let rules = treatments(&case.optimizer, &inventory, None).map_err(|error| ReplayError::Rules {
        origin: origin.to_owned(),
        error: Box::new(error),
    })?;
    if recorded.losses.is_empty() && case.optimizer.momo.is_some() {
        return Err(ReplayError::Input(
            "there is no `loss`, which a model of the loss needs; record one value a step".to_owned(),
        ));
    }
    let optimizer = Optimizer::new(&case.optimizer);
    let tensors: Vec<(&str, &[f32])> = recorded
        .parameters
        .iter()
        .map(|(name, (_, values))| (name.as_str(), &values[..]))
        .collect();
    let mut single = Single::new(optimizer, rules, &tensors);
    let mut results: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    let mut rates = Vec::new();
    for (step, gradients) in recorded.gradients.iter().enumerate() {
        let gradients: Vec<&[f32]> = gradients.iter().map(|g| &g[..]).collect();
        let loss = recorded.losses.get(step).map_or(0.0, |loss| f64::from(*loss));
        let decision = single
            .step(&gradients, loss, case.learning_rate)
            .map_err(|error| ReplayError::Step { step, error })?;
        rates.push(decision.effective_learning_rate as f32);
        for (tensor, (name, (shape, _))) in recorded.parameters.iter().enumerate() {
            results.push((
                format!("param.{step}.{name}"),
                shape.clone(),
                single.master(tensor).to_vec(),
            ));
        }
    }
    results.push(("effective_lr".to_owned(), vec![rates.len()], rates));
    write(results)
}

/// A case.
struct Case {
    learning_rate: f64,
    hidden: Vec<String>,
    optimizer: OptimizerSection,
}

impl Case {
    fn read(text: &str, origin: &str) -> Result<Case, ReplayError> {
        let refuse = |reason: String| ReplayError::Case {
            origin: origin.to_owned(),
            reason,
        };
        let mut table: Table = text
            .parse()
            .map_err(|error: toml::de::Error| refuse(error.message().to_owned()))?;
        let learning_rate = match table.remove("lr") {
            Some(Value::Float(rate)) if rate.is_finite() && rate >= 0.0 => rate,
            Some(Value::Integer(rate)) if rate >= 0 => rate as f64,
            Some(other) => return Err(refuse(format!("`lr` is {other}; give a number of at least 0"))),
            None => return Err(refuse("`lr` is missing; give a learning rate".to_owned())),
        };
        const NAMES: &str = "`hidden` is a list of tensor names, such as [\"w\"]";
        let hidden = match table.remove("hidden") {
            None => Vec::new(),
            Some(Value::Array(names)) => names
                .into_iter()
                .map(|name| match name {
                    Value::String(name) => Ok(name),
                    other => Err(refuse(format!("{NAMES}; {other} is not one"))),
                })
                .collect::<Result<_, _>>()?,
            Some(other) => return Err(refuse(format!("{NAMES}, not {other}"))),
        };
        let optimizer = match table.remove("optimizer") {
            Some(Value::Table(table)) => OptimizerSection::parse(table, origin, Precision::Fp32)?,
            Some(_) | None => return Err(refuse("the table [optimizer] is missing".to_owned())),
        };
        match table.keys().next() {
            Some(unknown) => Err(refuse(format!(
                "unknown key `{unknown}`; a case has lr, hidden and [optimizer]"
            ))),
            None => Ok(Case {
                learning_rate,
                hidden,
                optimizer,
            }),
        }
    }
}

/// The recorded tensors.
struct Recorded {
    parameters: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// By step and tensor, in the order of the parameters.
    gradients: Vec<Vec<Vec<f32>>>,
    losses: Vec<f32>,
}

impl Recorded {
    fn read(file: &SafeTensors<'_>) -> Result<Recorded, ReplayError> {
        let values = |name: &str| -> Result<(Vec<usize>, Vec<f32>), ReplayError> {
            let view = file
                .tensor(name)
                .map_err(|_| ReplayError::Input(format!("{name} is missing")))?;
            if view.dtype() != Dtype::F32 {
                return Err(ReplayError::Input(format!(
                    "{name} is {:?}; store it as float32",
                    view.dtype()
                )));
            }
            let floats = view.data().chunks_exact(4);
            let floats = floats.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            Ok((view.shape().to_vec(), floats.collect()))
        };
        let mut parameters = BTreeMap::new();
        let mut steps = 0;
        for name in file.names() {
            if let Some(parameter) = name.strip_prefix("param.") {
                parameters.insert(parameter.to_owned(), values(name)?);
            } else if let Some((step, _)) = name.strip_prefix("grad.").and_then(|rest| rest.split_once('.')) {
                let step: usize = step
                    .parse()
                    .map_err(|_| ReplayError::Input(format!("{name} does not say its step as grad.K.NAME")))?;
                steps = steps.max(step + 1);
            } else if name != "loss" {
                return Err(ReplayError::Input(format!(
                    "{name} is none of param.NAME, grad.K.NAME and loss"
                )));
            }
        }
        if parameters.is_empty() || steps == 0 {
            return Err(ReplayError::Input(
                "there is no param.NAME or no grad.0.NAME".to_owned(),
            ));
        }
        let mut gradients = Vec::with_capacity(steps);
        for step in 0..steps {
            let mut of_step = Vec::with_capacity(parameters.len());
            for (name, (shape, _)) in &parameters {
                let (found, gradient) = values(&format!("grad.{step}.{name}"))?;
                if found != *shape {
                    return Err(ReplayError::Input(format!(
                        "grad.{step}.{name} has shape {found:?}, param.{name} {shape:?}"
                    )));
                }
                of_step.push(gradient);
            }
            gradients.push(of_step);
        }
        let losses = match file.names().contains(&"loss") {
            true => values("loss")?.1,
            false => Vec::new(),
        };
        if !losses.is_empty() && losses.len() != steps {
            return Err(ReplayError::Input(format!(
                "`loss` has {} values for {steps} steps",
                losses.len()
            )));
        }
        if let Some(step) = losses.iter().position(|loss| !loss.is_finite()) {
            return Err(ReplayError::Input(format!("`loss` of step {step} is {}", losses[step])));
        }
        Ok(Recorded {
            parameters,
            gradients,
            losses,
        })
    }

    /// The parameters as an inventory; those named in `hidden` are hidden matrices, and weight decay acts on all.
    fn inventory(&self, hidden: &[String]) -> Result<Vec<TensorSpec>, ReplayError> {
        if let Some(unknown) = hidden.iter().find(|name| !self.parameters.contains_key(*name)) {
            return Err(ReplayError::Input(format!(
                "there is no param.{unknown}, which `hidden` names"
            )));
        }
        let spec = |(name, (shape, _)): (&String, &(Vec<usize>, Vec<f32>))| TensorSpec {
            name: name.clone(),
            shape: shape.iter().map(|n| *n as i64).collect(),
            layer: 0,
            role: if hidden.contains(name) {
                Role::Hidden
            } else {
                Role::Embedding
            },
            initial: Initial::Zeros,
        };
        Ok(self.parameters.iter().map(spec).collect())
    }
}

fn write(results: Vec<(String, Vec<usize>, Vec<f32>)>) -> Result<Vec<u8>, ReplayError> {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = results
        .into_iter()
        .map(|(name, shape, values)| (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let refuse =
        |error: safetensors::SafeTensorError| ReplayError::Input(format!("the results cannot be written: {error}"));
    let views = bytes
        .iter()
        .map(|(name, shape, data)| {
            let view = safetensors::tensor::TensorView::new(Dtype::F32, shape.clone(), data).map_err(refuse)?;
            Ok((name.as_str(), view))
        })
        .collect::<Result<Vec<_>, ReplayError>>()?;
    safetensors::serialize(views, None).map_err(refuse)
}

//! Lines of `metrics.jsonl`; the keys are fixed, as other tools read them. Optional keys are left out where the
//! optimiser has no such number, and `skipped` where the step was a step; a number that is not finite becomes `null`, as JSON has no other word for it.

use lockstep_proto::domain::CommittedStep;
use serde::{Serialize, Serializer};

use crate::branches::Rewind;

/// A committed step. `samples` and `tokens` are of the run so far, `batch` is the step's own samples.
#[derive(Debug, Serialize)]
pub struct StepLine<'a> {
    step: u64,
    samples: u64,
    tokens: u64,
    loss: f64,
    lr: f64,
    effective_lr: f64,
    batch: u64,
    grad_norm: f64,
    update_norm: f64,
    tokens_per_second: f64,
    step_ms: f64,
    phases: Phases<'a>,
    generation: u64,
    ranks: u32,
    parameter_hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_value: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dual_norm: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lower_bound: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    polar_factors: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    orthogonality_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    orthogonality_tensor: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gradient_variance: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gradient_square: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    noise_scale: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<&'a str>,
}

/// A map from `NAME_ms` to milliseconds, in the order of the phases.
#[derive(Debug)]
struct Phases<'a>(&'a [(String, f64)]);

impl Serialize for Phases<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, milliseconds)| {
            let name = name.strip_suffix("_ms").unwrap_or(name);
            (format!("{name}_ms"), milliseconds)
        }))
    }
}

impl StepLine<'_> {
    /// The line of `step`.
    pub fn of(step: &CommittedStep) -> StepLine<'_> {
        let orthogonality = step.orthogonality.as_ref();
        StepLine {
            step: step.step,
            samples: step.samples,
            tokens: step.tokens,
            loss: step.loss,
            lr: step.learning_rate,
            effective_lr: step.effective_learning_rate,
            batch: step.batch,
            grad_norm: step.grad_norm,
            update_norm: step.update_norm,
            tokens_per_second: step.tokens_per_second,
            step_ms: step.step_ms,
            phases: Phases(&step.phases),
            generation: step.generation,
            ranks: step.ranks,
            parameter_hash: blake3::Hash::from_bytes(step.parameter_hash).to_hex().to_string(),
            model_value: step.model_value,
            dual_norm: step.dual_norm,
            lower_bound: step.lower_bound,
            polar_factors: (step.polar_factors > 0).then_some(step.polar_factors),
            orthogonality_error: orthogonality.map(|orthogonality| orthogonality.error),
            orthogonality_tensor: orthogonality.map(|orthogonality| &orthogonality.tensor[..]),
            gradient_variance: step.gradient_variance,
            gradient_square: step.gradient_square,
            noise_scale: step.noise_scale,
            skipped: step.skipped.as_deref(),
        }
    }
}

/// A rewind: what follows is of another branch.
#[derive(Serialize)]
pub(super) struct RewindLine<'a> {
    pub(super) rewind: RewindNumbers<'a>,
}

/// What a rewind did.
#[derive(Serialize)]
pub(super) struct RewindNumbers<'a> {
    number: u64,
    /// The step that could not be used.
    unusable: u64,
    /// The step that the run went back to.
    to: u64,
    /// The samples from the first to before the second are not trained.
    skipped_samples: [u64; 2],
    rate_factor: f64,
    reason: &'a str,
}

impl<'a> From<&'a Rewind> for RewindNumbers<'a> {
    fn from(rewind: &'a Rewind) -> RewindNumbers<'a> {
        RewindNumbers {
            number: rewind.number,
            unusable: rewind.unusable,
            to: rewind.to,
            skipped_samples: [rewind.skipped.start, rewind.skipped.end],
            rate_factor: rewind.rate_factor,
            reason: &rewind.reason,
        }
    }
}

/// The validation of a committed step.
#[derive(Serialize)]
pub(super) struct ValidationLine {
    pub(super) step: u64,
    pub(super) validation_loss: f64,
}

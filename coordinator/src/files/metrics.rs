//! Lines of `metrics.jsonl`; the keys are fixed, as other tools read them.

use lockstep_proto::domain::CommittedStep;
use serde::{Serialize, Serializer};

/// A committed step. `samples` and `tokens` are of the run so far, `batch` is the step's own samples.
#[derive(Serialize)]
pub(super) struct StepLine<'a> {
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
}

/// A map from `NAME_ms` to milliseconds, in the order of the phases.
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
    pub(super) fn of(step: &CommittedStep) -> StepLine<'_> {
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
        }
    }
}

/// The validation of a committed step.
#[derive(Serialize)]
pub(super) struct ValidationLine {
    pub(super) step: u64,
    pub(super) validation_loss: f64,
}

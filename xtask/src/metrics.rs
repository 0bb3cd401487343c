//! Reading what a run leaves behind: `metrics.jsonl`, a line a committed step or a validation, and `summary.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::failure::{Failure, on_path};

/// A committed step.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Step {
    pub(crate) step: u64,
    /// Samples of all steps so far.
    #[serde(default)]
    pub(crate) samples: u64,
    /// Samples of this step.
    #[serde(default)]
    pub(crate) batch: u64,
    /// Its learning rate.
    #[serde(default)]
    pub(crate) lr: f64,
    /// Tokens that all steps so far have counted.
    pub(crate) tokens: u64,
    /// Mean loss over the step's tokens, in nats a token.
    pub(crate) loss: f64,
    pub(crate) step_ms: f64,
    /// Milliseconds by phase; the names end in `_ms`.
    #[serde(default)]
    pub(crate) phases: BTreeMap<String, f64>,
}

/// A validation after a step, in nats a token.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Validation {
    pub(crate) step: u64,
    pub(crate) validation_loss: f64,
}

/// A run's metrics in the order of its steps.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Metrics {
    pub(crate) steps: Vec<Step>,
    pub(crate) validations: Vec<Validation>,
}

/// The keys of `summary.json` that are used here.
#[derive(Debug, Deserialize)]
pub(crate) struct Summary {
    pub(crate) peak_memory_mib: u64,
    pub(crate) tokens_per_second: f64,
    pub(crate) training_seconds: f64,
    /// The last one, in nats a token.
    pub(crate) validation_loss: Option<f64>,
}

impl Metrics {
    /// Reads `metrics.jsonl` of a run folder.
    pub(crate) fn read(run: &Path) -> Result<Metrics, Failure> {
        let path = run.join("metrics.jsonl");
        let text = fs::read_to_string(&path).map_err(on_path("read", &path))?;
        Metrics::parse(&text)
            .map_err(|(line, why)| Failure::work(format!("line {line} of {} cannot be read: {why}", path.display())))
    }

    fn parse(text: &str) -> Result<Metrics, (usize, serde_json::Error)> {
        let mut metrics = Metrics::default();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let at = |error| (index + 1, error);
            let value: serde_json::Value = serde_json::from_str(line).map_err(at)?;
            if value.get("validation_loss").is_some() {
                metrics.validations.push(serde_json::from_value(value).map_err(at)?);
            } else {
                metrics.steps.push(serde_json::from_value(value).map_err(at)?);
            }
        }
        Ok(metrics)
    }
}

impl Summary {
    /// Reads `summary.json` of a run folder.
    pub(crate) fn read(run: &Path) -> Result<Summary, Failure> {
        let path = run.join("summary.json");
        let text = fs::read_to_string(&path).map_err(on_path("read", &path))?;
        serde_json::from_str(&text)
            .map_err(|error| Failure::work(format!("{} cannot be read: {error}", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_validations_are_told_apart() {
        let text = concat!(
            r#"{"step":1,"samples":8,"tokens":2048,"loss":5.5,"lr":0.1,"step_ms":9.5,"phases":{"forward_ms":3.0}}"#,
            "\n",
            r#"{"step":1,"validation_loss":5.25}"#,
            "\n\n",
        );
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.steps.len(), 1);
        assert_eq!(metrics.steps[0].tokens, 2048);
        assert_eq!(metrics.steps[0].phases["forward_ms"], 3.0);
        assert_eq!(
            metrics.validations,
            [Validation {
                step: 1,
                validation_loss: 5.25
            }]
        );
    }

    #[test]
    fn a_bad_line_is_named_by_its_number() {
        let (line, _) = Metrics::parse("{\"step\":1,\"validation_loss\":5.25}\n{\"step\":\n").unwrap_err();
        assert_eq!(line, 2);
    }
}

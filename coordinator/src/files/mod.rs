//! The files of a run's folder that people and other tools read: `metrics.jsonl`, `summary.json` and TensorBoard
//! event files, written from committed steps only, as they become durable.
//!
//! Way of data: the service calls [`RunFiles::committed`] and [`RunFiles::validated`] after the ledger's
//! transaction, [`RunFiles::flush`] once a batch, and [`RunFiles::end`] at the end of the run.

mod metrics;
mod summary;
mod tensorboard;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use lockstep_proto::domain::{CommittedStep, RunEnd, Validation};

use crate::branches::Rewind;
pub use crate::files::metrics::StepLine;
pub use crate::files::summary::{Summary, World};
use crate::files::tensorboard::EventFile;
use crate::ledger::Entry;

/// A file of the run's folder cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {cause}", path.display())]
pub struct FileError {
    path: PathBuf,
    cause: std::io::Error,
}

/// The open files of a run.
#[derive(Debug)]
pub struct RunFiles {
    folder: PathBuf,
    metrics_path: PathBuf,
    metrics: BufWriter<File>,
    events: EventFile,
    summary: Summary,
}

impl RunFiles {
    /// Makes the files in `folder`, which exists.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn create(folder: &Path, config_toml: &str, world: World) -> Result<RunFiles, FileError> {
        write_whole(&folder.join("config.toml"), config_toml.as_bytes())?;
        let metrics_path = folder.join("metrics.jsonl");
        let metrics = File::create(&metrics_path).map_err(|cause| FileError {
            path: metrics_path.clone(),
            cause,
        })?;
        Ok(RunFiles {
            events: EventFile::create(folder)?,
            folder: folder.to_owned(),
            metrics: BufWriter::new(metrics),
            metrics_path,
            summary: Summary::new(world),
        })
    }

    /// Writes what earlier terms committed, where there are any. TensorBoard's files of those terms stand as they are.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn restore<'b>(
        &mut self,
        history: &[Entry],
        total_steps: u64,
        backend_of: &dyn Fn(u32) -> &'b str,
    ) -> Result<(), FileError> {
        let mut is_first = true;
        for entry in history {
            match entry {
                Entry::Step(commit) => {
                    let step = commit.to_committed_step(total_steps);
                    if std::mem::replace(&mut is_first, false) {
                        self.summary.begins_with(&step, backend_of(step.ranks));
                    }
                    self.summary.committed(&step);
                    self.of_world(&step, backend_of(step.ranks));
                    self.line(&StepLine::of(&step))?;
                }
                Entry::Validation(step, validation) => self.note_validation(*step, *validation)?,
                Entry::Rewound(rewind) => self.rewound(rewind)?,
            }
        }
        self.flush()
    }

    /// The run has gone back: the lines of the steps that it left behind stay where they are, and this one follows them.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn rewound(&mut self, rewind: &Rewind) -> Result<(), FileError> {
        self.summary.rewound(rewind);
        self.line(&metrics::RewindLine { rewind: rewind.into() })
    }

    /// How often the run has gone back, and why the last time.
    pub fn rewinds(&self) -> (u64, Option<&str>) {
        (self.summary.rewinds, self.summary.last_rewind.as_deref())
    }

    /// A step was committed.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn committed(&mut self, step: &CommittedStep) -> Result<(), FileError> {
        self.summary.committed(step);
        self.line(&StepLine::of(step))?;
        let mut scalars = vec![
            ("loss", step.loss),
            ("lr", step.learning_rate),
            ("effective_lr", step.effective_learning_rate),
            ("grad_norm", step.grad_norm),
            ("tokens_per_second", step.tokens_per_second),
        ];
        let polar_factors = (step.polar_factors > 0).then_some(f64::from(step.polar_factors));
        let orthogonality_error = step.orthogonality.as_ref().map(|orthogonality| orthogonality.error);
        let optional = [
            ("model_value", step.model_value),
            ("dual_norm", step.dual_norm),
            ("lower_bound", step.lower_bound),
            ("noise_scale", step.noise_scale),
            ("polar_factors", polar_factors),
            ("orthogonality_error", orthogonality_error),
        ];
        scalars.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
        self.events.scalars(step.step, &scalars)
    }

    /// The step that was committed last was made by a world of these ranks.
    pub fn of_world(&mut self, step: &CommittedStep, backend: &str) {
        self.summary.of_world(step.step, step.ranks, backend);
    }

    /// How many of the committed steps were skipped, and why the newest of them was.
    pub fn skipped(&self) -> (u64, Option<&str>) {
        (self.summary.skipped_steps, self.summary.last_skip.as_deref())
    }

    /// A committed step was validated.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn validated(&mut self, step: u64, validation: Validation) -> Result<(), FileError> {
        self.note_validation(step, validation)?;
        self.events.scalars(step, &[("validation_loss", validation.loss)])
    }

    fn note_validation(&mut self, step: u64, validation: Validation) -> Result<(), FileError> {
        self.summary.validation_loss = Some(validation.loss);
        self.line(&metrics::ValidationLine {
            step,
            validation_loss: validation.loss,
        })
    }

    /// Hands everything to the system, so that readers see whole lines.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn flush(&mut self) -> Result<(), FileError> {
        self.metrics.flush().map_err(|cause| FileError {
            path: self.metrics_path.clone(),
            cause,
        })?;
        self.events.flush()
    }

    /// The run is over: writes `summary.json`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn end(&mut self, end: &RunEnd, peak_memory_mib: u64) -> Result<(), FileError> {
        self.flush()?;
        let text = self.summary.ended(end, peak_memory_mib);
        write_whole(&self.folder.join("summary.json"), text.as_bytes())
    }

    fn line(&mut self, line: &impl serde::Serialize) -> Result<(), FileError> {
        let failed = |cause: std::io::Error| FileError {
            path: self.metrics_path.clone(),
            cause,
        };
        serde_json::to_writer(&mut self.metrics, line).map_err(|error| failed(error.into()))?;
        self.metrics.write_all(b"\n").map_err(failed)
    }
}

/// Writes beside and renames, so that nobody ever sees half a file.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let beside = path.with_extension("part");
    let written = std::fs::write(&beside, bytes).and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|cause| FileError {
        path: path.to_owned(),
        cause,
    })
}

#[cfg(test)]
mod tests {
    use lockstep_proto::domain::{Orthogonality, Outcome};
    use serde_json::Value;
    use tempfile::tempdir;

    use super::*;

    fn step(step: u64) -> CommittedStep {
        CommittedStep {
            step,
            total_steps: 4,
            samples: step * 8,
            tokens: step * 128,
            loss: 3.0 / step as f64,
            learning_rate: 0.5,
            effective_learning_rate: 0.25,
            batch: 8,
            grad_norm: 2.0,
            update_norm: 1.5,
            tokens_per_second: 512.0,
            step_ms: 250.0,
            phases: vec![("forward".to_owned(), 100.0), ("backward_ms".to_owned(), 120.0)],
            generation: 1,
            ranks: 2,
            parameter_hash: [0xab; 32],
            polar_factors: 0,
            model_value: None,
            dual_norm: None,
            lower_bound: None,
            gradient_variance: None,
            gradient_square: None,
            noise_scale: None,
            orthogonality: None,
            skipped: None,
        }
    }

    /// A step of an optimiser that has every optional number.
    fn measured(step_number: u64) -> CommittedStep {
        CommittedStep {
            polar_factors: 12,
            model_value: Some(2.25),
            dual_norm: Some(3.5),
            lower_bound: Some(0.0),
            gradient_variance: Some(96.0),
            gradient_square: Some(0.5),
            noise_scale: Some(192.0),
            orthogonality: Some(Orthogonality {
                tensor: "h.1.attn.c_attn.weight[2]".to_owned(),
                error: 0.125,
            }),
            ..step(step_number)
        }
    }

    fn world() -> World {
        World {
            from_step: 1,
            ranks: 2,
            backend: "host".to_owned(),
        }
    }

    #[test]
    fn the_files_have_the_keys_that_other_tools_read() {
        let folder = tempdir().unwrap();
        let mut files = RunFiles::create(folder.path(), "[run]\n", world()).unwrap();
        files.committed(&step(1)).unwrap();
        files.committed(&step(2)).unwrap();
        files
            .validated(
                2,
                Validation {
                    loss: 1.75,
                    tokens: 100,
                },
            )
            .unwrap();
        let end = RunEnd {
            outcome: Outcome::Stopped,
            reason: "asked".to_owned(),
            last_step: 2,
        };
        files.end(&end, 321).unwrap();

        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let keys = |value: &Value| {
            value
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<std::collections::BTreeSet<_>>()
        };
        let expected = "step samples tokens loss lr effective_lr batch grad_norm update_norm tokens_per_second step_ms \
                        phases generation ranks parameter_hash";
        assert_eq!(
            keys(&lines[0]),
            expected.split_whitespace().map(str::to_owned).collect()
        );
        assert_eq!(
            lines[1]["phases"],
            serde_json::json!({ "forward_ms": 100.0, "backward_ms": 120.0 })
        );
        assert_eq!(lines[1]["parameter_hash"], "ab".repeat(32));
        assert_eq!(lines[2], serde_json::json!({ "step": 2, "validation_loss": 1.75 }));

        let text = std::fs::read_to_string(folder.path().join("summary.json")).unwrap();
        let summary: Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "steps": 2, "samples": 16, "tokens": 256, "train_loss": 1.5, "validation_loss": 1.75,
            "tokens_per_second": 512.0, "training_seconds": 0.5, "peak_memory_mib": 321,
            "parameter_hash": "ab".repeat(32), "skipped_steps": 0, "rewinds": 0, "worlds": [{ "from_step": 1, "ranks": 2, "backend": "host" }],
            "exit": "stopped", "reason": "asked",
        });
        assert_eq!(summary, expected);
        assert_eq!(
            std::fs::read_to_string(folder.path().join("config.toml")).unwrap(),
            "[run]\n"
        );
    }

    #[test]
    fn optional_numbers_have_keys_and_scalars_only_where_the_optimiser_has_them() {
        let folder = tempdir().unwrap();
        let mut files = RunFiles::create(folder.path(), "[run]\n", world()).unwrap();
        let not_finite = CommittedStep {
            model_value: Some(f64::NAN),
            ..measured(3)
        };
        let skipped = CommittedStep {
            loss: f64::NAN,
            skipped: Some("step 4: the loss is NaN".to_owned()),
            ..step(4)
        };
        for step in [step(1), measured(2), not_finite, skipped] {
            files.committed(&step).unwrap();
        }
        files.flush().unwrap();
        assert_eq!(files.skipped(), (1, Some("step 4: the loss is NaN")));
        assert_eq!(files.summary.train_loss, Some(1.0), "of the last step that was one");

        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let expected = serde_json::json!({
            "model_value": 2.25, "dual_norm": 3.5, "lower_bound": 0.0, "gradient_variance": 96.0, "gradient_square": 0.5, "noise_scale": 192.0, "polar_factors": 12,
            "orthogonality_error": 0.125, "orthogonality_tensor": "h.1.attn.c_attn.weight[2]",
        });
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(lines[0].get(key), None, "{key}");
            assert_eq!(lines[1].get(key), Some(value), "{key}");
        }
        assert_eq!(lines[2].get("model_value"), Some(&Value::Null), "there, but no number");
        assert_eq!(lines[2].get("skipped"), None);
        assert_eq!(lines[3].get("skipped"), Some(&Value::from("step 4: the loss is NaN")));
        assert_eq!(lines[3].get("loss"), Some(&Value::Null));

        let always = [
            ("loss", 3.0),
            ("lr", 0.5),
            ("effective_lr", 0.25),
            ("grad_norm", 2.0),
            ("tokens_per_second", 512.0),
        ];
        let optional = [
            ("model_value", 2.25),
            ("dual_norm", 3.5),
            ("lower_bound", 0.0),
            ("noise_scale", 192.0),
            ("polar_factors", 12.0),
            ("orthogonality_error", 0.125),
        ];
        let expected: Vec<(String, f32)> = always.iter().map(|(tag, value)| ((*tag).to_owned(), *value)).collect();
        assert_eq!(files.events.read_scalars(1), expected);
        let mut expected = expected;
        expected[0].1 = 1.5;
        expected.extend(optional.iter().map(|(tag, value)| ((*tag).to_owned(), *value)));
        assert_eq!(files.events.read_scalars(2), expected);
        let (tag, value) = &files.events.read_scalars(3)[5];
        assert!(tag == "model_value" && value.is_nan(), "{tag} {value}");
    }
}

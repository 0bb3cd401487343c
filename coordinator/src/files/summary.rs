//! `summary.json`: the run in one object; the keys are fixed, as other tools read them.

use lockstep_proto::domain::{CommittedStep, Outcome, RunEnd};
use serde::Serialize;

use crate::branches::Rewind;

/// One world of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct World {
    /// The first step that it made.
    pub from_step: u64,
    /// Its ranks.
    pub ranks: u32,
    /// The transport of its collectives.
    pub backend: String,
}

/// What is known of the run so far.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    steps: u64,
    samples: u64,
    tokens: u64,
    /// Loss of the last committed step that was not skipped.
    pub(super) train_loss: Option<f64>,
    /// The newest one.
    pub(super) validation_loss: Option<f64>,
    /// Counted tokens by `training_seconds`.
    tokens_per_second: Option<f64>,
    /// The sum of the committed steps' `step_ms`: time in steps, without start, validation, pauses and final files.
    training_seconds: f64,
    peak_memory_mib: u64,
    parameter_hash: Option<String>,
    /// Steps that changed nothing.
    pub(super) skipped_steps: u64,
    /// Why the newest of them did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_skip: Option<String>,
    /// How often the run went back.
    pub(super) rewinds: u64,
    /// Why it did the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_rewind: Option<String>,
    worlds: Vec<World>,
    /// `completed`, `stopped` or `failed`.
    exit: &'static str,
    reason: String,
}

impl Summary {
    pub(super) fn new(world: World) -> Summary {
        Summary {
            steps: 0,
            samples: 0,
            tokens: 0,
            train_loss: None,
            validation_loss: None,
            tokens_per_second: None,
            training_seconds: 0.0,
            peak_memory_mib: 0,
            parameter_hash: None,
            skipped_steps: 0,
            last_skip: None,
            rewinds: 0,
            last_rewind: None,
            worlds: vec![world],
            exit: "failed",
            reason: String::new(),
        }
    }

    pub(super) fn committed(&mut self, step: &CommittedStep) {
        self.steps = step.step;
        self.samples = step.samples;
        self.tokens = step.tokens;
        match &step.skipped {
            Some(reason) => {
                self.skipped_steps += 1;
                self.last_skip = Some(reason.clone());
            }
            None => self.train_loss = Some(step.loss),
        }
        self.training_seconds += step.step_ms / 1e3;
        if self.training_seconds > 0.0 {
            self.tokens_per_second = Some(self.tokens as f64 / self.training_seconds);
        }
        self.parameter_hash = Some(blake3::Hash::from_bytes(step.parameter_hash).to_hex().to_string());
    }

    /// The run is where it was after an earlier step. The time that the steps left behind took stays spent.
    pub(super) fn rewound(&mut self, rewind: &Rewind) {
        self.rewinds = rewind.number;
        self.last_rewind = Some(rewind.reason.clone());
        (self.steps, self.samples, self.tokens) = (rewind.to, rewind.samples, rewind.tokens);
        let hex = |hash: [u8; 32]| blake3::Hash::from_bytes(hash).to_hex().to_string();
        self.parameter_hash = rewind.parameter_hash.map(hex);
    }

    /// The world of the first step, where earlier terms made it.
    pub(super) fn begins_with(&mut self, step: &CommittedStep, backend: &str) {
        self.worlds = vec![World {
            from_step: step.step,
            ranks: step.ranks,
            backend: backend.to_owned(),
        }];
    }

    /// Where the ranks of a step are not those of the one before, another world begins.
    pub(super) fn of_world(&mut self, step: u64, ranks: u32, backend: &str) {
        if self.worlds.last().is_none_or(|world| world.ranks != ranks) {
            self.worlds.push(World {
                from_step: step,
                ranks,
                backend: backend.to_owned(),
            });
        }
    }

    /// The finished object as text.
    pub(super) fn ended(&mut self, end: &RunEnd, peak_memory_mib: u64) -> String {
        self.exit = match end.outcome {
            Outcome::Completed => "completed",
            Outcome::Stopped => "stopped",
            Outcome::Failed { .. } => "failed",
        };
        self.reason = end.reason.clone();
        self.peak_memory_mib = peak_memory_mib;
        // A struct of numbers and strings has no failing case in JSON.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

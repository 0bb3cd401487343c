//! `/metrics`: the present numbers of the run in the text format of Prometheus, version 0.0.4.

use std::fmt::Write as _;

use crate::alerts::Kind;
use crate::dashboard::{Board, Shared};

/// What scrapers are told that it is.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page of metrics that is being written.
struct Page {
    text: String,
    run: String,
}

impl Board {
    /// The present numbers.
    pub(super) fn metrics(&self) -> String {
        let shared = self.lock();
        let mut page = Page {
            text: String::new(),
            run: escaped(&self.name),
        };
        if self.total_steps > 0 {
            page.gauge("total_steps", "Steps of the whole run.", Some(self.total_steps as f64));
        }
        page.steps(&shared);
        page.world(&shared);
        let (kinds, help) = (
            Kind::ALL.map(|kind| (kind.word(), shared.alerts.count(kind) as f64)),
            "Alerts that are raised.",
        );
        page.family("alerts", "gauge", help, ("kind", &kinds));
        page.text
    }
}

impl Page {
    fn steps(&mut self, shared: &Shared) {
        if let Some((_, loss)) = shared.history.newest_validation() {
            self.gauge("validation_loss", "Newest validation loss, nats a token.", Some(loss));
        }
        let Some(last) = shared.history.last() else { return };
        self.gauge("step", "Newest committed step.", Some(last.step as f64));
        self.gauge(
            "samples",
            "Samples trained so far; a rewind takes some back.",
            Some(last.samples as f64),
        );
        self.gauge(
            "tokens",
            "Tokens trained so far; a rewind takes some back.",
            Some(last.tokens as f64),
        );
        for (name, help, value) in [
            ("loss", "Loss of the newest step, nats a token.", last.loss),
            ("learning_rate", "Learning rate as planned.", last.learning_rate),
            (
                "effective_learning_rate",
                "Learning rate as applied.",
                last.effective_learning_rate,
            ),
            ("batch_samples", "Samples of the newest step.", last.batch as f64),
            ("gradient_norm", "Global gradient norm before clipping.", last.grad_norm),
            ("update_norm", "Global norm of the update.", last.update_norm),
            (
                "tokens_per_second",
                "Tokens of the newest step by its time.",
                last.tokens_per_second,
            ),
            ("step_seconds", "Time of the newest step.", last.step_ms / 1e3),
        ] {
            self.gauge(name, help, Some(value));
        }
        self.gauge(
            "model_value",
            "Value of the model of the loss, nats a token.",
            last.model_value,
        );
        self.gauge("dual_norm", "Dual norm of the momentum.", last.dual_norm);
        let phases: Vec<(&str, f64)> = last
            .phases
            .iter()
            .map(|(name, ms)| (name.strip_suffix("_ms").unwrap_or(name), ms / 1e3))
            .collect();
        self.family(
            "phase_seconds",
            "gauge",
            "Time of the newest step by phase, of rank 0.",
            ("phase", &phases),
        );
    }

    fn world(&mut self, shared: &Shared) {
        let Some(status) = &shared.status else { return };
        for (name, kind, help, value) in [
            ("ranks", "gauge", "Ranks of the present world.", f64::from(status.ranks)),
            (
                "members",
                "gauge",
                "Trainers that are there.",
                f64::from(status.members),
            ),
            (
                "generation",
                "gauge",
                "Number of the present generation.",
                status.header.stamp.generation as f64,
            ),
            (
                "term",
                "gauge",
                "Term of the coordinator.",
                status.header.stamp.term as f64,
            ),
            (
                "skipped_steps_total",
                "counter",
                "Steps that were skipped.",
                status.skipped_steps as f64,
            ),
            (
                "rewinds_total",
                "counter",
                "Times that the run went back.",
                status.rewinds as f64,
            ),
        ] {
            self.head(name, kind, help);
            self.sample(name, None, value);
        }
        let phase = if shared.end.is_some() { "ended" } else { &status.phase };
        self.family(
            "phase",
            "gauge",
            "What the run does now: 1 for its phase.",
            ("phase", &[(phase, 1.0)]),
        );
    }

    fn gauge(&mut self, name: &str, help: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.head(name, "gauge", help);
            self.sample(name, None, value);
        }
    }

    /// A metric with a value for each of its labels.
    fn family(&mut self, name: &str, kind: &str, help: &str, (label, values): (&str, &[(&str, f64)])) {
        if values.is_empty() {
            return;
        }
        self.head(name, kind, help);
        for (word, value) in values {
            self.sample(name, Some((label, word)), *value);
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(
            self.text,
            "# HELP lockstep_{name} {help}\n# TYPE lockstep_{name} {kind}"
        );
    }

    fn sample(&mut self, name: &str, label: Option<(&str, &str)>, value: f64) {
        let more = label.map_or_else(String::new, |(label, word)| format!(",{label}=\"{}\"", escaped(word)));
        let value = match value {
            value if value == f64::INFINITY => "+Inf".to_owned(),
            value if value == f64::NEG_INFINITY => "-Inf".to_owned(),
            value => value.to_string(),
        };
        let _ = writeln!(self.text, "lockstep_{name}{{run=\"{}\"{more}}} {value}", self.run);
    }
}

fn escaped(word: &str) -> String {
    word.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

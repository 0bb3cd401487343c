//! From [`RunConfig`] back to TOML, every value as resolved, and the hash of it.

mod optimizer;
mod schedule;

use std::fmt::Write;
use std::path::Path;

use toml::Value;

use crate::sections::*;

impl RunConfig {
    /// The whole config as TOML, defaults filled in; parsing it gives an equal config.
    pub fn to_toml(&self) -> String {
        let mut text = Text(String::new());
        text.section("run");
        text.key("name", self.run.name.as_str());
        self.run_without_name(&mut text);
        self.training_sections(&mut text);
        let checkpoint = &self.checkpoint;
        text.section("checkpoint");
        text.key("every", whole(checkpoint.every));
        text.key("keep_last", whole(checkpoint.keep_last));
        text.key("keep_every", whole(checkpoint.keep_every));
        text.optional("store", checkpoint.store.as_deref());
        let collective = &self.collective;
        text.section("collective");
        text.key("backend", collective.backend.word());
        text.key("wire", collective.wire.word());
        text.key("overlap", collective.overlap);
        text.key("transport", collective.transport.word());
        text.key("deadline_seconds", collective.deadline_seconds);
        let fault = &self.fault;
        text.section("fault");
        text.key("min_ranks", fault.min_ranks);
        text.optional("max_ranks", fault.max_ranks);
        text.key("snapshot_every", whole(fault.snapshot_every));
        text.key("max_restarts", fault.max_restarts);
        text.key("patience_seconds", fault.patience_seconds);
        text.key("lease_seconds", fault.lease_seconds);
        self.policies(&mut text);
        text.key("max_skips", fault.max_skips);
        text.key("max_rewinds", fault.max_rewinds);
        self.rewinds(&mut text);
        text.key("drift_every", whole(fault.drift_every));
        text.section("coordinator");
        text.key("bind", self.coordinator.bind.to_string());
        text.key("plan_window_seconds", self.coordinator.plan_window_seconds);
        text.key("record_events", self.coordinator.record_events);
        let security = &self.security;
        text.section("security");
        text.optional("certificate", security.certificate.as_deref().map(path));
        text.optional("key", security.key.as_deref().map(path));
        text.optional("client_ca", security.client_ca.as_deref().map(path));
        text.optional("tokens", security.tokens.as_deref().map(path));
        text.key("insecure_bind", security.insecure_bind);
        text.key("calls_per_second", whole(security.calls_per_second));
        text.key("failures_per_minute", whole(security.failures_per_minute));
        text.key("connections_per_address", whole(security.connections_per_address));
        text.key("connections", whole(security.connections));
        let alerts = &self.alerts;
        text.section("alerts");
        text.key("spike_sigmas", alerts.spike_sigmas);
        text.key("stall_factor", alerts.stall_factor);
        text.key("stall_seconds", alerts.stall_seconds);
        text.key("straggler_share", alerts.straggler_share);
        text.key("data_share", alerts.data_share);
        text.key("disk_mib", whole(alerts.disk_mib));
        text.key("certificate_days", whole(alerts.certificate_days));
        text.optional("webhook", alerts.webhook.as_deref());
        text.optional("webhook_file", alerts.webhook_file.as_deref().map(path));
        if let Some(otlp) = &self.telemetry.otlp {
            text.section("telemetry");
            text.key("otlp", otlp.as_str());
        }
        text.0
    }

    /// BLAKE3, in hex, of everything that decides the trained bits: the resolved TOML without `run.name`,
    /// `[checkpoint]`, `[coordinator]`, `[security]`, `[alerts]` and `[telemetry]`, of `[collective]` the wire alone, and of
    /// `[fault]` which steps are skipped and where a rewind leads, if there may be one.
    pub fn hash(&self) -> String {
        let mut text = Text(String::new());
        text.section("run");
        self.run_without_name(&mut text);
        self.training_sections(&mut text);
        text.section("collective");
        text.key("wire", self.collective.wire.word());
        text.section("fault");
        self.policies(&mut text);
        if self.fault.may_rewind() {
            self.rewinds(&mut text);
        }
        blake3::hash(text.0.as_bytes()).to_hex().to_string()
    }

    /// Which steps are skipped.
    fn policies(&self, text: &mut Text) {
        text.key("on_not_finite", self.fault.on_not_finite.word());
        text.key("on_spike", self.fault.on_spike.word());
        text.key("spike_sigmas", self.fault.spike_sigmas);
    }

    /// Where a rewind leads.
    fn rewinds(&self, text: &mut Text) {
        text.key("rewind_steps", whole(self.fault.rewind_steps));
        text.key("rewind_skip", self.fault.rewind_skip);
        text.key("rewind_factor", self.fault.rewind_factor);
    }

    fn run_without_name(&self, text: &mut Text) {
        let run = &self.run;
        text.key("seed", whole(run.seed));
        text.key("lanes", run.lanes);
        match run.length {
            Length::Steps(steps) => text.key("steps", whole(steps)),
            Length::Samples(samples) => text.key("samples", whole(samples)),
            Length::Tokens(tokens) => text.key("tokens", whole(tokens)),
            Length::Epochs(epochs) => text.key("epochs", epochs),
        }
        text.key("intra_op_threads", run.intra_op_threads);
        text.key("precision", run.precision.word());
        text.key("reduction", run.reduction.word());
        text.key("device", run.device.word());
    }

    fn training_sections(&self, text: &mut Text) {
        text.section("data");
        text.key("path", path(&self.data.path));
        text.optional("validation", self.data.validation.as_deref().map(path));
        text.key("sequence_length", self.data.sequence_length);

        let model = &self.model;
        text.section("model");
        text.key("kind", model.kind.word());
        text.key("layers", model.layers);
        text.key("heads", model.heads);
        text.key("width", model.width);
        text.optional("vocab", model.vocab);
        text.key("bias", model.bias);
        text.key("qk_norm", model.qk_norm);
        text.optional("context", model.context);

        text.section("batch");
        text.key("micro_batch", self.batch.micro_batch);
        match &self.batch.schedule {
            BatchSchedule::Constant { size } => text.key("schedule", whole(*size)),
            BatchSchedule::Steps { sizes } => {
                let pairs: Vec<String> = sizes.iter().map(|(from, size)| format!("[{from}, {size}]")).collect();
                let pairs = pairs.join(", ");
                text.line(&format!("schedule = {{ kind = \"steps\", sizes = [{pairs}] }}"));
            }
            BatchSchedule::Curve(curve) => text.line(&format!("schedule = {}", schedule::table(curve, false))),
        }
        if let Some(adaptive) = &self.batch.adaptive {
            let by = match adaptive.by {
                AdaptiveBy::Noise { target } => format!("by = \"noise\", target = {}", number(target)),
                AdaptiveBy::Goodput => "by = \"goodput\"".to_owned(),
            };
            text.line(&format!(
                "adaptive = {{ {by}, every = {}, most = {}, growth = {}, patience = {}, shrinks = {}, smooth = {} }}",
                adaptive.every,
                adaptive.most,
                number(adaptive.growth),
                adaptive.patience,
                adaptive.shrinks,
                adaptive.smooth
            ));
        }

        text.section("learning_rate");
        let rate = schedule::table(&self.learning_rate.schedule, true);
        text.line(&format!("schedule = {rate}"));
        match self.learning_rate.coupling {
            Coupling::None => {}
            Coupling::Linear { base } => text.line(&format!("couple = \"linear\"\nbase_batch = {}", number(base))),
            Coupling::SquareRoot { base } => text.line(&format!("couple = \"sqrt\"\nbase_batch = {}", number(base))),
        }
        for (name, curve) in [("momentum", &self.momentum), ("weight_decay", &self.weight_decay)] {
            if let Some(curve) = curve {
                text.section(name);
                text.line(&format!("schedule = {}", schedule::table(curve, false)));
            }
        }

        text.section("optimizer");
        optimizer::write(&self.optimizer, text);

        text.section("validation");
        text.key("every", whole(self.validation.every));
    }
}

/// TOML under construction.
struct Text(String);

impl Text {
    fn section(&mut self, name: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        self.line(&format!("{gap}[{name}]"));
    }

    fn key(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        self.line(&format!("{key} = {value}"));
    }

    fn optional(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.key(key, value);
        }
    }

    fn line(&mut self, line: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{line}");
    }
}

/// Reading refuses what does not fit in TOML's signed integers.
fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number(number: f64) -> String {
    Value::Float(number).to_string()
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

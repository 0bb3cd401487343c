//! `[telemetry]`: its key and what it may be.

use toml::Value;

use crate::error::ConfigError;
use crate::fields::Fields;
use crate::read::alerts::is_address;
use crate::sections::TelemetrySection;

const BASE: &str = "the base address of a collector such as \"http://127.0.0.1:4318\"";
/// What OTLP adds to the base address.
const TRACES: &str = "/v1/traces";

/// Reads the section of a run.
pub(super) fn read(mut fields: Fields<'_>) -> Result<TelemetrySection, ConfigError> {
    // What was written there may be a secret in the wrong place: it is not repeated.
    let unsaid = Value::String("…".to_owned());
    let otlp = fields.optional_text("otlp", BASE)?;
    if let Some(url) = &otlp {
        if !is_address(url) {
            return Err(fields.refuse("otlp", &unsaid, BASE));
        }
        if url.contains(['@', '?', '#']) {
            return Err(fields.refuse_with(
                "otlp",
                &unsaid,
                "an address without a user, a password, a query and a fragment, since the run's config is kept and shown",
                "name a collector on this machine, and have it show the secret to whom it passes the spans on to",
            ));
        }
        if url.trim_end_matches('/').ends_with(TRACES) {
            return Err(fields.refuse_with(
                "otlp",
                &unsaid,
                format!("an address without {TRACES}, which is added to it"),
                format!("leave {TRACES} out"),
            ));
        }
    }
    fields.done()?;
    Ok(TelemetrySection { otlp })
}

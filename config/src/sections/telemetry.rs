//! `[telemetry]`: where a run's trace goes. Nothing is sent unless it says so.

/// `[telemetry]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TelemetrySection {
    /// The base address of a collector that speaks OTLP over HTTP; none: nothing is sent.
    pub otlp: Option<String>,
}

//! Posts spans by OTLP over HTTP, as protobuf, in a task of its own. What a collector's answer means is a pure function
//! ([`Answer::of`]). A collector that is away is tried again less and less often; people hear of it once when it begins and once
//! when it is over. After the end of the run everything that waits is sent within [`FAREWELL`].

use std::sync::Arc;
use std::time::Duration;

use lockstep_config::TelemetrySection;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use reqwest::{Client, StatusCode, Url};

use crate::ledger::RunRow;
use crate::outbound;
use crate::telemetry::Telemetry;
use crate::telemetry::queue::{MOST, Queue};

/// Spans of one request.
const BATCH: usize = 512;
/// How long spans are gathered for one request.
const GATHER: Duration = Duration::from_secs(1);
/// How long is waited after the first failure; twice as long after each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// But no longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long the last spans may take after the run.
const FAREWELL: Duration = Duration::from_secs(5);
/// What OTLP adds to the base address.
const PATH: &str = "v1/traces";

/// Why no spans can be sent.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The address is none.
    #[error("telemetry.otlp is no address of a collector: write one such as http://127.0.0.1:4318")]
    NoAddress,
    /// The client cannot be made.
    #[error("cannot make a client for the collector of [telemetry]: {0}")]
    Client(String),
}

/// Where spans go.
#[derive(Debug)]
pub(crate) struct Exporter {
    client: Client,
    url: Url,
    resource: Resource,
    queue: Arc<Queue>,
    /// Spans that are being sent.
    batch: Vec<Span>,
    /// Spans that the collector did not want.
    refused: u64,
    /// Failures since the last success.
    failures: u32,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    /// The collector has the spans.
    Taken,
    /// It does not want so many of them, and is not asked again.
    Refused(u64, String),
    /// It may want them later.
    Away(String),
}

impl Answer {
    /// What an answer to so many spans means, by OTLP's specification.
    pub(super) fn of(status: StatusCode, body: &[u8], spans: u64) -> Answer {
        if status.is_success() {
            let partial = ExportTraceServiceResponse::decode(body)
                .unwrap_or_default()
                .partial_success;
            return match partial.filter(|partial| partial.rejected_spans > 0) {
                None => Answer::Taken,
                Some(partial) => {
                    Answer::Refused(partial.rejected_spans.unsigned_abs().min(spans), partial.error_message)
                }
            };
        }
        let how = format!("it answered {status}");
        match status.as_u16() {
            429 | 502 | 503 | 504 => Answer::Away(how),
            _ => Answer::Refused(spans, how),
        }
    }
}

impl Exporter {
    /// That of a config, if it has one.
    pub(crate) fn of(section: &TelemetrySection) -> Result<Option<Exporter>, TelemetryError> {
        let Some(base) = &section.otlp else { return Ok(None) };
        let url = Url::parse(&format!("{}/{PATH}", base.trim_end_matches('/')))
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or(TelemetryError::NoAddress)?;
        Ok(Some(Exporter {
            client: outbound::client().map_err(TelemetryError::Client)?,
            url,
            resource: Resource::default(),
            queue: Arc::default(),
            batch: Vec::new(),
            refused: 0,
            failures: 0,
        }))
    }

    /// For one term of a run: what its thread tells.
    pub(crate) fn begin(&mut self, run: &RunRow, term: u64) -> Telemetry {
        let attribute = |key: &str, value: String| KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue {
                value: Some(Value::StringValue(value)),
            }),
            ..KeyValue::default()
        };
        self.resource.attributes = vec![
            attribute("service.name", "lockstep-coordinator".to_owned()),
            attribute("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            attribute("service.instance.id", format!("{}/{term}", run.run_id)),
        ];
        Telemetry::new(run, term, self.queue.clone())
    }

    /// Sends what comes until nothing comes any more, and then what is left, within [`FAREWELL`].
    pub(crate) async fn carry(mut self) {
        let queue = self.queue.clone();
        let late = async {
            queue.closed().await;
            tokio::time::sleep(FAREWELL).await;
        };
        let is_in_time = tokio::select! {
            () = self.send_all() => true,
            () = late => false,
        };
        let missing = self.batch.len() as u64 + self.queue.waiting() + self.queue.lost() + self.refused;
        if missing > 0 {
            let why = if is_in_time {
                ""
            } else {
                ", the last ones because it is too slow"
            };
            tracing::warn!(
                "the collector at {} misses {missing} spans of this run{why}",
                self.host()
            );
        }
    }

    async fn send_all(&mut self) {
        loop {
            if self.batch.is_empty() {
                self.queue.filled().await;
                if self.queue.waiting() == 0 {
                    return;
                }
            }
            let wait = match self.failures {
                0 => GATHER,
                failures => wait_after(failures),
            };
            tokio::select! {
                () = self.queue.closed() => {}
                () = tokio::time::sleep(wait) => {}
            }
            let is_last_try = self.queue.is_closed();
            // One that is away after the end will not be back in time.
            if !self.send().await && is_last_try {
                return;
            }
        }
    }

    /// Sends the oldest spans. Whether the collector was there.
    async fn send(&mut self) -> bool {
        if self.batch.is_empty() {
            self.batch = self.queue.take(BATCH);
        }
        let answer = self.post().await;
        match answer {
            Answer::Taken => {
                self.batch.clear();
                if self.failures > 0 {
                    let (host, missing) = (self.host().to_owned(), self.queue.lost() + self.refused);
                    tracing::warn!("the collector at {host} takes spans again; it misses {missing} so far");
                }
                self.failures = 0;
                true
            }
            Answer::Refused(spans, why) => {
                self.batch.clear();
                self.refused += spans;
                self.fails(&why);
                true
            }
            Answer::Away(why) => {
                self.fails(&why);
                false
            }
        }
    }

    fn fails(&mut self, why: &str) {
        if self.failures == 0 {
            tracing::warn!(
                "the collector at {} does not take spans: {why}. The run goes on; {MOST} spans are kept meanwhile",
                self.host()
            );
        }
        self.failures = self.failures.saturating_add(1);
    }

    async fn post(&self) -> Answer {
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(InstrumentationScope {
                        name: "lockstep".to_owned(),
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                        ..InstrumentationScope::default()
                    }),
                    spans: self.batch.clone(),
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        let request = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/x-protobuf")
            .body(request.encode_to_vec());
        let away = |error: reqwest::Error| Answer::Away(error.without_url().to_string());
        match request.send().await {
            Err(error) => away(error),
            Ok(answer) => {
                let status = answer.status();
                match answer.bytes().await {
                    Err(error) => away(error),
                    Ok(body) => Answer::of(status, &body, self.batch.len() as u64),
                }
            }
        }
    }

    fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }
}

/// How long is waited after so many failures in a row.
pub(super) fn wait_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (FIRST_WAIT * 2_u32.pow(doublings)).min(LONGEST_WAIT)
}

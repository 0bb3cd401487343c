//! Posts every alert that is raised or cleared as JSON, to one address. It has a task of its own: a receiver that is slow or
//! gone holds up nobody, and is given up after a few tries. The address may be a secret, so it is never written anywhere;
//! what is said of it is its host.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lockstep_config::AlertsSection;
use lockstep_proto::domain::Alert;
use reqwest::{Client, Url};
use serde_json::json;

use crate::dashboard::Board;
use crate::outbound;

/// How long is waited before each further try.
const TRIES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(5)];

/// Why alerts cannot be posted. The address is in none of them.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The file with the address.
    #[error("alerts.webhook_file: cannot read {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: std::path::PathBuf,
        /// Of the system.
        cause: std::io::Error,
    },
    /// What is in it.
    #[error("{key} holds no address: write one line such as https://HOST/PATH")]
    NoAddress {
        /// The key of the config.
        key: &'static str,
    },
    /// The client cannot be made.
    #[error("cannot make a client for the webhook of [alerts]: {0}")]
    Client(String),
}

/// Posts alerts.
#[derive(Debug)]
pub(crate) struct Webhook {
    client: Client,
    url: Url,
}

impl Webhook {
    /// The webhook of a config, if it has one.
    pub(crate) fn of(alerts: &AlertsSection) -> Result<Option<Webhook>, WebhookError> {
        let (key, text) = match (&alerts.webhook, &alerts.webhook_file) {
            (Some(url), _) => ("alerts.webhook", url.clone()),
            (None, Some(file)) => ("alerts.webhook_file", read(file)?),
            (None, None) => return Ok(None),
        };
        let url = Url::parse(text.trim())
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or(WebhookError::NoAddress { key })?;
        let client = outbound::client().map_err(WebhookError::Client)?;
        Ok(Some(Webhook { client, url }))
    }

    /// Posts what comes until the board is gone or the run is over and everything is told.
    pub(crate) async fn carry(self, board: Arc<Board>) {
        let mut changed = board.changed.subscribe();
        loop {
            let (news, is_over) = {
                let mut shared = board.lock();
                (shared.alerts.take_news(), shared.end.is_some())
            };
            for alert in &news {
                self.post(&board, alert).await;
            }
            // Nothing comes after the end.
            if is_over || changed.changed().await.is_err() {
                return;
            }
        }
    }

    async fn post(&self, board: &Board, alert: &Alert) {
        let state = if alert.until.is_some() { "cleared" } else { "raised" };
        let body = json!({
            "run": board.name, "run_id": board.run_id, "state": state, "kind": alert.kind, "about": alert.about,
            "since": alert.since, "until": alert.until, "sentence": alert.sentence,
            // What chat services show.
            "text": format!("{}: {} ({state}): {}", board.name, alert.kind, alert.sentence),
        })
        .to_string();
        let mut failure = String::new();
        for wait in TRIES {
            tokio::time::sleep(wait).await;
            let request = self.client.post(self.url.clone());
            let request = request.header("content-type", "application/json").body(body.clone());
            failure = match request.send().await {
                Ok(answer) if answer.status().is_success() => return,
                Ok(answer) if answer.status().is_client_error() => {
                    failure = format!("it answered {}", answer.status());
                    break;
                }
                Ok(answer) => format!("it answered {}", answer.status()),
                Err(error) => error.without_url().to_string(),
            };
        }
        let host = self.url.host_str().unwrap_or_default();
        tracing::warn!(
            "the webhook at {host} was not told of an alert ({}): {failure}",
            alert.kind
        );
    }
}

fn read(path: &Path) -> Result<String, WebhookError> {
    std::fs::read_to_string(path).map_err(|cause| WebhookError::Unreadable {
        path: path.to_owned(),
        cause,
    })
}

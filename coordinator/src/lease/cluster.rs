//! The cluster's API, as far as one Lease needs it: read it, and write it back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Certificate, Client, Response, StatusCode};

use super::record::Record;
use super::{LeaseError, LeaseOptions};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// Why there is no record.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Another one wrote in between.
    Conflict,
    /// No such Lease.
    Missing,
    /// No right to it; what the cluster said.
    Denied(String),
    /// No answer, or none that can be used; why.
    Away(String),
}

impl Refusal {
    pub(super) fn sentence(&self) -> String {
        match self {
            Refusal::Conflict => "another one wrote it at the same time".to_owned(),
            Refusal::Missing => "it is not there any more".to_owned(),
            Refusal::Denied(said) => format!("the cluster refuses it: {said}"),
            Refusal::Away(why) => why.clone(),
        }
    }
}

/// One Lease of the cluster that this pod is in.
#[derive(Debug)]
pub(super) struct Cluster {
    client: Client,
    url: String,
    token: PathBuf,
}

impl Cluster {
    /// As Kubernetes tells every pod.
    pub(super) fn of_pod(options: &LeaseOptions) -> Result<Cluster, LeaseError> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let at = variable("KUBERNETES_SERVICE_HOST").zip(variable("KUBERNETES_SERVICE_PORT"));
        let (host, port) = at.ok_or(LeaseError::NoCluster)?;
        // An address of IPv6 has brackets in a URL.
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let namespace = of_account(&options.account, "namespace")?;
        let authority = of_account(&options.account, "ca.crt")?;
        let token = options.account.join("token");
        // Read anew for every call, since the cluster renews it; here only to say early that it is missing.
        of_account(&options.account, "token")?;
        let (namespace, name) = (namespace.trim(), &options.name);
        let url = format!("https://{host}:{port}/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}");
        Ok(Cluster {
            client: client(&authority).map_err(LeaseError::Client)?,
            url,
            token,
        })
    }

    /// What it is now.
    pub(super) async fn read(&self) -> Result<Record, Refusal> {
        let request = self.client.get(&self.url).bearer_auth(self.token()?);
        answered(request.send().await).await
    }

    /// Writes it, unless another one has since it was read; what it is then.
    pub(super) async fn write(&self, record: &Record) -> Result<Record, Refusal> {
        let request = self.client.put(&self.url).bearer_auth(self.token()?);
        let request = request.header(CONTENT_TYPE, "application/json").body(record.text());
        answered(request.send().await).await
    }

    fn token(&self) -> Result<String, Refusal> {
        let text = std::fs::read_to_string(&self.token);
        let text = text.map_err(|error| Refusal::Away(format!("cannot read {}: {error}", self.token.display())))?;
        Ok(text.trim().to_owned())
    }
}

fn of_account(folder: &Path, file: &str) -> Result<String, LeaseError> {
    let path = folder.join(file);
    std::fs::read_to_string(&path).map_err(|cause| LeaseError::Account { path, cause })
}

fn client(authority: &str) -> Result<Client, String> {
    // Fails where the process has a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let said = |error: reqwest::Error| error.to_string();
    let authorities = Certificate::from_pem_bundle(authority.as_bytes()).map_err(said)?;
    if authorities.is_empty() {
        return Err("ca.crt of the pod's account holds no certificate".to_owned());
    }
    Client::builder()
        .timeout(PATIENCE)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        // Of the cluster's own authority only.
        .tls_certs_only(authorities)
        // A connection belongs to the runtime that made it, and who waits and who renews have one each.
        .pool_max_idle_per_host(0)
        .build()
        .map_err(said)
}

async fn answered(answer: Result<Response, reqwest::Error>) -> Result<Record, Refusal> {
    let away = |error: reqwest::Error| Refusal::Away(format!("the cluster does not answer ({})", innermost(&error)));
    let answer = answer.map_err(away)?;
    let status = answer.status();
    let text = answer.text().await.map_err(away)?;
    match status {
        StatusCode::OK => {
            Record::parse(&text).ok_or_else(|| Refusal::Away("the cluster answers something else".to_owned()))
        }
        StatusCode::CONFLICT => Err(Refusal::Conflict),
        StatusCode::NOT_FOUND => Err(Refusal::Missing),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Refusal::Denied(message(&text, status))),
        _ => Err(Refusal::Away(format!(
            "the cluster answers: {}",
            message(&text, status)
        ))),
    }
}

/// What stands in the cluster's own form of an error, or else its code.
fn message(text: &str, status: StatusCode) -> String {
    let object: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let said = object.and_then(|object| object["message"].as_str().map(str::to_owned));
    said.unwrap_or_else(|| status.to_string())
}

/// The last cause, which is what a person can do something about.
fn innermost(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}

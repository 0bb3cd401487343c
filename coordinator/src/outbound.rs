//! The HTTP client by which a coordinator tells others by itself: a webhook, a collector.

use std::time::Duration;

use reqwest::Client;

/// How long whoever is told may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client. An error has no address in it, which may be secret.
pub(crate) fn client() -> Result<Client, String> {
    // Fails where the process has a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .timeout(PATIENCE)
        // Whoever is redirected to was not chosen by the operator.
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| error.without_url().to_string())
}

//! The type of `[security]`: whom the coordinator lets in. Paths only; what is secret never stands in a config.

use std::path::PathBuf;

/// `[security]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecuritySection {
    /// The coordinator's certificate, with those between it and its authority; a PEM file. With it, it talks TLS.
    pub certificate: Option<PathBuf>,
    /// The certificate's private key; a PEM file.
    pub key: Option<PathBuf>,
    /// The authority whose client certificates are taken; a PEM file.
    pub client_ca: Option<PathBuf>,
    /// Hashes of the tokens that are taken, as `lockstep certs token` writes them.
    pub tokens: Option<PathBuf>,
    /// Whether an address other than loopback may do without TLS, or without knowing who calls.
    pub insecure_bind: bool,
    /// Calls by one caller from one address; it may save up for twice as many.
    pub calls_per_second: u64,
    /// Refused calls from one address that are looked into.
    pub failures_per_minute: u64,
    /// Connections from one address at a time.
    pub connections_per_address: u64,
    /// Connections from all addresses at a time.
    pub connections: u64,
}

impl Default for SecuritySection {
    fn default() -> SecuritySection {
        SecuritySection {
            certificate: None,
            key: None,
            client_ca: None,
            tokens: None,
            insecure_bind: false,
            calls_per_second: 100,
            failures_per_minute: 60,
            connections_per_address: 256,
            connections: 4096,
        }
    }
}

impl SecuritySection {
    /// Whether the coordinator talks TLS.
    pub fn has_tls(&self) -> bool {
        self.certificate.is_some()
    }

    /// Whether callers have to prove who they are.
    pub fn knows_callers(&self) -> bool {
        self.client_ca.is_some() || self.tokens.is_some()
    }
}

//! `[security]` from TOML, and which addresses it allows.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::error::ConfigError;
use crate::fields::Fields;
use crate::sections::SecuritySection;

const FILE: &str = "the path of a file";

pub(super) fn read(mut fields: Fields<'_>) -> Result<SecuritySection, ConfigError> {
    let mut path = |key| Ok::<_, ConfigError>(fields.optional_text(key, FILE)?.map(PathBuf::from));
    let (certificate, key) = (path("certificate")?, path("key")?);
    let (client_ca, tokens) = (path("client_ca")?, path("tokens")?);
    match (&certificate, &key) {
        (Some(_), None) => return Err(fields.missing("key", "the private key of security.certificate, a PEM file")),
        (None, Some(_)) => return Err(fields.missing("certificate", "the certificate of security.key, a PEM file")),
        (None, None) if client_ca.is_some() => {
            return Err(fields.missing(
                "certificate",
                "the coordinator's own certificate: client certificates (security.client_ca) are shown over TLS only",
            ));
        }
        _ => {}
    }
    let default = SecuritySection::default();
    let section = SecuritySection {
        certificate,
        key,
        client_ca,
        tokens,
        insecure_bind: fields.boolean("insecure_bind", default.insecure_bind)?,
        calls_per_second: fields.integer("calls_per_second", 1..=1_000_000, Some(default.calls_per_second))?,
        failures_per_minute: fields.integer("failures_per_minute", 1..=1_000_000, Some(default.failures_per_minute))?,
        connections_per_address: fields.integer(
            "connections_per_address",
            1..=1_000_000,
            Some(default.connections_per_address),
        )?,
        connections: fields.integer("connections", 1..=1_000_000, Some(default.connections))?,
    };
    fields.done()?;
    Ok(section)
}

/// Refuses an address that others reach, unless they talk TLS and prove who they are.
pub(super) fn check_bind(
    bind: SocketAddr,
    security: &SecuritySection,
    refuse: impl Fn(&str) -> ConfigError,
) -> Result<(), ConfigError> {
    let is_safe = security.has_tls() && security.knows_callers();
    match bind.ip().is_loopback() || is_safe || security.insecure_bind {
        true => Ok(()),
        false if security.tokens.is_some() => Err(refuse(
            "tokens alone would go over the network in clear: any other address needs TLS and tokens or client \
             certificates. Name security.certificate and security.key (`lockstep certs new` makes them)",
        )),
        false => Err(refuse(
            "any other address needs TLS and tokens or client certificates: name security.certificate and security.key, \
             and security.client_ca or security.tokens (`lockstep certs new` and `lockstep certs token` make them). \
             security.insecure_bind = true lets everybody in who reaches it",
        )),
    }
}

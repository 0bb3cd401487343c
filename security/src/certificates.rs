//! Certificates and keys from PEM files, and whom a client certificate names.
//!
//! The name is a URI among the certificate's subject alternative names, `lockstep:ROLE/NAME`: subjects are free text that
//! every authority writes in its own way, and a URI stands for one thing only.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use rustls::version::TLS13;

use crate::access::{Identity, Role};
use crate::token::is_name;

/// Scheme of the URI that names role and name.
const SCHEME: &str = "lockstep:";

/// Whom a certificate names; one sentence if nobody. That it is to be trusted was checked before.
pub(crate) fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity, String> {
    let parsed = webpki::EndEntityCert::try_from(certificate)
        .map_err(|error| format!("the client certificate cannot be read: {error}"))?;
    let mut names = parsed.valid_uri_names().filter_map(|name| name.strip_prefix(SCHEME));
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(format!(
            "the client certificate does not name one role: it needs exactly one URI {SCHEME}ROLE/NAME among its subject \
             alternative names"
        ));
    };
    let named = name
        .split_once('/')
        .and_then(|(role, name)| Some((Role::of_word(role)?, name)));
    match named {
        Some((role, name)) if is_name(name) => Ok(Identity {
            role,
            name: name.to_owned(),
        }),
        _ => Err(format!(
            "the URI in the client certificate is not {SCHEME}ROLE/NAME with the role trainer, operator or viewer and a \
             name of letters, digits, `.`, `_`, `-` and `@`"
        )),
    }
}

/// How the coordinator talks: TLS 1.3 with this certificate. A session is never taken up again, so that every connection
/// shows its certificate anew. `authority`: whose client certificates are taken; `may_lack`: whether a caller may come
/// without one, and show a token instead.
pub(crate) fn server_config(
    certificate: &[u8],
    key: &[u8],
    authority: Option<&[u8]>,
    may_lack: bool,
) -> Result<ServerConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = chain(certificate).map_err(|cause| format!("security.certificate: {cause}"))?;
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|_| "security.key: it holds no private key in PEM".to_owned())?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| error.to_string())?;
    let builder = match authority {
        Some(authority) => builder.with_client_cert_verifier(verifier(authority, provider, may_lack)?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| format!("security.certificate and security.key do not make a pair: {error}"))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn verifier(
    authority: &[u8],
    provider: Arc<CryptoProvider>,
    may_lack: bool,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let refused = |cause: String| format!("security.client_ca: {cause}");
    let mut roots = RootCertStore::empty();
    for certificate in chain(authority).map_err(refused)? {
        roots.add(certificate).map_err(|error| refused(error.to_string()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if may_lack {
        builder.allow_unauthenticated()
    } else {
        builder
    };
    builder.build().map_err(|error| refused(error.to_string()))
}

/// When every certificate of a PEM file is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The latest beginning in the chain.
    pub from: SystemTime,
    /// The earliest end.
    pub until: SystemTime,
}

/// When every certificate of a PEM file is valid.
///
/// # Errors
/// One sentence, where one of them does not say.
pub fn validity(pem: &[u8]) -> Result<Validity, String> {
    let mut all: Option<Validity> = None;
    // Before 1970 is long over, too.
    let moment = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    for certificate in chain(pem)? {
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| format!("a certificate in it cannot be read: {error}"))?;
        let from = moment(parsed.validity().not_before.timestamp());
        let until = moment(parsed.validity().not_after.timestamp());
        all = Some(match all {
            Some(other) => Validity {
                from: other.from.max(from),
                until: other.until.min(until),
            },
            None => Validity { from, until },
        });
    }
    all.ok_or_else(|| "it holds no certificate in PEM".to_owned())
}

/// Until when every certificate of a PEM file is valid: the earliest end in the chain.
///
/// # Errors
/// One sentence, where one of them does not say.
pub(crate) fn valid_until(pem: &[u8]) -> Result<SystemTime, String> {
    validity(pem).map(|valid| valid.until)
}

/// Every certificate of a PEM file.
fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err("it holds no certificate in PEM".to_owned()),
        Err(error) => Err(format!("it is not PEM: {error}")),
    }
}

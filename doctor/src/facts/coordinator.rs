//! Who answers at a coordinator's address: by which name, certificate and clock. One page is asked for that anybody may see.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lockstep_security::CredentialArguments;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, ClientConnection, Error, RootCertStore, StreamOwned};
use serde::Serialize;

use crate::facts::network::{self, Name};

/// Bytes of an answer that are read.
const MOST_BYTES: u64 = 1 << 20;
/// What the page of every coordinator has.
const MARK: &str = "<title>Lockstep</title>";

/// A coordinator's address, and what came of asking there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Coordinator {
    /// As it was given.
    pub url: String,
    /// Its host, and the addresses of that.
    pub name: Option<Name>,
    /// The answer.
    pub answer: Result<Answer, Fault>,
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// Of HTTP.
    pub status: u16,
    /// Whether it is a coordinator.
    pub is_coordinator: bool,
    /// Seconds by which the clock there is ahead of this one; 0 where none can be seen.
    pub clock_ahead: Option<f64>,
    /// Until the answer was there.
    pub seconds: f64,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// It is no address.
    Address(String),
    /// What is to be shown or trusted cannot be used.
    Credentials(String),
    /// The name has no address.
    Unresolved(String),
    /// Nobody listens there, or is not reached.
    Unreachable(String),
    /// It talks TLS, and was asked without; or the other way about.
    Tls {
        /// Whether it does.
        there: bool,
    },
    /// Its certificate is not believed.
    Certificate(CertificateFault, String),
    /// It closes the connection on who comes without a certificate, or with this one.
    Refused(String),
    /// Something that is no HTTP.
    Silent(String),
}

/// Why a certificate is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CertificateFault {
    /// It was valid once.
    Expired,
    /// It will be.
    Early,
    /// It is for another name.
    Name,
    /// It is from another authority.
    Authority,
    /// Anything else.
    Other,
}

impl Coordinator {
    /// Asks; waits so long for each connection and answer.
    pub fn look(url: &str, credentials: &CredentialArguments, patience: Duration) -> Coordinator {
        let mut coordinator = Coordinator {
            url: url.to_owned(),
            name: None,
            answer: Err(Fault::Address(
                "it is not http://HOST:PORT or https://HOST:PORT".to_owned(),
            )),
        };
        if let Some((tls, host, port)) = parts(url) {
            let name = Name::look(&host, network::PATIENCE);
            coordinator.answer = match &name.addresses {
                Ok(addresses) => {
                    let addresses = addresses
                        .iter()
                        .map(|address| SocketAddr::new(*address, port))
                        .collect::<Vec<_>>();
                    ask(tls, &host, &addresses, credentials, patience)
                }
                Err(reason) => Err(Fault::Unresolved(reason.clone())),
            };
            coordinator.name = Some(name);
        }
        coordinator
    }
}

/// Whether it is https, the host, and the port.
fn parts(url: &str) -> Option<(bool, String, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    let tls = match scheme {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    let authority = rest.split('/').next()?;
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, if tls { 443 } else { 80 }),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then(|| (tls, host.to_owned(), port))
}

fn connect(addresses: &[SocketAddr], patience: Duration) -> Result<TcpStream, Fault> {
    let mut last = "it has no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(address, patience) {
            Ok(stream) => {
                let set = stream
                    .set_read_timeout(Some(patience))
                    .and_then(|()| stream.set_write_timeout(Some(patience)));
                set.map_err(|error| Fault::Unreachable(error.to_string()))?;
                return Ok(stream);
            }
            Err(error) => last = format!("{address}: {error}"),
        }
    }
    Err(Fault::Unreachable(last))
}

fn ask(
    tls: bool,
    host: &str,
    addresses: &[SocketAddr],
    credentials: &CredentialArguments,
    patience: Duration,
) -> Result<Answer, Fault> {
    let config = if tls { Some(client(credentials)?) } else { None };
    let stream = connect(addresses, patience)?;
    let before = SystemTime::now();
    let start = Instant::now();
    let bytes = match config {
        Some(config) => over_tls(config, host, stream)?,
        None => {
            let silent = |error: std::io::Error| Fault::Silent(error.to_string());
            let heard = talk(stream, host).map_err(silent);
            let is_http = heard.as_ref().is_ok_and(|bytes| bytes.starts_with(b"HTTP/"));
            if !is_http && talks_tls(host, connect(addresses, patience)?) {
                return Err(Fault::Tls { there: true });
            }
            heard?
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    answer_of(&bytes, before, SystemTime::now(), seconds)
        .ok_or_else(|| Fault::Silent("what it says is no HTTP".to_owned()))
}

/// Asks for the page, and reads until the other side closes.
fn talk(mut stream: impl Read + Write, host: &str) -> std::io::Result<Vec<u8>> {
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    // In one piece: who answers the first one and closes would break the others.
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut bytes = Vec::new();
    match stream.take(MOST_BYTES).read_to_end(&mut bytes) {
        // A side that closes without the farewell of TLS has said all that is wanted.
        Err(_) if bytes.starts_with(b"HTTP/") => Ok(bytes),
        Err(error) => Err(error),
        Ok(_) => Ok(bytes),
    }
}

fn over_tls(config: ClientConfig, host: &str, stream: TcpStream) -> Result<Vec<u8>, Fault> {
    let name = ServerName::try_from(host.to_owned()).map_err(|error| Fault::Address(error.to_string()))?;
    let connection =
        ClientConnection::new(Arc::new(config), name).map_err(|error| Fault::Credentials(error.to_string()))?;
    talk(StreamOwned::new(connection, stream), host).map_err(|error| {
        let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        cause.map_or_else(|| Fault::Silent(error.to_string()), fault_of)
    })
}

/// What an error of TLS means.
fn fault_of(error: &Error) -> Fault {
    let said = error.to_string();
    match error {
        Error::InvalidCertificate(cause) => {
            let fault = match cause {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => CertificateFault::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => CertificateFault::Early,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    CertificateFault::Name
                }
                CertificateError::UnknownIssuer | CertificateError::BadSignature => CertificateFault::Authority,
                _ => CertificateFault::Other,
            };
            Fault::Certificate(fault, said)
        }
        Error::InvalidMessage(_) => Fault::Tls { there: false },
        Error::AlertReceived(_) => Fault::Refused(said),
        _ => Fault::Silent(said),
    }
}

/// Whether somebody who does not talk plain HTTP talks TLS.
fn talks_tls(host: &str, stream: TcpStream) -> bool {
    // Trusts nobody: a certificate that is not believed is one nevertheless.
    let Ok(config) = builder().map(|builder| {
        builder
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth()
    }) else {
        return false;
    };
    let name = ServerName::try_from(host.to_owned());
    let Some(Ok(connection)) = name.ok().map(|name| ClientConnection::new(Arc::new(config), name)) else {
        return false;
    };
    let refused = talk(StreamOwned::new(connection, stream), host);
    let cause = refused.err().and_then(|error| error.into_inner());
    let cause = cause.and_then(|cause| cause.downcast::<Error>().ok());
    cause.is_some_and(|error| matches!(*error, Error::InvalidCertificate(_)))
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>;

fn builder() -> Result<Builder, Fault> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Fault::Credentials(error.to_string()))
}

/// Trusts the authority that is named, and shows the certificate that is, if one is.
fn client(credentials: &CredentialArguments) -> Result<ClientConfig, Fault> {
    let unusable =
        |path: &Path, error: &dyn std::fmt::Display| Fault::Credentials(format!("{}: {error}", path.display()));
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, Fault> {
        let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
            .map_err(|error| unusable(path, &error))?
            .collect();
        read.map_err(|error| unusable(path, &error))
    };
    let authority = credentials
        .ca
        .as_deref()
        .ok_or_else(|| Fault::Credentials("no authority is named".to_owned()))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authority)? {
        roots.add(certificate).map_err(|error| unusable(authority, &error))?;
    }
    let builder = builder()?.with_root_certificates(roots);
    let mut config = match (&credentials.cert, &credentials.key) {
        (Some(certificate), Some(key)) => {
            let read = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error))?;
            builder
                .with_client_auth_cert(certificates(certificate)?, read)
                .map_err(|error| unusable(certificate, &error))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// What an answer of HTTP says, which was asked for and heard between two moments of this clock.
fn answer_of(bytes: &[u8], before: SystemTime, after: SystemTime, seconds: f64) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines
        .next()?
        .strip_prefix("HTTP/")?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()?;
    let date = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("date")
            .then(|| httpdate::parse_http_date(value.trim()).ok())?
    });
    Some(Answer {
        status,
        is_coordinator: body.contains(MARK),
        clock_ahead: date.map(|date| ahead(date, before, after)),
        seconds,
    })
}

/// How far a clock is ahead that said `date`, a whole second, between two moments of this one: the least that is possible.
fn ahead(date: SystemTime, before: SystemTime, after: SystemTime) -> f64 {
    let signed = |later: SystemTime, earlier: SystemTime| match later.duration_since(earlier) {
        Ok(span) => span.as_secs_f64(),
        Err(error) => -error.duration().as_secs_f64(),
    };
    let (least, most) = (signed(date, after), signed(date + Duration::from_secs(1), before));
    match () {
        () if least > 0.0 => least,
        () if most < 0.0 => most,
        () => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        assert_eq!(
            parts("http://127.0.0.1:7000"),
            Some((false, "127.0.0.1".to_owned(), 7000))
        );
        assert_eq!(parts("https://[::1]:7000/x"), Some((true, "::1".to_owned(), 7000)));
        assert_eq!(parts("https://host"), Some((true, "host".to_owned(), 443)));
        for wrong in ["host:7000", "ftp://host", "http://", "http://host:port"] {
            assert_eq!(parts(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_clock_is_ahead_by_what_its_whole_seconds_prove() {
        let at = |seconds: f64| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(1e6 + seconds);
        assert_eq!(ahead(at(0.0), at(0.9), at(0.95)), 0.0, "the second is not over yet");
        assert!((ahead(at(60.0), at(0.5), at(0.75)) - 59.25).abs() < 1e-3);
        assert!((ahead(at(-60.0), at(0.5), at(0.75)) + 59.5).abs() < 1e-3);
    }

    #[test]
    fn an_answer_is_read_as_http() {
        let now = SystemTime::now();
        let page = format!(
            "HTTP/1.1 200 OK\r\ndate: {}\r\n\r\n<title>Lockstep</title>",
            httpdate::fmt_http_date(now)
        );
        let answer = answer_of(page.as_bytes(), now, now, 0.0).unwrap();
        assert_eq!(
            (answer.status, answer.is_coordinator, answer.clock_ahead),
            (200, true, Some(0.0))
        );
        assert_eq!(answer_of(b"SSH-2.0-OpenSSH\r\n", now, now, 0.0), None);
        assert!(
            !answer_of(b"HTTP/1.0 404 Not Found\r\n\r\n", now, now, 0.0)
                .unwrap()
                .is_coordinator
        );
    }
}

//! What a trainer or an operator brings along: the authority that it trusts, and its certificate or token.
//!
//! Files are read again for each connection, so that whoever comes back after a long time comes with what is valid now.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity as Pair};
use tonic::{Request, Status};

use crate::token::{Token, TokenError};

/// Holds a token itself, for processes that are started with one.
const TOKEN: &str = "LOCKSTEP_TOKEN";

/// A connection whose calls show the token, if there is one.
pub type Channel = InterceptedService<tonic::transport::Channel, Bearer>;

/// What can be typed, or said by the environment.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CredentialArguments {
    /// The authority that the coordinator's certificate comes from, a PEM file; needed for https
    #[arg(long, env = "LOCKSTEP_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The certificate to show to the coordinator, a PEM file
    #[arg(long, env = "LOCKSTEP_CERT", value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// The private key of that certificate, a PEM file
    #[arg(long, env = "LOCKSTEP_KEY", value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// A file with the token to show to the coordinator [default: the token in LOCKSTEP_TOKEN, if it is set]
    #[arg(long, env = "LOCKSTEP_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// What a caller brings along.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    files: CredentialArguments,
    token: Option<Token>,
}

/// Why it cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Not an address.
    #[error("{address} is no address of a coordinator; write http://127.0.0.1:PORT or https://HOST:PORT")]
    Address {
        /// As given.
        address: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Of the system.
        cause: String,
    },
    /// Something that should be a token is none.
    #[error("{place} holds no token: {cause}")]
    Token {
        /// Where it stands.
        place: String,
        /// What is wrong.
        cause: TokenError,
    },
    /// The coordinator's certificate cannot be checked.
    #[error("{address} talks TLS: name the authority of its certificate with --ca or LOCKSTEP_CA")]
    NoAuthority {
        /// Of the coordinator.
        address: String,
    },
    /// Certificate, key and authority do not fit.
    #[error("the certificates for {address} cannot be used: {cause}")]
    Pair {
        /// Of the coordinator.
        address: String,
        /// What is wrong.
        cause: String,
    },
    /// A token would go over the network in clear.
    #[error(
        "{address} does not talk TLS, and everybody on the way could read the token; only a loopback address is told it \
         in clear. Use https, or leave the token away"
    )]
    InClear {
        /// Of the coordinator.
        address: String,
    },
}

impl Credentials {
    /// Of what was typed, and of the environment.
    ///
    /// # Errors
    /// The environment holds something in the place of a token that is none.
    pub fn of(files: CredentialArguments) -> Result<Credentials, CredentialError> {
        let token = match std::env::var(TOKEN) {
            Ok(text) if files.token_file.is_none() && !text.is_empty() => Some(parsed(&text, TOKEN)?),
            _ => None,
        };
        Ok(Credentials { files, token })
    }

    /// A token, and the authority that the coordinator's certificate comes from.
    pub fn with_token(token: Token, ca: Option<PathBuf>) -> Credentials {
        Credentials {
            files: CredentialArguments {
                ca,
                ..CredentialArguments::default()
            },
            token: Some(token),
        }
    }

    /// The name in the environment under which a started process finds its token.
    pub const TOKEN_VARIABLE: &str = TOKEN;

    /// How to reach a coordinator, and what to show it. Reads the files.
    ///
    /// # Errors
    /// The address is none, a file cannot be read or used, or a token would be sent in clear.
    pub fn way_to(&self, address: &str) -> Result<(Endpoint, Bearer), CredentialError> {
        let no_address = || CredentialError::Address {
            address: address.to_owned(),
        };
        let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|_| no_address())?;
        let (scheme, host) = (endpoint.uri().scheme_str(), endpoint.uri().host());
        let host = host.ok_or_else(no_address)?.to_owned();
        let token = self.token()?;
        match scheme {
            Some("https") => {
                let tls = self.tls(address)?;
                let endpoint = endpoint.tls_config(tls).map_err(|error| CredentialError::Pair {
                    address: address.to_owned(),
                    cause: innermost(&error),
                })?;
                Ok((endpoint, Bearer::of(token.as_ref())))
            }
            Some("http") if token.is_some() && !is_loopback(&host) => Err(CredentialError::InClear {
                address: address.to_owned(),
            }),
            Some("http") => Ok((endpoint, Bearer::of(token.as_ref()))),
            _ => Err(no_address()),
        }
    }

    fn token(&self) -> Result<Option<Token>, CredentialError> {
        match &self.files.token_file {
            Some(file) => Ok(Some(parsed(
                &String::from_utf8_lossy(&read(file)?),
                &file.display().to_string(),
            )?)),
            None => Ok(self.token.clone()),
        }
    }

    fn tls(&self, address: &str) -> Result<ClientTlsConfig, CredentialError> {
        let ca = self.files.ca.as_ref().ok_or_else(|| CredentialError::NoAuthority {
            address: address.to_owned(),
        })?;
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
        Ok(match (&self.files.cert, &self.files.key) {
            (Some(certificate), Some(key)) => tls.identity(Pair::from_pem(read(certificate)?, read(key)?)),
            _ => tls,
        })
    }
}

/// Shows a token with every call.
#[derive(Clone, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    fn of(token: Option<&Token>) -> Bearer {
        let value = token.and_then(|token| MetadataValue::try_from(format!("Bearer {}", token.reveal())).ok());
        Bearer(value.map(|mut value| {
            value.set_sensitive(true);
            value
        }))
    }

    /// The same connection with the token.
    pub fn on(self, channel: tonic::transport::Channel) -> Channel {
        InterceptedService::new(channel, self)
    }
}

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "Bearer(…)"
        } else {
            "Bearer(none)"
        })
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

fn parsed(text: &str, place: &str) -> Result<Token, CredentialError> {
    Token::parse(text).map_err(|cause| CredentialError::Token {
        place: place.to_owned(),
        cause,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, CredentialError> {
    std::fs::read(path).map_err(|error| CredentialError::Unreadable {
        path: path.to_owned(),
        cause: error.to_string(),
    })
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The sentence at the bottom of a chain of causes.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_told_in_clear_to_this_machine_only() {
        let credentials = Credentials::with_token(Token::generate().unwrap(), None);
        for address in ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"] {
            assert!(credentials.way_to(address).is_ok(), "{address}");
        }
        for address in ["http://10.0.0.1:1", "http://host:1", "http://127.0.0.1.example.org:1"] {
            let error = credentials.way_to(address).unwrap_err();
            assert!(matches!(error, CredentialError::InClear { .. }), "{address}: {error}");
        }
        assert!(Credentials::default().way_to("http://10.0.0.1:1").is_ok());
        assert!(!format!("{credentials:?}").contains("lst_"));
    }

    #[test]
    fn https_needs_an_authority_and_other_schemes_are_no_address() {
        let error = Credentials::default().way_to("https://host:1").unwrap_err();
        assert!(error.to_string().contains("LOCKSTEP_CA"), "{error}");
        for address in ["ftp://host:1", "host", "", "http://"] {
            let error = Credentials::default().way_to(address).unwrap_err();
            assert!(matches!(error, CredentialError::Address { .. }), "{address}: {error}");
        }
    }
}

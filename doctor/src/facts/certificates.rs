//! The files of `[security]`, as the coordinator will read them.

use std::path::PathBuf;
use std::time::SystemTime;

use lockstep_config::SecuritySection;
use lockstep_security::{Keeper, Paths, Validity, validity};
use serde::Serialize;

/// What came of reading them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificates {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// Why the files cannot be used together.
    pub unusable: Option<String>,
    /// From when until when all of them are valid.
    #[serde(skip)]
    pub valid: Option<Validity>,
    /// The time by which that is judged.
    #[serde(skip)]
    pub now: Option<SystemTime>,
}

impl Certificates {
    /// Reads them; none where the coordinator talks no TLS.
    pub fn look(security: &SecuritySection, now: SystemTime) -> Option<Certificates> {
        let certificate = security.certificate.clone()?;
        let paths = Paths {
            certificate: security.certificate.clone(),
            key: security.key.clone(),
            client_ca: security.client_ca.clone(),
            tokens: security.tokens.clone(),
        };
        let unusable = Keeper::open(paths, None).err().map(|error| error.to_string());
        let pem = std::fs::read(&certificate).unwrap_or_default();
        Some(Certificates {
            valid: validity(&pem).ok(),
            certificate,
            unusable,
            now: Some(now),
        })
    }
}

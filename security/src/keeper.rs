//! The files that say whom the coordinator lets in, read at the start and again whenever one of them changes.
//!
//! What is read is made whole or not at all: while a new pair of certificate and key is being written, or is broken, the old
//! one stays in use, and that is said once.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;

use crate::access::Identity;
use crate::certificates::{identity_of, server_config, valid_until};
use crate::token::{Token, Tokens};

/// Bytes of one of the files.
const MOST_BYTES: u64 = 1 << 20;

/// Where the files are, as `[security]` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// The coordinator's certificate, with those between it and its authority.
    pub certificate: Option<PathBuf>,
    /// The certificate's private key.
    pub key: Option<PathBuf>,
    /// The authority whose client certificates are taken.
    pub client_ca: Option<PathBuf>,
    /// Hashes of tokens.
    pub tokens: Option<PathBuf>,
}

/// Why the files cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecurityError {
    /// One cannot be read.
    #[error("cannot read {} ({key}): {cause}", path.display())]
    Unreadable {
        /// The key of the config that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Of the system.
        cause: String,
    },
    /// What is in them is not what it should be.
    #[error("{0}")]
    Content(String),
}

/// What the files say at some moment.
#[derive(Debug)]
pub struct Keys {
    /// How connections are encrypted, if they are.
    pub tls: Option<Arc<ServerConfig>>,
    /// Until when the certificate is valid that is shown, and those between it and its authority. Why that is not known, where
    /// it cannot be read; none: there is no certificate.
    pub valid_until: Option<Result<SystemTime, String>>,
    /// Whom tokens let in.
    pub tokens: Tokens,
}

impl Keys {
    /// Whom a token lets in.
    pub fn of_token(&self, token: &Token) -> Option<Identity> {
        self.tokens.find(token).cloned()
    }
}

/// What came of looking at the files again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reload {
    /// They are as they were.
    Unchanged,
    /// What they say now counts.
    Taken,
    /// They cannot be used, and what they said before counts. Said once for each change.
    Refused(SecurityError),
}

/// Keeps what the files say.
#[derive(Debug)]
pub struct Keeper {
    paths: Paths,
    /// A token that is in no file: that of trainers which this process starts itself.
    own: Option<(Token, Identity)>,
    keys: RwLock<Arc<Keys>>,
    /// Hash of what was read last, whether it could be used or not.
    seen: Mutex<blake3::Hash>,
}

impl Keeper {
    /// Reads the files.
    ///
    /// # Errors
    /// One cannot be read, or they make no sense together.
    pub fn open(paths: Paths, own: Option<(Token, Identity)>) -> Result<Keeper, SecurityError> {
        let files = Files::read(&paths)?;
        let keys = files.keys(&paths, own.as_ref())?;
        Ok(Keeper {
            seen: Mutex::new(files.hash()),
            keys: RwLock::new(Arc::new(keys)),
            paths,
            own,
        })
    }

    /// What counts now.
    pub fn keys(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at the files again.
    pub fn reload(&self) -> Reload {
        let files = Files::read(&self.paths);
        let hash = match &files {
            Ok(files) => files.hash(),
            Err(error) => blake3::hash(error.to_string().as_bytes()),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == hash {
            return Reload::Unchanged;
        }
        *seen = hash;
        match files.and_then(|files| files.keys(&self.paths, self.own.as_ref())) {
            Ok(keys) => {
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
                Reload::Taken
            }
            Err(error) => Reload::Refused(error),
        }
    }

    /// Whom a client certificate names, which was verified before; one sentence if nobody.
    ///
    /// # Errors
    /// It names no role.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Identity, String> {
        identity_of(certificate)
    }
}

/// What is in the files.
struct Files {
    certificate: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    client_ca: Option<Vec<u8>>,
    tokens: Option<Vec<u8>>,
}

impl Files {
    fn read(paths: &Paths) -> Result<Files, SecurityError> {
        Ok(Files {
            certificate: read("security.certificate", paths.certificate.as_deref())?,
            key: read("security.key", paths.key.as_deref())?,
            client_ca: read("security.client_ca", paths.client_ca.as_deref())?,
            tokens: read("security.tokens", paths.tokens.as_deref())?,
        })
    }

    fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for file in [&self.certificate, &self.key, &self.client_ca, &self.tokens] {
            let bytes = file.as_deref().unwrap_or_default();
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        }
        hasher.finalize()
    }

    fn keys(&self, paths: &Paths, own: Option<&(Token, Identity)>) -> Result<Keys, SecurityError> {
        let mut tokens = match (&self.tokens, &paths.tokens) {
            (Some(bytes), Some(path)) => {
                let text = str::from_utf8(bytes)
                    .map_err(|_| SecurityError::Content(format!("{} (security.tokens) is no text", path.display())))?;
                Tokens::parse(text, path)
                    .map_err(|cause| SecurityError::Content(format!("security.tokens: {cause}")))?
            }
            _ => Tokens::default(),
        };
        if let Some((token, identity)) = own {
            tokens.add(token, identity.clone());
        }
        let tls = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let may_lack = self.tokens.is_some() || own.is_some();
                let config = server_config(certificate, key, self.client_ca.as_deref(), may_lack);
                Some(Arc::new(config.map_err(SecurityError::Content)?))
            }
            _ => None,
        };
        // What TLS takes and this cannot read is served nevertheless: it only means that nobody is warned in time.
        let certificate = self.certificate.as_deref().filter(|_| tls.is_some());
        Ok(Keys {
            tls,
            valid_until: certificate.map(valid_until),
            tokens,
        })
    }
}

fn read(key: &'static str, path: Option<&Path>) -> Result<Option<Vec<u8>>, SecurityError> {
    let Some(path) = path else { return Ok(None) };
    let unreadable = |cause: String| SecurityError::Unreadable {
        key,
        path: path.to_owned(),
        cause,
    };
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|error| unreadable(error.to_string()))?;
    match bytes.len() as u64 > MOST_BYTES {
        true => Err(unreadable(format!("it has more than {MOST_BYTES} bytes"))),
        false => Ok(Some(bytes)),
    }
}

//! A bucket for a test: `bucket-double` on a folder of its own, and stores in it.

use std::path::PathBuf;

use bucket_double::{BUCKET, SECRET_KEY, Server, Trouble, Troubles};
use lockstep_checkpoint::{Limits, Store};

/// The server; it ends with its value.
pub(crate) struct S3Server {
    server: Server,
    _root: tempfile::TempDir,
}

impl S3Server {
    pub(crate) fn start(trouble: Trouble, seed: u64) -> S3Server {
        let root = tempfile::tempdir().unwrap();
        let server = Server::start(root.path(), seed).unwrap();
        server.set(trouble);
        S3Server { server, _root: root }
    }

    pub(crate) fn troubles(&self) -> &Troubles {
        self.server.troubles()
    }

    /// A store in the server, with settings as the environment would give them.
    pub(crate) fn store(&self, prefix: &str, limits: Limits) -> Store {
        self.store_with(SECRET_KEY, prefix, limits)
    }

    pub(crate) fn store_with(&self, secret: &str, prefix: &str, limits: Limits) -> Store {
        let mut settings = self.server.settings().to_vec();
        settings.push(("AWS_SECRET_ACCESS_KEY".to_owned(), secret.to_owned()));
        settings.push(("HOME".to_owned(), "is no setting of a store".to_owned()));
        Store::open_with(&format!("s3://{BUCKET}/{prefix}"), limits, settings).unwrap()
    }

    /// Where the server keeps what lies under a prefix.
    pub(crate) fn folder(&self, prefix: &str) -> PathBuf {
        self.server.folder(prefix)
    }
}

//! Where checkpoints lie: a folder, an S3-like store, or memory (for snapshots), behind one plain, blocking interface.
//!
//! A [`Store`] has a small runtime of its own, retries what a network lost, and gives up at a deadline. Folders are crash-safe:
//! a file is written beside its place, flushed, renamed (manifests: linked, so that none is overwritten), and its folder is
//! flushed. Parts lie under `parts/` and are named by their hash; manifests lie under `step-N/`.
//!
//! - `write`: a part goes in · `commit`: a manifest goes in · [`crate::read`], [`crate::verify`]: out again
//! - [`crate::retention`]: what is deleted · `requests`: waiting, trying again, reading ahead

mod requests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use tokio::runtime::Runtime;

/// How far threads that write checkpoints stand back behind those that train, on a scale of 20.
const BEHIND: i32 = 15;

use crate::error::{CheckpointError, chain};
pub(crate) use requests::{PIECE, PIECES};

/// How long a store may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// One request to a remote store, which is then tried again.
    pub request: Duration,
    /// All tries of one request to a remote store.
    pub retrying: Duration,
    /// One call: writing a part, reading a range.
    pub call: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            request: Duration::from_secs(60),
            retrying: Duration::from_secs(180),
            call: Duration::from_secs(3600),
        }
    }
}

/// A place for checkpoints. Clones are the same store. Its calls block; an async task must move them to a thread for that.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    objects: Arc<dyn ObjectStore>,
    /// Always there but while it is dropped.
    runtime: Option<Runtime>,
    name: String,
    place: Place,
    limits: Limits,
}

enum Place {
    Folder(PathBuf),
    Remote,
    Memory,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A plain drop waits for what is still under way, which a dead network disk never ends, and panics in async code.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Store {
    /// The store that a config names: a folder, which is made, or `s3://BUCKET/PREFIX`, whose endpoint, region and
    /// credentials come from the usual `AWS_…` variables of the environment.
    ///
    /// # Errors
    /// The address is none, or the folder cannot be made.
    pub fn open(location: &str, limits: Limits) -> Result<Store, CheckpointError> {
        Store::open_with(location, limits, std::env::vars())
    }

    /// As [`Store::open`], with `settings` for the environment.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(
        location: &str,
        limits: Limits,
        settings: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Store, CheckpointError> {
        let refused = |why: String| CheckpointError::Location {
            location: location.to_owned(),
            why,
        };
        match location.split_once("://") {
            None => Store::folder(Path::new(location), limits),
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() {
                    return Err(refused("write it as s3://BUCKET/PREFIX".to_owned()));
                }
                Store::s3(location, [bucket, prefix], limits, settings)
            }
            Some((scheme, _)) => Err(refused(format!(
                "{scheme}:// is not known; give a folder or s3://BUCKET/PREFIX"
            ))),
        }
    }

    /// A folder of this machine or of a network disk; made where it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn folder(path: &Path, limits: Limits) -> Result<Store, CheckpointError> {
        let refused = |why: String| CheckpointError::Location {
            location: path.display().to_string(),
            why: format!("{why}. Give a folder that can be written to"),
        };
        make_durably(path).map_err(|e| refused(e.to_string()))?;
        let objects = LocalFileSystem::new_with_prefix(path).map_err(|e| refused(chain(&e)))?;
        let folder = path.canonicalize().map_err(|e| refused(e.to_string()))?;
        let name = path.display().to_string();
        Store::new(Arc::new(objects.with_fsync(true)), Place::Folder(folder), name, limits)
    }

    /// The memory of this process: what a snapshot lies in.
    ///
    /// # Errors
    /// The runtime's threads cannot be started.
    pub fn memory(limits: Limits) -> Result<Store, CheckpointError> {
        Store::new(Arc::new(InMemory::new()), Place::Memory, "memory".to_owned(), limits)
    }

    fn s3(
        location: &str,
        [bucket, prefix]: [&str; 2],
        limits: Limits,
        settings: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Store, CheckpointError> {
        let refused = |why: String| CheckpointError::Location {
            location: location.to_owned(),
            why,
        };
        // Fails where the process has a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
        let mut client = ClientOptions::new();
        for (key, value) in settings {
            let Some(key) = key
                .strip_prefix("AWS_")
                .map(|rest| format!("aws_{}", rest.to_ascii_lowercase()))
            else {
                continue;
            };
            if let Ok(key) = key.parse::<AmazonS3ConfigKey>() {
                if let AmazonS3ConfigKey::Client(option) = key {
                    client = client.with_config(option, value);
                } else {
                    builder = builder.with_config(key, value);
                }
            }
        }
        let endpoint = builder
            .get_config_value(&AmazonS3ConfigKey::Endpoint)
            .unwrap_or_default();
        let plain = client.get_config_value(&object_store::ClientConfigKey::AllowHttp);
        if endpoint.starts_with("http://") && plain.as_deref() != Some("true") {
            return Err(refused(format!(
                "its endpoint {endpoint} is not encrypted; set AWS_ALLOW_HTTP=true if that is meant"
            )));
        }
        let retry = RetryConfig {
            retry_timeout: limits.retrying,
            ..RetryConfig::default()
        };
        let client = client.with_timeout(limits.request).with_connect_timeout(limits.request);
        let objects = builder
            .with_client_options(client)
            .with_retry(retry)
            .build()
            .map_err(|e| refused(format!("{}. Set the AWS_… variables of the environment", chain(&e))))?;
        let objects: Arc<dyn ObjectStore> = match prefix.trim_matches('/') {
            "" => Arc::new(objects),
            prefix => Arc::new(PrefixStore::new(objects, prefix)),
        };
        Store::new(objects, Place::Remote, location.to_owned(), limits)
    }

    fn new(
        objects: Arc<dyn ObjectStore>,
        place: Place,
        name: String,
        limits: Limits,
    ) -> Result<Store, CheckpointError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .on_thread_start(stand_back)
            .worker_threads(1)
            .thread_name("checkpoint-store")
            .enable_all()
            .build()
            .map_err(|e| CheckpointError::Location {
                location: name.clone(),
                why: format!("the threads that serve it cannot be started: {e}. Free threads or file descriptors"),
            })?;
        Ok(Store(Arc::new(Inner {
            objects,
            runtime: Some(runtime),
            name,
            place,
            limits,
        })))
    }

    /// What errors call it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The folder it is, if it is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.0.place {
            Place::Folder(path) => Some(path),
            Place::Remote | Place::Memory => None,
        }
    }

    pub(crate) fn is_memory(&self) -> bool {
        matches!(self.0.place, Place::Memory)
    }

    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.0.place, Place::Remote)
    }

    pub(crate) fn objects(&self) -> &dyn ObjectStore {
        &*self.0.objects
    }
}

/// Makes a folder, and flushes every folder that got a new entry.
fn make_durably(path: &Path) -> std::io::Result<()> {
    let absolute = std::path::absolute(path)?;
    let missing = absolute.ancestors().take_while(|folder| !folder.exists()).count();
    std::fs::create_dir_all(&absolute)?;
    for parent in absolute.ancestors().skip(1).take(missing) {
        std::fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// The calling thread stands back behind threads that have more urgent things to do, for its whole life: where every core
/// computes, a checkpoint takes longer and the steps meanwhile do not.
pub fn stand_back() {
    // Refused nowhere that is known; then it competes as any other thread.
    let _stands_back = rustix::process::nice(BEHIND);
}

//! Requests to a store: waiting for them, making them again, reading ahead, and saying what went wrong.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::{ObjectMeta, ObjectStoreExt};

use super::{Place, Store};
use crate::error::{CheckpointError, chain};

/// Bytes that are read or sent in one go.
pub(crate) const PIECE: u64 = 8 << 20;
/// Pieces under way at once.
pub(crate) const PIECES: usize = 4;

/// Between tries of a request to a remote store, beyond those that its client makes.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_millis(2500),
];

impl Store {
    /// Waits for a request that may be made again, up to the deadline of a call.
    pub(crate) fn wait<T>(
        &self,
        doing: &'static str,
        file: &str,
        request: impl AsyncFn() -> object_store::Result<T>,
    ) -> Result<T, CheckpointError> {
        self.wait_once(doing, file, self.again(request))
    }

    /// Makes a request to a remote store a few times. The client below does so too, but not where it cannot know that a second
    /// time does no harm, nor where the answer breaks off in its middle.
    async fn again<T>(&self, request: impl AsyncFn() -> object_store::Result<T>) -> object_store::Result<T> {
        let began = Instant::now();
        for pause in PAUSES {
            match request().await {
                Err(error)
                    if self.is_remote() && is_passing(&error) && began.elapsed() + pause < self.0.limits.retrying =>
                {
                    tokio::time::sleep(pause).await;
                }
                done => return done,
            }
        }
        request().await
    }

    fn wait_once<T>(
        &self,
        doing: &'static str,
        file: &str,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, CheckpointError> {
        let runtime = match &self.0.runtime {
            Some(runtime) if tokio::runtime::Handle::try_current().is_err() => runtime,
            _ => {
                return Err(CheckpointError::Request(format!(
                    "the checkpoint store {} was called from an async task; call it from a thread that may block",
                    self.name()
                )));
            }
        };
        let limit = self.0.limits.call;
        match runtime.block_on(async { tokio::time::timeout(limit, request).await }) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.failed(doing, file, error)),
            Err(_) => Err(CheckpointError::Store {
                store: self.name().to_owned(),
                doing,
                file: file.to_owned(),
                cause: format!("it took longer than {} s", limit.as_secs_f64()),
                advice: "See whether it can be reached",
            }),
        }
    }

    fn failed(&self, doing: &'static str, file: &str, error: object_store::Error) -> CheckpointError {
        let store = self.name().to_owned();
        let file = file.to_owned();
        if matches!(error, object_store::Error::NotFound { .. }) {
            let for_whom = String::new();
            return CheckpointError::Missing { store, file, for_whom };
        }
        CheckpointError::Store {
            store,
            doing,
            file,
            cause: chain(&error),
            advice: match self.0.place {
                Place::Folder(_) => "See whether the disk is full, and who may write to the folder",
                Place::Remote => "See whether it can be reached, and whether the credentials may do that",
                Place::Memory => "Free memory",
            },
        }
    }

    /// Makes what was renamed, linked or deleted in the folder of a file outlive a power cut, where that is ours to do.
    pub(crate) fn flush(&self, file: &str) -> Result<(), CheckpointError> {
        let Some(root) = self.path() else {
            return Ok(());
        };
        let place = root.join(file);
        let folders = place.ancestors().skip(1).take_while(|folder| folder.starts_with(root));
        // A folder that went with its last file has nothing to flush; the one above it has.
        for folder in folders.filter(|folder| folder.exists()) {
            std::fs::File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|e| CheckpointError::Store {
                    store: self.name().to_owned(),
                    doing: "flush the folder of",
                    file: file.to_owned(),
                    cause: e.to_string(),
                    advice: "See whether the disk is sound",
                })?;
        }
        Ok(())
    }

    /// All files, in no order.
    pub(crate) fn files(&self) -> Result<Vec<ObjectMeta>, CheckpointError> {
        self.wait("list", "its files", async || {
            self.objects().list(None).try_collect().await
        })
    }

    /// The length of a file; `None` where there is none.
    pub(crate) fn length(&self, file: &str) -> Result<Option<u64>, CheckpointError> {
        Ok(self.head(file)?.map(|meta| meta.size))
    }

    pub(crate) fn head(&self, file: &str) -> Result<Option<ObjectMeta>, CheckpointError> {
        match self.wait("look up", file, async || self.objects().head(&file.into()).await) {
            Ok(meta) => Ok(Some(meta)),
            Err(CheckpointError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A small file, whole.
    pub(crate) fn whole(&self, file: &str) -> Result<Bytes, CheckpointError> {
        self.wait("read", file, async || {
            self.objects().get(&file.into()).await?.bytes().await
        })
    }

    /// The bytes [start, end) of a file, piece by piece and in order, some ahead of need. Where the file is shorter, fewer
    /// bytes come. `each` says whether to go on.
    pub(crate) fn stream(
        &self,
        file: &str,
        [start, end]: [u64; 2],
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), CheckpointError> {
        let path = file.into();
        let pieces = (start..end).step_by(PIECE as usize).map(|at| {
            let path = &path;
            self.again(async move || self.objects().get_range(path, at..(at + PIECE).min(end)).await)
        });
        let mut pieces = futures_util::stream::iter(pieces).buffered(PIECES);
        self.wait_once("read", file, async {
            while let Some(piece) = pieces.next().await {
                if !each(&piece?) {
                    break;
                }
            }
            Ok(())
        })
    }
}

/// Whether another try may go better. The client tells apart, by type, only a few of the answers that stay as they are: a
/// request that was wrong, and a range that goes beyond the end of a torn file.
fn is_passing(error: &object_store::Error) -> bool {
    let object_store::Error::Generic { .. } = error else {
        return false;
    };
    let text = chain(error);
    let refused =
        text.contains("status code: 4") && !text.contains("status code: 408") && !text.contains("status code: 429");
    !refused && !text.contains("Requested ")
}

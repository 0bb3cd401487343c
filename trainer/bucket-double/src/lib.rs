//! A real S3 server on this machine: the protocol and its signatures by `s3s`, the files by `s3s-fs`, and in front of them what
//! networks and overloaded servers do: refusals, answers that are lost after the work was done, connections that are cut, slow
//! answers. What is to go wrong ([`Trouble`]) can change at any time.
//!
//! Way of data: connection → [`Server`]'s front, which draws what comes to the request → `s3s` → files in
//! `ROOT/bucket/KEY`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod trouble;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;

use crate::trouble::Fate;
pub use crate::trouble::{Trouble, Troubles};

/// The one bucket that there is.
pub const BUCKET: &str = "bucket";
/// Who may use it.
pub const ACCESS_KEY: &str = "key";
/// What who may use it knows.
pub const SECRET_KEY: &str = "secret";

/// The server; it ends with its value.
pub struct Server {
    address: SocketAddr,
    root: PathBuf,
    front: Arc<Front>,
    _runtime: tokio::runtime::Runtime,
}

struct Front {
    service: S3Service,
    trouble: Mutex<Trouble>,
    troubles: Arc<Troubles>,
    random: Mutex<StdRng>,
    bucket: PathBuf,
    /// Held while a file is created if absent.
    creating: tokio::sync::Mutex<()>,
}

/// The connection is cut.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the connection is cut")
    }
}

impl std::error::Error for Cut {}

impl Server {
    /// Serves the folder `root` on a free port of this host. The same seed draws the same troubles, request by request.
    ///
    /// # Errors
    /// The folder cannot be had, or no port is free.
    pub fn start(root: &Path, seed: u64) -> io::Result<Server> {
        let bucket = root.join(BUCKET);
        std::fs::create_dir_all(&bucket)?;
        let files = s3s_fs::FileSystem::new(root).map_err(|error| io::Error::other(format!("{error:?}")))?;
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let front = Arc::new(Front {
            service: service.build(),
            trouble: Mutex::default(),
            troubles: Arc::default(),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            bucket,
            creating: tokio::sync::Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        runtime.spawn(accept(listener, Arc::clone(&front)));
        Ok(Server {
            address,
            root: root.to_owned(),
            front,
            _runtime: runtime,
        })
    }

    /// What goes wrong from now on.
    pub fn set(&self, trouble: Trouble) {
        *self.front.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// What went wrong so far.
    pub fn troubles(&self) -> &Troubles {
        &self.front.troubles
    }

    /// The variables of the environment by which a client finds it.
    pub fn settings(&self) -> [(String, String); 5] {
        [
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }

    /// Where the files lie whose keys begin with `prefix`.
    pub fn folder(&self, prefix: &str) -> PathBuf {
        self.root.join(BUCKET).join(prefix)
    }
}

async fn accept(listener: TcpListener, front: Arc<Front>) {
    // It fails where there are too many connections, and may go on when some are gone.
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let front = Arc::clone(&front);
        let answer = service_fn(move |request| {
            let front = Arc::clone(&front);
            async move { front.answer(request).await }
        });
        tokio::spawn(async move {
            // A client that hangs up is no matter, nor is a cut.
            let _ended = Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(socket), answer)
                .await;
        });
    }
}

impl Front {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<s3s::Body>, Cut> {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let trouble = *self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let (dice, coin) = {
            let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
            (random.random::<f64>(), random.random::<bool>())
        };
        let troubles = &self.troubles;
        count(&troubles.requests);
        match trouble.fate(dice) {
            Fate::Answered => Ok(self.serve(request).await),
            Fate::Refused => {
                count(&troubles.refused);
                Ok(plain(if coin { 500 } else { 503 }, ""))
            }
            Fate::Lost => {
                count(&troubles.lost);
                self.serve(request).await;
                Ok(plain(500, ""))
            }
            Fate::Cut => {
                count(&troubles.cut);
                if coin {
                    self.serve(request).await;
                }
                Err(Cut)
            }
            Fate::Slow => {
                count(&troubles.slow);
                tokio::time::sleep(trouble.delay).await;
                Ok(self.serve(request).await)
            }
        }
    }

    async fn serve(&self, request: Request<Incoming>) -> Response<s3s::Body> {
        // The release of s3s-fs that builds here does not know create-if-absent, so it is done in front of it.
        let absent_only = request.method() == Method::PUT && request.headers().contains_key("if-none-match");
        let _guard = self.creating.lock().await;
        if absent_only {
            let key = request.uri().path().trim_start_matches('/');
            let key = key.strip_prefix(BUCKET).unwrap_or(key).trim_start_matches('/');
            if self.bucket.join(key).exists() {
                return plain(412, "<Error><Code>PreconditionFailed</Code></Error>");
            }
        }
        match self.service.call(request.map(s3s::Body::from)).await {
            Ok(response) => response,
            Err(error) => plain(500, &error.to_string()),
        }
    }
}

fn plain(code: u16, text: &str) -> Response<s3s::Body> {
    let mut response = Response::new(s3s::Body::from(text.to_owned()));
    *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response
}

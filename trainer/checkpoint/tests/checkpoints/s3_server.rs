//! An S3 server for tests: the protocol and its signatures by `s3s`, the files by `s3s-fs`, and in front of them what networks
//! and overloaded servers do: refusals, answers that are lost after the work was done, slow answers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use lockstep_checkpoint::{Limits, Store};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

const BUCKET: &str = "bucket";

/// How likely each trouble is for a request.
#[derive(Clone, Copy, Default)]
pub(crate) struct Trouble {
    /// Refused with 500 or 503, nothing done.
    pub(crate) refused: f64,
    /// Done, and the answer is a 500.
    pub(crate) lost: f64,
    /// Answered after longer than the client waits.
    pub(crate) slow: f64,
}

/// What it did to its clients.
#[derive(Default)]
pub(crate) struct Troubles {
    pub(crate) requests: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) slow: AtomicU64,
}

/// The server; it ends with its value.
pub(crate) struct S3Server {
    address: SocketAddr,
    root: tempfile::TempDir,
    pub(crate) troubles: Arc<Troubles>,
    _runtime: tokio::runtime::Runtime,
}

struct Front {
    service: S3Service,
    trouble: Trouble,
    troubles: Arc<Troubles>,
    random: Mutex<StdRng>,
    bucket: PathBuf,
    /// Held while a file is created if absent.
    creating: Mutex<()>,
}

impl S3Server {
    pub(crate) fn start(trouble: Trouble, seed: u64) -> S3Server {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        service.set_auth(SimpleAuth::from_single("key", "secret"));
        let troubles = Arc::new(Troubles::default());
        let front = Arc::new(Front {
            service: service.build(),
            trouble,
            troubles: troubles.clone(),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            bucket: root.path().join(BUCKET),
            creating: Mutex::new(()),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let front = front.clone();
                let answer = service_fn(move |request| {
                    let front = front.clone();
                    async move { Ok::<_, Infallible>(front.answer(request).await) }
                });
                tokio::spawn(async move {
                    // A client that hangs up is no matter.
                    let _ = Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(socket), answer)
                        .await;
                });
            }
        });
        S3Server {
            address,
            root,
            troubles,
            _runtime: runtime,
        }
    }

    /// A store in the server, with settings as the environment would give them.
    pub(crate) fn store(&self, prefix: &str, limits: Limits) -> Store {
        self.store_with("secret", prefix, limits)
    }

    pub(crate) fn store_with(&self, secret: &str, prefix: &str, limits: Limits) -> Store {
        let endpoint = format!("http://{}", self.address);
        let settings = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_REGION", "us-east-1"),
            ("HOME", "is no setting of a store"),
        ];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
        Store::open_with(&format!("s3://{BUCKET}/{prefix}"), limits, settings).unwrap()
    }

    /// Where the server keeps what lies under a prefix.
    pub(crate) fn folder(&self, prefix: &str) -> PathBuf {
        self.root.path().join(BUCKET).join(prefix)
    }
}

impl Front {
    async fn answer(&self, request: Request<Incoming>) -> Response<s3s::Body> {
        self.troubles.requests.fetch_add(1, Ordering::Relaxed);
        let (dice, code) = {
            let mut random = self.random.lock().await;
            (random.random::<f64>(), if random.random() { 500 } else { 503 })
        };
        let Trouble { refused, lost, slow } = self.trouble;
        if dice < refused {
            self.troubles.refused.fetch_add(1, Ordering::Relaxed);
            return plain(code, "");
        }
        if dice < refused + slow {
            self.troubles.slow.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
        let done = self.serve(request).await;
        if (refused + slow..refused + slow + lost).contains(&dice) {
            self.troubles.lost.fetch_add(1, Ordering::Relaxed);
            return plain(500, "");
        }
        done
    }

    async fn serve(&self, request: Request<Incoming>) -> Response<s3s::Body> {
        // The release of s3s-fs that builds here does not know create-if-absent, so it is done in front of it.
        let absent_only = request.method() == Method::PUT && request.headers().contains_key("if-none-match");
        let _guard = self.creating.lock().await;
        if absent_only {
            let key = request.uri().path().trim_start_matches('/');
            let key = key.strip_prefix(BUCKET).unwrap_or(key).trim_start_matches('/');
            if Path::new(&self.bucket).join(key).exists() {
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
    let body = s3s::Body::from(text.to_owned());
    Response::builder().status(code).body(body).unwrap()
}

//! The server: one thread, one service, parts in chunks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep_proto::v1;
use lockstep_proto::v1::parts_server::{Parts, PartsServer};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::error::PartsError;
use crate::kept::{Kept, Name};

/// Bytes of a chunk.
pub(crate) const CHUNK: usize = 1 << 20;
/// Chunks that may wait for one reader.
const AHEAD: usize = 4;
/// The longest wait for a part that is still being made.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// A running server. Dropping it ends its thread.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) handle: Handle,
    close: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn open(address: SocketAddr, kept: Arc<Kept>) -> Result<Server, PartsError> {
        let failed = |cause| PartsError::Serve { address, cause };
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let handle = runtime.handle().clone();
        let (close, closed) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("parts".to_owned())
            .spawn(move || {
                runtime.block_on(serve(listener, kept, closed));
                // Streams that are still open end here.
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Server {
            address: bound,
            handle,
            close: Some(close),
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.close.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and nobody is left to tell.
            let _ended = thread.join();
        }
    }
}

async fn serve(listener: std::net::TcpListener, kept: Arc<Kept>, closed: oneshot::Receiver<()>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("the parts of snapshots cannot be served: {error}");
            return;
        }
    };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = tonic::transport::Server::builder()
        .max_concurrent_streams(Some(64))
        .add_service(PartsServer::new(Service { kept }))
        .serve_with_incoming(incoming);
    tokio::select! {
        ended = serving => {
            if let Err(error) = ended {
                tracing::error!("the parts of snapshots are not served any more: {error}");
            }
        }
        // An error means that the keeper is gone, which says the same.
        _ = closed => {}
    }
}

struct Service {
    kept: Arc<Kept>,
}

#[tonic::async_trait]
impl Parts for Service {
    type FetchStream = ReceiverStream<Result<v1::PartChunk, Status>>;

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let request = request.into_inner();
        if !self.kept.is_admitted(request.generation, &request.token) {
            return Err(Status::permission_denied(format!(
                "generation {} is not known here under that token",
                request.generation
            )));
        }
        let name = Name {
            step: request.step,
            generation: request.generation,
            part: request.part,
        };
        let wait = Duration::from_millis(request.wait_ms.into()).min(LONGEST_WAIT);
        let found = tokio::time::timeout(wait, self.wait_for(name)).await;
        let Ok((hash, bytes)) = found else {
            return Err(Status::not_found(format!("{name} is not held here")));
        };
        let (chunks, stream) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            let first = v1::PartChunk {
                data: Vec::new(),
                hash: hash.to_vec(),
                length: bytes.len() as u64,
            };
            if chunks.send(Ok(first)).await.is_err() {
                return;
            }
            for data in bytes.chunks(CHUNK) {
                let chunk = v1::PartChunk {
                    data: data.to_vec(),
                    hash: Vec::new(),
                    length: 0,
                };
                if chunks.send(Ok(chunk)).await.is_err() {
                    // The reader is gone.
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Service {
    /// The part, once it is kept here.
    async fn wait_for(&self, name: Name) -> ([u8; 32], crate::kept::Bytes) {
        loop {
            let arrived = self.kept.arrived.notified();
            tokio::pin!(arrived);
            // From here on no arrival is missed.
            arrived.as_mut().enable();
            if let Some(found) = self.kept.get(name) {
                return found;
            }
            arrived.await;
        }
    }
}

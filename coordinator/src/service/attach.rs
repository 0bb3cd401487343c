//! The call by which a member attaches, as HTTP has it. The generated service would encode what is said for every member anew
//! and copy it into a buffer of each stream; here a stream sends frames that all of them share.
//!
//! Way of data: request body → messages of the member → [`TrainingService::attach`] → [`Outbox`], which is the response body:
//! frames, and in the end the trailers of gRPC.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use lockstep_proto::encoded::Encoded;
use lockstep_proto::v1::training_server::SERVICE_NAME;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codec::{BufferSettings, Streaming};
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tonic_prost::ProstDecoder;
use tower_service::Service;

use crate::service::MESSAGE_LIMIT;
use crate::service::training::TrainingService;

/// The one call of the service.
const ATTACH: &str = "/lockstep.v1.Training/Attach";
/// What is read from a member at a time: most messages are a report or a word about progress.
const ROOM: usize = 1 << 10;

/// Takes members' calls.
#[derive(Clone)]
pub(super) struct AttachServer(Arc<TrainingService>);

impl AttachServer {
    pub(super) fn new(service: TrainingService) -> AttachServer {
        AttachServer(Arc::new(service))
    }
}

impl NamedService for AttachServer {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Body>> for AttachServer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move {
            if request.uri().path() != ATTACH {
                return Ok(Status::unimplemented("the training service has one call, Attach").into_http());
            }
            let decoder = ProstDecoder::new(BufferSettings::new(ROOM, ROOM));
            let messages = Streaming::new_request(decoder, request.into_body(), None, Some(MESSAGE_LIMIT));
            Ok(match service.attach(messages).await {
                Ok(outbox) => {
                    let mut response = Response::new(Body::new(outbox));
                    response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
                    response
                }
                Err(status) => status.into_http(),
            })
        })
    }
}

/// What a member's stream sends.
pub(super) struct Outbox {
    messages: mpsc::Receiver<Result<Encoded, Status>>,
    is_over: bool,
}

impl Outbox {
    pub(super) fn new(messages: mpsc::Receiver<Result<Encoded, Status>>) -> Outbox {
        Outbox {
            messages,
            is_over: false,
        }
    }
}

impl http_body::Body for Outbox {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let last_word = match std::task::ready!(self.messages.poll_recv(context)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message.into_bytes())))),
            Some(Err(status)) => status,
            None => Status::new(Code::Ok, ""),
        };
        self.is_over = true;
        let mut trailers = HeaderMap::new();
        let said = last_word.add_header(&mut trailers);
        Poll::Ready(Some(said.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

//! An answer that lasts as long as the token that it was asked for with: whoever's token is taken away, or gets another role, sees
//! and says nothing more, also on the streams that are open.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use lockstep_security::{Identity, Keeper, Token};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;

/// What was shown, and whom it let in.
pub(super) type Shown = (Token, Identity);

/// Says when files were read again.
type Reloads = watch::Receiver<u64>;

/// The body of an answer.
pub(super) struct Lasting {
    body: Body,
    shown: Shown,
    keeper: Arc<Keeper>,
    /// The next time that files are read again.
    next: Pin<Box<dyn Future<Output = Reloads> + Send>>,
    is_grpc: bool,
    is_over: bool,
}

impl Lasting {
    pub(super) fn new(body: Body, shown: Shown, keeper: Arc<Keeper>, reloads: Reloads, is_grpc: bool) -> Lasting {
        Lasting {
            body,
            shown,
            keeper,
            next: Box::pin(next(reloads)),
            is_grpc,
            is_over: false,
        }
    }

    fn still_counts(&self) -> bool {
        let (token, identity) = &self.shown;
        self.keeper.keys().of_token(token).as_ref() == Some(identity)
    }
}

async fn next(mut reloads: Reloads) -> Reloads {
    if reloads.changed().await.is_err() {
        // Nobody reads them any more: the services are closing, and so will this answer.
        std::future::pending::<()>().await;
    }
    reloads
}

impl http_body::Body for Lasting {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(None);
        }
        while let Poll::Ready(reloads) = this.next.as_mut().poll(cx) {
            this.next = Box::pin(next(reloads));
            if this.still_counts() {
                continue;
            }
            this.is_over = true;
            if !this.is_grpc {
                return Poll::Ready(None);
            }
            let mut trailers = HeaderMap::new();
            let status = Status::unauthenticated("the token was taken away, or has another role now");
            return Poll::Ready(Some(
                status.add_header(&mut trailers).map(|()| Frame::trailers(trailers)),
            ));
        }
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

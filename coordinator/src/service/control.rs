//! The control service: operators' commands and questions.

use std::sync::Arc;

use lockstep_proto::domain::{Header, RunEvent, Stamp};
use lockstep_proto::v1;
use lockstep_proto::v1::control_server::Control;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::dashboard::Board;
use crate::run::Event;
use crate::service::mailbox::{Letter, Mailbox, Reply};
use crate::service::status::{misunderstood, other_run, over, refused};

/// Events that may wait for one watcher in its stream; what it is later than that waits in the run's own list.
const WATCHED: usize = 64;

/// Carries operators' calls.
pub(super) struct ControlService {
    pub(super) mailbox: Mailbox,
    pub(super) run_id: String,
    pub(super) term: u64,
    pub(super) board: Arc<Board>,
}

impl ControlService {
    /// Refuses another protocol version and another run. An operator need not name the run.
    fn check(&self, header: Option<v1::Header>) -> Result<(), Status> {
        let header = header.ok_or_else(|| Status::invalid_argument("the request came without its header"))?;
        let header = Header::try_from(header).map_err(|error| misunderstood(&error))?;
        if header.run_id.is_empty() || header.run_id == self.run_id {
            Ok(())
        } else {
            Err(other_run(&header.run_id, &self.run_id))
        }
    }

    fn header(&self) -> Header {
        Header {
            run_id: self.run_id.clone(),
            stamp: Stamp {
                term: self.term,
                generation: 0,
            },
        }
    }

    /// Puts a letter with a way back into the mailbox and waits for the answer.
    async fn ask<T: Send + 'static>(&self, letter: impl FnOnce(Reply<T>) -> Letter) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        let reply: Reply<T> = Box::new(move |value| {
            // The caller may have hung up; then nobody misses the answer.
            let _told = answer.send(value);
        });
        self.mailbox.operators.send(letter(reply)).map_err(|_| over())?;
        answered.await.map_err(|_| over())
    }

    async fn command(&self, header: Option<v1::Header>, event: Event) -> Result<Response<v1::CommandReply>, Status> {
        self.check(header)?;
        let decided = self.ask(|reply| Letter::Command(event, reply)).await?;
        let reason = decided.map_err(|refusal| refused(&refusal))?;
        Ok(Response::new(v1::CommandReply {
            header: Some((&self.header()).into()),
            reason,
        }))
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    type WatchStream = ReceiverStream<Result<v1::WatchEvent, Status>>;

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        self.check(request.into_inner().header)?;
        Ok(Response::new((&self.ask(Letter::Status).await?).into()))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.check(request.into_inner().header)?;
        let (present, events) = self.ask(Letter::Watch).await?;
        let header = self.header();
        let (sender, stream) = mpsc::channel(WATCHED);
        tokio::spawn(forward(present, events, header, sender));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn pause(&self, request: Request<v1::PauseRequest>) -> Result<Response<v1::CommandReply>, Status> {
        self.command(request.into_inner().header, Event::Pause).await
    }

    async fn resume(&self, request: Request<v1::ResumeRequest>) -> Result<Response<v1::CommandReply>, Status> {
        self.command(request.into_inner().header, Event::Resume).await
    }

    async fn stop(&self, request: Request<v1::StopRequest>) -> Result<Response<v1::CommandReply>, Status> {
        self.command(request.into_inner().header, Event::Stop).await
    }

    async fn checkpoint(&self, request: Request<v1::CheckpointRequest>) -> Result<Response<v1::CommandReply>, Status> {
        self.command(request.into_inner().header, Event::Checkpoint).await
    }

    async fn members(&self, request: Request<v1::MembersRequest>) -> Result<Response<v1::MembersReply>, Status> {
        self.check(request.into_inner().header)?;
        let members = self.ask(Letter::Members).await?;
        let members = members.iter().map(Into::into).collect();
        Ok(Response::new(v1::MembersReply {
            header: Some((&self.header()).into()),
            members,
        }))
    }

    async fn overview(&self, request: Request<v1::OverviewRequest>) -> Result<Response<v1::OverviewReply>, Status> {
        self.check(request.into_inner().header)?;
        match self.board.overview() {
            Some(overview) => Ok(Response::new((&overview).into())),
            None => Err(Status::unavailable("the run has just begun: ask again")),
        }
    }
}

/// Sends the present state and then every event, the end being the last. A watcher that is too slow misses some; the
/// next ones reach it.
async fn forward(
    present: RunEvent,
    mut events: broadcast::Receiver<RunEvent>,
    header: Header,
    watcher: mpsc::Sender<Result<v1::WatchEvent, Status>>,
) {
    let mut next = Some(present);
    loop {
        if let Some(event) = next.take() {
            let gone = watcher.send(Ok((&header, &event).into())).await.is_err();
            if gone || matches!(event, RunEvent::Ended(_)) {
                return;
            }
        }
        match events.recv().await {
            Ok(event) => next = Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

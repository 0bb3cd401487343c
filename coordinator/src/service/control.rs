//! The control service: operators' commands and questions.

use std::sync::Arc;

use lockstep_proto::domain::{Header, RunEvent, Stamp};
use lockstep_proto::v1;
use lockstep_proto::v1::control_server::Control;
use lockstep_proto::v1::{extend_request, setting};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::changes::{Ask, Extension, Setting};
use crate::dashboard::Board;
use crate::run::{Event, Order, Wanted};
use crate::service::caller::Caller;
use crate::service::mailbox::{Letter, Mailbox, Reply};
use crate::service::status::{misunderstood, other_run, over, refused};

/// Events that may wait for one watcher in its stream; what it is later than that waits in the run's own list.
const WATCHED: usize = 64;

/// Calls that may wait for the run's thread; more of them wait in their connections.
pub(super) const CALLS: usize = 256;

/// Characters of a command's key.
pub(crate) const LONGEST_KEY: usize = 128;

/// Carries operators' calls.
pub(super) struct ControlService {
    pub(super) mailbox: Mailbox,
    pub(super) run_id: String,
    pub(super) term: u64,
    pub(super) board: Arc<Board>,
    pub(super) turns: Semaphore,
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
        // Never closed.
        let _turn = self.turns.acquire().await.map_err(|_| over())?;
        let (answer, answered) = oneshot::channel();
        let reply: Reply<T> = Box::new(move |value| {
            // The caller may have hung up; then nobody misses the answer.
            let _told = answer.send(value);
        });
        self.mailbox.operators.send(letter(reply)).map_err(|_| over())?;
        answered.await.map_err(|_| over())
    }

    async fn command(
        &self,
        header: Option<v1::Header>,
        command: Option<v1::Command>,
        wanted: Wanted,
    ) -> Result<Response<v1::CommandReply>, Status> {
        self.check(header)?;
        let order = order(command.unwrap_or_default(), wanted)?;
        let event = Event::Ordered(Box::new(order));
        let decided = self
            .ask(|reply| Letter::Command(event, Caller::present(), reply))
            .await?;
        let (reason, effect) = decided.map_err(|refusal| refused(&refusal))?;
        Ok(Response::new(v1::CommandReply {
            header: Some((&self.header()).into()),
            reason,
            step: effect.map(|effect| effect.step),
            version: effect.map_or(0, |effect| effect.version),
        }))
    }
}

/// The order that a command means.
fn order(command: v1::Command, wanted: Wanted) -> Result<Order, Status> {
    let v1::Command {
        key,
        if_step_before,
        dry_run,
    } = command;
    if key.chars().count() > LONGEST_KEY {
        return Err(Status::invalid_argument(format!(
            "the key of a command has at most {LONGEST_KEY} characters"
        )));
    }
    Ok(Order {
        wanted,
        key,
        if_step_before,
        dry_run,
    })
}

/// A value that is to be set. Only numbers go further: a ledger knows no others.
fn setting(what: &str, setting: Option<v1::Setting>) -> Result<Option<Setting>, Status> {
    let Some(setting) = setting else { return Ok(None) };
    let number = |value: f64| match value.is_finite() {
        true => Ok(value),
        false => Err(Status::invalid_argument(format!(
            "{what} is {value}, which is no number"
        ))),
    };
    Ok(Some(match setting.kind {
        Some(setting::Kind::Schedule(_)) => Setting::Schedule,
        Some(setting::Kind::Value(value)) => Setting::Value(number(value)?),
        Some(setting::Kind::Factor(factor)) => Setting::Factor(number(factor)?),
        None => {
            return Err(Status::invalid_argument(format!(
                "{what} is named and nothing said of it: give a value, a factor, or schedule"
            )));
        }
    }))
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
        let v1::PauseRequest { header, command } = request.into_inner();
        self.command(header, command, Wanted::Pause).await
    }

    async fn resume(&self, request: Request<v1::ResumeRequest>) -> Result<Response<v1::CommandReply>, Status> {
        let v1::ResumeRequest { header, command } = request.into_inner();
        self.command(header, command, Wanted::Resume).await
    }

    async fn stop(&self, request: Request<v1::StopRequest>) -> Result<Response<v1::CommandReply>, Status> {
        let v1::StopRequest {
            header,
            command,
            after_step,
        } = request.into_inner();
        let wanted = match after_step {
            None => Wanted::Stop,
            Some(_) => Wanted::Change(Ask {
                stop_at: after_step,
                ..Ask::default()
            }),
        };
        self.command(header, command, wanted).await
    }

    async fn checkpoint(&self, request: Request<v1::CheckpointRequest>) -> Result<Response<v1::CommandReply>, Status> {
        let v1::CheckpointRequest { header, command } = request.into_inner();
        self.command(header, command, Wanted::Checkpoint).await
    }

    async fn set(&self, request: Request<v1::SetRequest>) -> Result<Response<v1::CommandReply>, Status> {
        let request = request.into_inner();
        let ask = Ask {
            learning_rate: setting("learning_rate", request.learning_rate)?,
            batch: setting("batch", request.batch)?,
            momentum: setting("momentum", request.momentum)?,
            weight_decay: setting("weight_decay", request.weight_decay)?,
            validate_every: request.validate_every,
            checkpoint_every: request.checkpoint_every,
            ..Ask::default()
        };
        self.command(request.header, request.command, Wanted::Change(ask)).await
    }

    async fn extend(&self, request: Request<v1::ExtendRequest>) -> Result<Response<v1::CommandReply>, Status> {
        let v1::ExtendRequest { header, command, by } = request.into_inner();
        let extension = match by {
            Some(extend_request::By::Steps(steps)) => Extension::Steps(steps),
            Some(extend_request::By::Samples(samples)) => Extension::Samples(samples),
            Some(extend_request::By::Tokens(tokens)) => Extension::Tokens(tokens),
            Some(extend_request::By::Epochs(epochs)) if epochs.is_finite() => Extension::Epochs(epochs),
            _ => {
                return Err(Status::invalid_argument(
                    "say by how many steps, samples, tokens or epochs",
                ));
            }
        };
        let ask = Ask {
            extend: Some(extension),
            ..Ask::default()
        };
        self.command(header, command, Wanted::Change(ask)).await
    }

    async fn skip_samples(
        &self,
        request: Request<v1::SkipSamplesRequest>,
    ) -> Result<Response<v1::CommandReply>, Status> {
        let v1::SkipSamplesRequest { header, command, count } = request.into_inner();
        let ask = Ask {
            skip_samples: Some(count),
            ..Ask::default()
        };
        self.command(header, command, Wanted::Change(ask)).await
    }

    async fn rewind(&self, request: Request<v1::RewindRequest>) -> Result<Response<v1::CommandReply>, Status> {
        let v1::RewindRequest {
            header,
            command,
            to_step,
        } = request.into_inner();
        self.command(header, command, Wanted::Rewind { to: to_step }).await
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::CommandReply>, Status> {
        let v1::DrainRequest {
            header,
            command,
            member,
        } = request.into_inner();
        self.command(header, command, Wanted::Drain { member }).await
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

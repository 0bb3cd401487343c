//! The session's own thread: opens the stream, carries the outbox out and the coordinator's messages in, and opens another
//! one when it breaks.
//! Sending and receiving are two tasks, so that a stream that is full one way never stops the other.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep_proto::domain::{CoordinatorBody, FromCoordinator};
use lockstep_proto::v1;
use lockstep_proto::v1::training_client::TrainingClient;
use lockstep_security::{Bearer, Channel, Credentials};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};

use crate::error::SessionError;
use crate::inbox::Inbox;
use crate::{SessionOptions, Welcome, progress_message};

/// Messages on their way into the transport.
const SEND_BUFFER: usize = 64;
/// A report without acknowledgement for this long is sent again; the coordinator knows repeated ones.
const RESEND_AFTER: Duration = Duration::from_secs(10);
/// How often progress is sent, if it changed.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// Between two tries to open a stream at a coordinator that answers, but not as it should.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// One such try, at an address where somebody may listen who never answers.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Largest message either way.
const MESSAGE_LIMIT: usize = 4 << 20;

/// Starts the thread and waits for the welcome.
pub(crate) fn open(options: &SessionOptions, inbox: Arc<Inbox>) -> Result<(JoinHandle<()>, Welcome), SessionError> {
    let cause = |error: std::io::Error| SessionError::Thread {
        cause: error.to_string(),
    };
    // Said at once, and not after the patience: what is typed wrong stays wrong.
    way_to(&options.coordinator, &options.credentials)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(cause)?;
    let (welcomed, welcome) = sync_channel(1);
    let (options, link_inbox) = (options.clone(), inbox.clone());
    let thread = std::thread::Builder::new()
        .name("session".to_owned())
        .spawn(move || {
            runtime.block_on(carry(options, link_inbox, welcomed));
        })
        .map_err(cause)?;
    match welcome.recv() {
        Ok(Ok(welcome)) => Ok((thread, welcome)),
        Ok(Err(error)) => Err(error),
        Err(_ended_without_a_word) => Err(SessionError::Closed),
    }
}

/// How to reach the coordinator, with what is valid now.
fn way_to(address: &str, credentials: &Credentials) -> Result<(Endpoint, Bearer), SessionError> {
    let (endpoint, bearer) = credentials.way_to(address)?;
    let endpoint = endpoint
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20))
        .keep_alive_while_idle(true);
    Ok((endpoint, bearer))
}

/// The two halves of a stream, and what the coordinator said first on it.
struct Stream {
    outgoing: mpsc::Sender<v1::MemberMessage>,
    incoming: Streaming<v1::CoordinatorMessage>,
    welcome: Welcome,
}

async fn carry(options: SessionOptions, inbox: Arc<Inbox>, welcomed: SyncSender<Result<Welcome, SessionError>>) {
    let address = &options.coordinator;
    let Stream {
        mut outgoing,
        mut incoming,
        welcome,
    } = match open_stream(&options, options.patience).await {
        Ok(stream) => stream,
        Err(error) => {
            inbox.break_with(error.clone());
            // Nobody waits for the answer only where the caller is gone itself.
            let _told = welcomed.send(Err(error));
            return;
        }
    };
    let run_id = welcome.run_id.clone();
    inbox.heard_of(welcome.term);
    if welcomed.send(Ok(welcome)).is_err() {
        return;
    }
    loop {
        let error = tokio::select! {
            () = send(&inbox, &run_id, outgoing) => return,
            error = receive(&inbox, address, &run_id, incoming) => error,
            () = lost_patience(&inbox) => return,
        };
        if inbox.is_finished() {
            return;
        }
        let search = inbox.search();
        let may_pass = matches!(error, SessionError::Broken { .. });
        if !may_pass || search.is_zero() || inbox.is_over() || inbox.is_closed() {
            inbox.break_with(error);
            return;
        }
        tracing::warn!("{error}; looking for it for {:.0} s", search.as_secs_f64());
        let again = tokio::select! {
            again = find(&options, search, &run_id, inbox.term()) => again,
            () = lost_patience(&inbox) => return,
        };
        match again {
            Ok(stream) => {
                tracing::info!("the coordinator answers again, in term {}", stream.welcome.term);
                (outgoing, incoming) = (stream.outgoing, stream.incoming);
                inbox.begin_anew(&run_id, stream.welcome.term);
            }
            Err(error) => {
                inbox.break_with(error);
                return;
            }
        }
    }
}

/// Opens a stream, trying to connect for as long as the patience lasts, and reads the welcome.
async fn open_stream(options: &SessionOptions, patience: Duration) -> Result<Stream, SessionError> {
    let address = &options.coordinator;
    let (outgoing, queue) = mpsc::channel(SEND_BUFFER);
    let channel = connect(options, patience).await?;
    let mut client = TrainingClient::new(channel)
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    let late = SessionError::Deadline {
        what: "the coordinator's welcome",
        patience,
    };
    let answer = tokio::time::timeout(patience, client.attach(ReceiverStream::new(queue))).await;
    let mut incoming = answer
        .map_err(|_| late.clone())?
        .map_err(|status| refusal(address, &status))?
        .into_inner();
    let first = tokio::time::timeout(patience, incoming.message())
        .await
        .map_err(|_| late)?;
    let first = first.map_err(|status| refusal(address, &status))?;
    let welcome = read_welcome(address, first)?;
    Ok(Stream {
        outgoing,
        incoming,
        welcome,
    })
}

/// Looks for the run's coordinator until one answers whose term is not older than `term`.
async fn find(options: &SessionOptions, search: Duration, run_id: &str, term: u64) -> Result<Stream, SessionError> {
    let address = &options.coordinator;
    let deadline = Instant::now() + search;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let failed = match open_stream(options, left.min(ATTEMPT)).await {
            Ok(stream) if stream.welcome.run_id != run_id => {
                return Err(SessionError::Refused {
                    reason: format!(
                        "at {address} another run is coordinated now, {}, and this trainer is of {run_id}",
                        stream.welcome.run_id
                    ),
                });
            }
            Ok(stream) if stream.welcome.term < term => SessionError::Broken {
                address: address.to_owned(),
                cause: format!(
                    "the coordinator there is of term {}, which term {term} has replaced",
                    stream.welcome.term
                ),
            },
            Ok(stream) => return Ok(stream),
            Err(error @ SessionError::Refused { .. }) => return Err(error),
            // Nobody is there yet, or one that is just ending.
            Err(error) => error,
        };
        if Instant::now() + LOOK_AGAIN >= deadline {
            return Err(failed);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Ends a second after the session was closed, so that a transport that takes nothing more cannot hold its owner.
async fn lost_patience(inbox: &Inbox) {
    while !inbox.is_closed() {
        tokio::time::sleep(PROGRESS_EVERY).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// Tries to connect until it works or the patience is over.
async fn connect(options: &SessionOptions, patience: Duration) -> Result<Channel, SessionError> {
    let address = &options.coordinator;
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(20);
    loop {
        let (endpoint, bearer) = way_to(address, &options.credentials)?;
        match endpoint.connect().await {
            Ok(channel) => return Ok(bearer.on(channel)),
            Err(error) if Instant::now() + pause >= deadline => {
                return Err(SessionError::Unreachable {
                    address: address.clone(),
                    patience,
                    cause: innermost(&error),
                });
            }
            Err(_not_yet) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

fn read_welcome(address: &str, first: Option<v1::CoordinatorMessage>) -> Result<Welcome, SessionError> {
    let broken = |cause: &str| SessionError::Broken {
        address: address.to_owned(),
        cause: cause.to_owned(),
    };
    let message = first.ok_or_else(|| broken("it closed before its welcome"))?;
    let message = FromCoordinator::try_from(message).map_err(|error| broken(&error.to_string()))?;
    let CoordinatorBody::Welcome { config_toml } = message.body else {
        return Err(broken("its first message was not a welcome"));
    };
    Ok(Welcome {
        run_id: message.header.run_id,
        term: message.header.stamp.term,
        config_toml,
    })
}

/// Carries the outbox out until the session is closed.
async fn send(inbox: &Inbox, run_id: &str, outgoing: mpsc::Sender<v1::MemberMessage>) {
    let mut timer = tokio::time::interval(PROGRESS_EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        while let Some(message) = inbox.next_outgoing() {
            if outgoing.send((&message).into()).await.is_err() {
                // The transport is gone; the receiving task sees why and says so.
                return std::future::pending().await;
            }
        }
        if inbox.is_closed() {
            return;
        }
        tokio::select! {
            () = inbox.wake.notified() => {}
            _ = timer.tick() => {
                inbox.resend_overdue(RESEND_AFTER);
                if let Some((progress, stamp)) = inbox.progress() {
                    inbox.say(progress_message(run_id, stamp, progress));
                }
            }
        }
    }
}

/// Takes the coordinator's messages in until the stream ends; why it did.
async fn receive(
    inbox: &Inbox,
    address: &str,
    run_id: &str,
    mut incoming: Streaming<v1::CoordinatorMessage>,
) -> SessionError {
    let broken = |cause: String| SessionError::Broken {
        address: address.to_owned(),
        cause,
    };
    loop {
        let message = match incoming.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return broken("the coordinator closed it".to_owned()),
            Err(status) => return refusal(address, &status),
        };
        match FromCoordinator::try_from(message) {
            Ok(message) if message.header.run_id == run_id => inbox.accept(message),
            Ok(message) => {
                return SessionError::Refused {
                    reason: format!("it speaks of the run {} now, not of {run_id}", message.header.run_id),
                };
            }
            Err(error) => {
                return SessionError::Refused {
                    reason: format!("it sends what this trainer does not understand: {error}"),
                };
            }
        }
    }
}

/// A status as an error: a refusal keeps the coordinator's own sentence.
fn refusal(address: &str, status: &Status) -> SessionError {
    let may_come_again = status.metadata().contains_key("retry-after");
    match status.code() {
        Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::Unauthenticated
        | Code::PermissionDenied
            if !may_come_again =>
        {
            SessionError::Refused {
                reason: status.message().to_owned(),
            }
        }
        _ => SessionError::Broken {
            address: address.to_owned(),
            cause: innermost(status),
        },
    }
}

/// The sentence at the bottom of a chain of causes, which says what the system said.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

//! The session's own thread: opens the stream, carries the outbox out and the coordinator's messages in.
//! Sending and receiving are two tasks, so that a stream that is full one way never stops the other.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep_proto::domain::{CoordinatorBody, FromCoordinator};
use lockstep_proto::v1;
use lockstep_proto::v1::training_client::TrainingClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
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
/// Largest message either way.
const MESSAGE_LIMIT: usize = 4 << 20;

/// Starts the thread and waits for the welcome.
pub(crate) fn open(options: &SessionOptions, inbox: Arc<Inbox>) -> Result<(JoinHandle<()>, Welcome), SessionError> {
    let cause = |error: std::io::Error| SessionError::Thread {
        cause: error.to_string(),
    };
    let endpoint = endpoint(&options.coordinator)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(cause)?;
    let (welcomed, welcome) = sync_channel(1);
    let (options, link_inbox) = (options.clone(), inbox.clone());
    let thread = std::thread::Builder::new()
        .name("session".to_owned())
        .spawn(move || {
            runtime.block_on(carry(options, endpoint, link_inbox, welcomed));
        })
        .map_err(cause)?;
    match welcome.recv() {
        Ok(Ok(welcome)) => Ok((thread, welcome)),
        Ok(Err(error)) => Err(error),
        Err(_ended_without_a_word) => Err(SessionError::Closed),
    }
}

fn endpoint(address: &str) -> Result<Endpoint, SessionError> {
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| SessionError::Address {
        address: address.to_owned(),
        cause: error.to_string(),
    })?;
    Ok(endpoint
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20))
        .keep_alive_while_idle(true))
}

async fn carry(
    options: SessionOptions,
    endpoint: Endpoint,
    inbox: Arc<Inbox>,
    welcomed: SyncSender<Result<Welcome, SessionError>>,
) {
    let address = options.coordinator.clone();
    let (outgoing, queue) = mpsc::channel(SEND_BUFFER);
    let opened = async {
        let channel = connect(&options, &endpoint).await?;
        let mut client = TrainingClient::new(channel)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        let answer = tokio::time::timeout(options.patience, client.attach(ReceiverStream::new(queue))).await;
        let late = SessionError::Deadline {
            what: "the coordinator's welcome",
            patience: options.patience,
        };
        let mut incoming = answer
            .map_err(|_| late.clone())?
            .map_err(|status| refusal(&address, &status))?
            .into_inner();
        let first = tokio::time::timeout(options.patience, incoming.message())
            .await
            .map_err(|_| late)?;
        let first = first.map_err(|status| refusal(&address, &status))?;
        Ok::<_, SessionError>((incoming, read_welcome(&address, first)?))
    };
    let (incoming, welcome) = match opened.await {
        Ok(opened) => opened,
        Err(error) => {
            inbox.break_with(error.clone());
            // Nobody waits for the answer only where the caller is gone itself.
            let _told = welcomed.send(Err(error));
            return;
        }
    };
    let run_id = welcome.run_id.clone();
    if welcomed.send(Ok(welcome)).is_err() {
        return;
    }
    tokio::select! {
        () = send(&inbox, &run_id, outgoing) => {}
        () = receive(&inbox, &address, &run_id, incoming) => {}
        () = lost_patience(&inbox) => {}
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
async fn connect(options: &SessionOptions, endpoint: &Endpoint) -> Result<Channel, SessionError> {
    let deadline = Instant::now() + options.patience;
    let mut pause = Duration::from_millis(20);
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(error) if Instant::now() + pause >= deadline => {
                return Err(SessionError::Unreachable {
                    address: options.coordinator.clone(),
                    patience: options.patience,
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
    let mut told = 0;
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
                if let Some((progress, stamp)) = inbox.progress_since(told) {
                    told = progress.counter;
                    inbox.say(progress_message(run_id, stamp, progress));
                }
            }
        }
    }
}

/// Takes the coordinator's messages in until the stream ends.
async fn receive(inbox: &Inbox, address: &str, run_id: &str, mut incoming: Streaming<v1::CoordinatorMessage>) {
    let broken = |cause: String| SessionError::Broken {
        address: address.to_owned(),
        cause,
    };
    loop {
        let error = match incoming.message().await {
            Ok(Some(message)) => match FromCoordinator::try_from(message) {
                Ok(message) if message.header.run_id == run_id => {
                    inbox.accept(message);
                    continue;
                }
                Ok(message) => broken(format!(
                    "it speaks of the run {} now, not of {run_id}",
                    message.header.run_id
                )),
                Err(error) => broken(error.to_string()),
            },
            Ok(None) => broken("the coordinator closed it".to_owned()),
            Err(status) => refusal(address, &status),
        };
        if !inbox.is_finished() {
            inbox.break_with(error);
        }
        return;
    }
}

/// A status as an error: a refusal keeps the coordinator's own sentence.
fn refusal(address: &str, status: &Status) -> SessionError {
    match status.code() {
        Code::FailedPrecondition | Code::InvalidArgument | Code::AlreadyExists | Code::ResourceExhausted => {
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

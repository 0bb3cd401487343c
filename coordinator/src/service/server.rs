//! The tonic server: both services, health and reflection, and beside them the page of the run, on one address, behind the
//! guard.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use lockstep_config::SecuritySection;
use lockstep_proto::FILE_DESCRIPTOR_SET;
use lockstep_proto::v1::control_server::ControlServer;
use lockstep_security::{Keeper, Reload};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot, watch};
use tonic::transport::Server;

use crate::dashboard::webhook::Webhook;
use crate::dashboard::{self, Board};
use crate::ledger::RunRow;
use crate::service::MESSAGE_LIMIT;
use crate::service::attach::AttachServer;
use crate::service::caller::Caller;
use crate::service::control::{CALLS, ControlService};
use crate::service::guard::{Guard, Journal};
use crate::service::incoming::connections;
use crate::service::mailbox::Mailbox;
use crate::service::training::TrainingService;
use crate::telemetry::Exporter;

/// A call must be answered (a stream: opened) within this time.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long streams may take to end after the run.
const GRACE: Duration = Duration::from_secs(3);
/// How often certificates and tokens are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes of all headers of a request.
const HEADERS: u32 = 16 << 10;

/// Whom the server lets in.
pub(crate) struct Admission {
    pub(crate) section: SecuritySection,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) address: SocketAddr,
}

/// How long the last alerts may take to be posted after the run.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves until `done` says so, or its sender is gone.
pub(crate) async fn serve(
    listener: TcpListener,
    mailbox: Mailbox,
    run: RunRow,
    term: u64,
    admission: Admission,
    (board, webhook, exporter): (Arc<Board>, Option<Webhook>, Option<Exporter>),
    done: oneshot::Receiver<()>,
) {
    let Admission {
        section,
        keeper,
        address,
    } = admission;
    let journal = Arc::new(Journal::new(mailbox.clone(), term));
    let reloads = watch::Sender::new(0);
    let known = (keeper.clone(), reloads.subscribe());
    let guard = Guard::new(&section, known, journal.clone(), address);
    let page = dashboard::router(board.clone(), mailbox.clone(), address.ip().is_loopback());
    let training = TrainingService {
        mailbox: mailbox.clone(),
        run_id: run.run_id.clone(),
        term,
        config_toml: run.config_toml,
        next_peer: Arc::new(AtomicU64::new(0)),
    };
    let training = AttachServer::new(training);
    let control = ControlServer::new(ControlService {
        mailbox,
        run_id: run.run_id,
        term,
        board: board.clone(),
        turns: Semaphore::new(CALLS),
    })
    .max_decoding_message_size(MESSAGE_LIMIT)
    .max_encoding_message_size(MESSAGE_LIMIT);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AttachServer>().await;
    health.set_serving::<ControlServer<ControlService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let mut server = Server::builder()
        .timeout(DEADLINE)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .max_concurrent_streams(Some(64))
        .http2_max_header_list_size(HEADERS)
        // Browsers without TLS speak nothing newer.
        .accept_http1(true)
        .layer(guard);
    let mut router = server
        .add_routes(page.into())
        .add_service(health_service)
        .add_service(training)
        .add_service(control);
    match reflection {
        Ok(reflection) => router = router.add_service(reflection),
        Err(error) => tracing::warn!("without reflection: {error}"),
    }
    let (closing, closed) = oneshot::channel::<()>();
    let incoming = connections(listener, &section, keeper.clone(), journal.clone());
    tell_expiry(&keeper, &board);
    let watching = tokio::spawn(watch_files((keeper, reloads), journal, board.clone()));
    let serving = router.serve_with_incoming_shutdown(incoming, async {
        // An error means that the sender is gone, which says the same.
        let _over = closed.await;
    });
    let serving = tokio::spawn(serving);
    let posting = webhook.map(|webhook| tokio::spawn(webhook.carry(board.clone())));
    let exporting = exporter.map(|exporter| tokio::spawn(exporter.carry()));
    tokio::select! {
        // An error means that the sender is gone, which says the same.
        _over = done => {}
        () = board.watch_disk() => {}
    }
    // Both may be gone already; then there is nothing left to close.
    let _closing = closing.send(());
    let _ended = tokio::time::timeout(GRACE, serving).await;
    watching.abort();
    if let Some(posting) = posting {
        // What happened last may be what people most want to hear of.
        let _told = tokio::time::timeout(FAREWELL, posting).await;
    }
    if let Some(exporting) = exporting {
        // It bounds its own time, since the run's thread has nothing more to tell. A panic there has been printed.
        let _sent = exporting.await;
    }
}

/// Tells the board until when the certificate is valid that new connections are shown, so that people are warned in time.
fn tell_expiry(keeper: &Keeper, board: &Board) {
    let valid_until = match &keeper.keys().valid_until {
        None => None,
        Some(Ok(at)) => Some(*at),
        Some(Err(cause)) => {
            tracing::warn!("nobody will be warned before security.certificate expires: {cause}");
            None
        }
    };
    board.certificate_expires(valid_until);
}

/// Has certificates and tokens read again whenever they change, for as long as the server lives.
async fn watch_files((keeper, reloads): (Arc<Keeper>, watch::Sender<u64>), journal: Arc<Journal>, board: Arc<Board>) {
    let caller = Caller::own_process("reload of the files of [security]");
    loop {
        tokio::time::sleep(LOOK).await;
        journal.tick();
        let read = keeper.clone();
        // A file system that hangs must not stop the services.
        match tokio::task::spawn_blocking(move || read.reload()).await {
            Ok(Reload::Taken) => {
                tell_expiry(&keeper, &board);
                reloads.send_modify(|count| *count += 1);
                journal.note(&caller, Ok("what they say now counts"));
            }
            Ok(Reload::Refused(error)) => {
                journal.note(&caller, Err(&format!("{error}; what they said before stays in use")));
            }
            Ok(Reload::Unchanged) | Err(_) => {}
        }
    }
}

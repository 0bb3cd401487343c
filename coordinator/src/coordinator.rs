//! Starting a run's coordinator, and the handle of whoever started it: `lockstep run` in its own process, or the
//! binary.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep_config::{CollectiveBackend, RunConfig, SecuritySection};
use lockstep_inventory::TreatmentError;
use lockstep_proto::domain::{Outcome, RunEnd, RunEvent};
use lockstep_security::{Identity, Keeper, Paths, Role, SecurityError, Token};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{broadcast, oneshot};

use crate::branches::Rewinds;
use crate::dashboard::webhook::{Webhook, WebhookError};
use crate::dashboard::{Board, Story};
use crate::files::{FileError, RunFiles, World};
use crate::ledger::{FactsRow, Ledger, LedgerError, Recorder, RunRow};
use crate::plan::{PlanError, Planner};
use crate::run::{Effect, Event, Keeps, Leases, Refusal, Run, RunFacts, Worlds};
use crate::service::{
    Admission, Caller, CheckpointOptions, Committer, Executor, ExecutorParts, Letter, Mailbox, allow_for, mailbox,
    serve, tensors,
};
use crate::telemetry::{Exporter, TelemetryError};

/// Events that a slow watcher may fall behind by before it misses some.
const EVENTS: usize = 4096;
/// How long ranks are waited for, in a new term, whose world cannot be formed anew.
const FIXED_PATIENCE: Duration = Duration::from_secs(60);
/// How long a command waits for the decision.
const ANSWER: Duration = Duration::from_secs(10);

/// What a run needs.
#[derive(Clone, Debug)]
pub struct CoordinatorOptions {
    /// The run's config.
    pub config: RunConfig,
    /// Its folder, made if it is not there.
    pub run_dir: PathBuf,
    /// What happens to a run that has begun in that folder.
    pub begun: BegunRun,
    /// Size of the vocabulary of the data.
    pub vocabulary: u32,
    /// Trainers that make the first world complete.
    pub ranks: u32,
    /// Samples of one epoch.
    pub training_samples: u64,
    /// Hash of the data manifest, as trainers will report it.
    pub data_hash: String,
}

/// What a coordinator does with a run that has begun in its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BegunRun {
    /// Leaves it alone, and does not start.
    LeftAlone,
    /// Goes on with it, by new trainers: those of the terms before have ended.
    Resumed,
    /// Takes it over in the next term, with its trainers where they still train.
    TakenOver,
}

/// Why a coordinator cannot start. Nothing is left behind but, where the folder is its own, an empty ledger.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The world cannot be made.
    #[error("{}", .0.reason)]
    World(Refusal),
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {cause}. Choose another coordinator.bind, or port 0 for a free one")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Of the system.
        cause: std::io::Error,
    },
    /// The folder's run has begun already.
    #[error("the run folder {} holds a run that has begun: go on with it (--resume), choose another run.name, or remove the folder", folder.display())]
    Begun {
        /// The folder.
        folder: PathBuf,
    },
    /// Every step of the folder's run is made.
    #[error("the run in {} is over: {}", folder.display(), end.reason)]
    Over {
        /// The folder.
        folder: PathBuf,
        /// How it ended.
        end: RunEnd,
    },
    /// The files of `[security]` cannot be used.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// A rule of the optimiser cannot be followed.
    #[error(transparent)]
    Treatment(#[from] TreatmentError),
    /// The schedules cannot be followed.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The files.
    #[error(transparent)]
    File(#[from] FileError),
    /// Alerts cannot be posted.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    /// Spans cannot be sent.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The system gives no thread or no runtime.
    #[error("cannot start the coordinator's threads: {0}")]
    Thread(std::io::Error),
}

/// The coordinator of one run.
#[derive(Debug)]
pub struct Coordinator;

/// A running coordinator. Dropping it abandons the run.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    scheme: &'static str,
    trainers_token: Option<Token>,
    run_id: String,
    handle: ControlHandle,
    events: broadcast::Sender<RunEvent>,
    executor: Option<JoinHandle<RunEnd>>,
    server: Option<JoinHandle<()>>,
}

impl Coordinator {
    /// Starts a coordinator on threads of its own: checks the world, listens, claims a term in the run's folder.
    ///
    /// # Errors
    /// When the world is impossible, the address is taken, the folder is in use or has a run, files of `[security]` cannot
    /// be used, or the disk fails.
    pub fn start(options: CoordinatorOptions) -> Result<Running, StartError> {
        Coordinator::begin(options, None)
    }

    /// As [`Coordinator::start`], by a process that starts the trainers too: where callers have to prove who they are, the
    /// coordinator takes a token that is made for them and is in no file ([`Running::trainers_token`]).
    ///
    /// # Errors
    /// As [`Coordinator::start`]; when the system gives no random numbers.
    pub fn start_with_own_trainers(options: CoordinatorOptions) -> Result<Running, StartError> {
        let token = match options.config.security.knows_callers() {
            true => Some(Token::generate().map_err(|error| SecurityError::Content(error.to_string()))?),
            false => None,
        };
        Coordinator::begin(options, token)
    }

    fn begin(options: CoordinatorOptions, trainers_token: Option<Token>) -> Result<Running, StartError> {
        let CoordinatorOptions {
            config,
            run_dir,
            begun,
            vocabulary,
            ranks,
            training_samples,
            data_hash,
        } = options;
        let backend = config.backend_name(ranks).to_owned();
        let worlds = worlds(&config, ranks);
        let planner = Planner::new(&config, training_samples)?;
        let tensors = tensors(&config, vocabulary)?;
        let total_steps = planner.total_steps();
        let mut facts = RunFacts {
            config_hash: config.hash(),
            data_hash: data_hash.clone(),
            lanes: config.run.lanes,
            worlds,
            term: 0,
            last_generation: 0,
            is_resumed: false,
            return_patience: if worlds.are_elastic() {
                worlds.patience
            } else {
                FIXED_PATIENCE
            },
            window: Duration::try_from_secs_f64(config.coordinator.plan_window_seconds).unwrap_or(Duration::ZERO),
            secret: [0; 32],
            planner,
            rewinds: rewinds(&config),
            keeps: Some(Keeps {
                last: config.checkpoint.keep_last,
                every: config.checkpoint.keep_every,
            }),
            stops_once: true,
        };
        Run::new(facts.clone()).map_err(StartError::World)?;
        let keeper = Keeper::open(
            paths(&config.security),
            trainers_token.clone().map(|token| (token, own_trainers())),
        )?;
        let address = config.coordinator.bind;
        let listen = |cause| StartError::Listen { address, cause };
        let listener = std::net::TcpListener::bind(address).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        allow_for(ranks);
        let address = listener.local_addr().map_err(listen)?;
        let is_safe = config.security.has_tls() && config.security.knows_callers();
        if !(address.ip().is_loopback() || is_safe) {
            tracing::warn!("{}", insecure(&config.security, address));
        }
        let admission = Admission {
            section: config.security.clone(),
            keeper: Arc::new(keeper),
            address,
        };
        let scheme = if config.security.has_tls() { "https" } else { "http" };

        let webhook = Webhook::of(&config.alerts)?;
        let mut exporter = Exporter::of(&config.telemetry)?;
        let row = RunRow {
            run_id: format!("{}-{:08x}", config.run.name, rand::random::<u32>()),
            name: config.run.name.clone(),
            config_toml: config.to_toml(),
            config_hash: facts.config_hash.clone(),
            data_hash,
            training_samples,
        };
        let mut ledger = Ledger::open(&run_dir, row)?;
        let recorded = ledger.recorded()?;
        facts.last_generation = recorded.generations.last().map_or(0, |last| last.stamp.generation);
        let has_begun = !recorded.generations.is_empty();
        if has_begun && begun == BegunRun::LeftAlone {
            return Err(StartError::Begun { folder: run_dir });
        }
        if let Some(end) = ledger.last_end()?
            && end.outcome == Outcome::Completed
        {
            return Err(StartError::Over { folder: run_dir, end });
        }
        let world = World {
            from_step: 1,
            ranks,
            backend,
        };
        let mut files = RunFiles::create(&run_dir, &ledger.run().config_toml, world)?;
        let validations = ledger.validations()?;
        let history = ledger.history()?;
        files.restore(&history, total_steps, &|ranks| config.backend_name(ranks))?;
        let story = Story::of_ledger(&ledger, history, &run_dir, &config, total_steps)?;
        let board = Arc::new(Board::new(story, config.alerts.clone()));
        (facts.term, facts.secret) = (ledger.term(), ledger.secret());
        let last = recorded
            .committed
            .last()
            .map(|commit| commit.to_committed_step(total_steps));
        let newest_validation = validations.last().map(|(_, validation)| validation.loss);
        facts.is_resumed = begun == BegunRun::Resumed;
        let records_events = config.coordinator.record_events;
        if records_events {
            ledger.record_facts(&FactsRow::of(&facts))?;
        }
        let recorder = Recorder::new(records_events.then_some(facts.term));
        let run = Run::recovered(facts, recorded).map_err(StartError::World)?;

        let (mailbox, letters) = mailbox();
        let (events, _) = broadcast::channel(EVENTS);
        let (row, term) = (ledger.run().clone(), ledger.term());
        let telemetry = exporter.as_mut().map(|exporter| exporter.begin(&row, term));
        let store = config.checkpoint.store.clone();
        let committer = Committer::start(
            CheckpointOptions {
                store: store.unwrap_or_else(|| run_dir.join("checkpoints").display().to_string()),
                run: row.clone(),
                tensors,
                retention: CheckpointOptions::retention(&config),
            },
            mailbox.clone(),
        )
        .map_err(StartError::Thread)?;
        let run_id = row.run_id.clone();
        let name = config.run.name.clone();
        let leases = Leases::new(Duration::try_from_secs_f64(config.fault.lease_seconds).unwrap_or(Duration::MAX));
        let backend = Box::new(move |ranks| config.backend_name(ranks));
        let shown = board.clone();
        let parts = ExecutorParts {
            run,
            leases,
            recorder,
            ledger,
            files,
            letters,
            events: events.clone(),
            name,
            backend,
            committer,
            last,
            newest_validation,
            board,
            telemetry,
        };
        let (done, is_done) = oneshot::channel();
        let (server_runtime, run_runtime) = (runtime()?, runtime()?);
        let server_mailbox = mailbox.clone();
        let server = spawn("coordinator-service", move || {
            server_runtime.block_on(async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => {
                        let parts = (shown, webhook, exporter);
                        serve(listener, server_mailbox, row, term, admission, parts, is_done).await
                    }
                    Err(error) => tracing::error!("cannot listen: {error}"),
                }
            });
            // The name of a collector that nobody resolves, or a disk that does not answer, holds up no end of a run.
            server_runtime.shutdown_background();
        })?;
        let executor = spawn("coordinator-run", move || {
            let end = run_runtime.block_on(Executor::new(parts).carry());
            // The server may have ended by itself; then there is nothing to tell it.
            let _told = done.send(());
            end
        })?;
        let handle = ControlHandle { mailbox };
        Ok(Running {
            address,
            scheme,
            trainers_token,
            run_id,
            handle,
            events,
            executor: Some(executor),
            server: Some(server),
        })
    }
}

fn paths(section: &SecuritySection) -> Paths {
    Paths {
        certificate: section.certificate.clone(),
        key: section.key.clone(),
        client_ca: section.client_ca.clone(),
        tokens: section.tokens.clone(),
    }
}

/// Whom the token of trainers stands for that this process starts.
fn own_trainers() -> Identity {
    Identity {
        role: Role::Trainer,
        name: "of-this-process".to_owned(),
    }
}

/// What `security.insecure_bind` has let through.
fn insecure(section: &SecuritySection, address: SocketAddr) -> String {
    let what = match section.knows_callers() {
        false => "everybody who reaches it may watch, stop and join the run",
        true => "tokens go over the network in clear, where whoever reads them can use them",
    };
    format!("the coordinator listens on {address}, and {what} (security.insecure_bind)")
}

/// How many ranks a run may have that begins with `ranks`. MPI's world cannot be made anew.
fn worlds(config: &RunConfig, ranks: u32) -> Worlds {
    if config.collective.backend == CollectiveBackend::Mpi {
        return Worlds::fixed(ranks);
    }
    Worlds {
        first: ranks,
        least: config.fault.min_ranks,
        most: config.fault.max_ranks.unwrap_or(config.run.lanes),
        patience: Duration::try_from_secs_f64(config.fault.patience_seconds).unwrap_or(Duration::MAX),
    }
}

/// How far the run goes back before a step that cannot be used, if a policy wants it to.
fn rewinds(config: &RunConfig) -> Option<Rewinds> {
    let fault = &config.fault;
    fault.may_rewind().then_some(Rewinds {
        most: fault.max_rewinds,
        steps: fault.rewind_steps,
        skips: fault.rewind_skip,
        rate_factor: fault.rewind_factor,
    })
}

fn runtime() -> Result<Runtime, StartError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::Thread)
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StartError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(StartError::Thread)
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What trainers and operators on this machine take: `http://ADDRESS`, or `https://` where it talks TLS.
    pub fn url(&self) -> String {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        format!("{}://{address}", self.scheme)
    }

    /// What trainers show that this process starts; none where nobody is asked.
    pub fn trainers_token(&self) -> Option<&Token> {
        self.trainers_token.as_ref()
    }

    /// The run's id.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Commands for the run, from any thread.
    pub fn handle(&self) -> ControlHandle {
        self.handle.clone()
    }

    /// Every event from now on. The last one is [`RunEvent::Ended`].
    pub fn subscribe(&self) -> Events {
        Events {
            receiver: self.events.subscribe(),
            ended: false,
        }
    }

    /// Waits until the run has ended, its files are written and the server is closed.
    pub fn wait(mut self) -> RunEnd {
        let end = self.executor.take().map(JoinHandle::join);
        if let Some(server) = self.server.take() {
            // A panic there has been printed, and the run's own end is what counts.
            let _ended = server.join();
        }
        match end {
            Some(Ok(end)) => end,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => unreachable!("only wait and drop take the thread"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(executor) = self.executor.take() {
            self.handle.abandon();
            // As in `wait`: whoever drops a run does not ask how it ended.
            let _ended = executor.join();
        }
        if let Some(server) = self.server.take() {
            let _ended = server.join();
        }
    }
}

/// Commands for a run that is coordinated in this process. None of them panics or waits inside async code.
#[derive(Clone)]
pub struct ControlHandle {
    mailbox: Mailbox,
}

impl std::fmt::Debug for ControlHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlHandle").finish_non_exhaustive()
    }
}

impl ControlHandle {
    /// Pauses at the end of the running step. The sentence says what was decided.
    ///
    /// # Errors
    /// When the run is over.
    pub fn pause(&self) -> Result<String, Refusal> {
        self.command(Event::Pause).map(|(sentence, _)| sentence)
    }

    /// Goes on after a pause.
    ///
    /// # Errors
    /// When the run is over.
    pub fn resume(&self) -> Result<String, Refusal> {
        self.command(Event::Resume).map(|(sentence, _)| sentence)
    }

    /// Stops at the end of the running step. Returns at once, so that a Ctrl-C handler may call it.
    pub fn stop(&self) {
        self.tell(Event::Stop);
    }

    /// Ends the run now, in the middle of a step: everybody is told to abort. Returns at once.
    pub fn abandon(&self) {
        self.tell(Event::Abandon);
    }

    /// Whether the run's thread answers a question within `patience`; it does not when the run is over.
    pub async fn answers(&self, patience: Duration) -> bool {
        let (reply, answer) = oneshot::channel();
        let question = Letter::Status(Box::new(move |_status| {
            // Whoever asked waits only so long.
            let _heard = reply.send(());
        }));
        let is_asked = self.mailbox.operators.send(question).is_ok();
        is_asked && matches!(tokio::time::timeout(patience, answer).await, Ok(Ok(())))
    }

    fn tell(&self, event: Event) {
        let caller = own_process(&event);
        // An error says that the run is over, which is what was asked for.
        let _told = self
            .mailbox
            .operators
            .send(Letter::Command(event, caller, Box::new(|_answer| {})));
    }

    fn command(&self, event: Event) -> Result<(String, Option<Effect>), Refusal> {
        let caller = own_process(&event);
        let (answer, answered) = std_mpsc::sync_channel(1);
        let reply = Box::new(move |decided| {
            // The caller waits only so long.
            let _told = answer.send(decided);
        });
        let over = || Refusal::new("RUN_OVER", "run", "the run is over".to_owned());
        self.mailbox
            .operators
            .send(Letter::Command(event, caller, reply))
            .map_err(|_| over())?;
        answered.recv_timeout(ANSWER).unwrap_or_else(|_| Err(over()))
    }
}

/// The process that the coordinator runs in, as the one who gives an order.
fn own_process(event: &Event) -> Caller {
    Caller::own_process(match event {
        Event::Stop => "stop",
        Event::Abandon => "abandon",
        Event::Pause => "pause",
        Event::Resume => "resume",
        _ => "an order",
    })
}

/// The events of a run, in order. One that is read too slowly misses some, but never the end.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<RunEvent>,
    ended: bool,
}

impl Events {
    /// Waits for the next event; none after the end. Not for async code: use [`Events::next`] there.
    pub fn blocking_next(&mut self) -> Option<RunEvent> {
        while !self.ended {
            match self.receiver.blocking_recv() {
                Ok(event) => return Some(self.noted(event)),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
        None
    }

    /// The next event; none after the end.
    pub async fn next(&mut self) -> Option<RunEvent> {
        while !self.ended {
            match self.receiver.recv().await {
                Ok(event) => return Some(self.noted(event)),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
        None
    }

    fn noted(&mut self, event: RunEvent) -> RunEvent {
        self.ended = matches!(event, RunEvent::Ended(_));
        event
    }
}

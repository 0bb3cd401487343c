//! The coordinator inside this process, and everything that reaches the launcher: events of the run and signals. All
//! become [`Message`]s.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use lockstep_config::RunConfig;
use lockstep_coordinator::{BegunRun, Coordinator, CoordinatorOptions, Events, Running, StartError};
use lockstep_proto::domain::RunEvent;
use lockstep_security::Token;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::ending::Ending;
use crate::run::check::Checked;
use lockstep_proto::address::Address;

/// What reaches the launcher.
#[derive(Debug)]
pub(crate) enum Message {
    /// Of the run.
    Event(Box<RunEvent>),
    /// A signal asks to end.
    Interrupt,
    /// No more events come, and the run has not ended.
    EventsLost,
}

/// A coordinator that serves.
pub(crate) struct Serving {
    coordinator: Running,
    url: String,
    /// Receives signals.
    _runtime: Runtime,
}

/// Refuses an address that is taken, before anything is made.
///
/// # Errors
/// Nobody can listen there.
pub(crate) fn check_bind(config: &RunConfig) -> Result<(), Ending> {
    let address = config.coordinator.bind;
    std::net::TcpListener::bind(address)
        .map(drop)
        .map_err(|cause| Ending::bad_input(StartError::Listen { address, cause }))
}

impl Serving {
    /// Starts the coordinator and writes its address into the run's folder. The messages begin here.
    ///
    /// # Errors
    /// The folder or the address cannot be used, or the system refuses.
    pub(crate) fn start(
        checked: &Checked,
        folder: &Path,
        resume: bool,
    ) -> Result<(Serving, Receiver<Message>), Ending> {
        let (sender, messages) = channel();
        let runtime = catch_signals(&sender)?;
        let coordinator = Coordinator::start_with_own_trainers(CoordinatorOptions {
            config: checked.config.clone(),
            run_dir: folder.to_owned(),
            begun: if resume { BegunRun::Resumed } else { BegunRun::LeftAlone },
            vocabulary: checked.vocabulary,
            ranks: checked.ranks,
            training_samples: checked.training_samples,
            data_hash: checked.data_hash.clone(),
        });
        let coordinator = coordinator.map_err(|error| match error {
            StartError::File(_) | StartError::Thread(_) => Ending::failed(error),
            _ => Ending::bad_input(error),
        })?;
        let events = coordinator.subscribe();
        std::thread::Builder::new()
            .name("lockstep-events".to_owned())
            .spawn(move || follow(events, &sender))
            .map_err(|error| Ending::Failed(format!("the system gives no thread: {error}")))?;
        let url = coordinator.url();
        Address::served(url.clone(), std::process::id())
            .write(folder)
            .map_err(|error| {
                Ending::Failed(format!(
                    "cannot write {}: {error}",
                    folder.join(Address::FILE).display()
                ))
            })?;
        Ok((
            Serving {
                coordinator,
                url,
                _runtime: runtime,
            },
            messages,
        ))
    }

    /// The coordinator's address.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What the trainers show to it that this process starts, if they are asked.
    pub(crate) fn trainers_token(&self) -> Option<&Token> {
        self.coordinator.trainers_token()
    }

    /// Asks for a stop at the end of the step. Does not wait: the events tell.
    pub(crate) fn ask_stop(&self) {
        self.coordinator.handle().stop();
    }

    /// Waits until the coordinator has written its files and closed its server, and takes its address away. A run
    /// that has not ended is abandoned.
    pub(crate) fn shut_down(self, folder: &Path) {
        drop(self.coordinator);
        // It may have been removed by hand.
        let _ = std::fs::remove_file(folder.join(Address::FILE));
    }
}

/// From now on signals that ask to end are messages.
fn catch_signals(sender: &Sender<Message>) -> Result<Runtime, Ending> {
    let failed = |error: std::io::Error| Ending::Failed(format!("signals cannot be caught: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(failed)?;
    let inside = runtime.enter();
    let hangup = Some(SignalKind::hangup()).filter(|kind| !is_ignored(*kind));
    for kind in [SignalKind::interrupt(), SignalKind::terminate()]
        .into_iter()
        .chain(hangup)
    {
        let mut signals = signal(kind).map_err(failed)?;
        let sender = sender.clone();
        runtime
            .spawn(async move { while signals.recv().await.is_some() && sender.send(Message::Interrupt).is_ok() {} });
    }
    drop(inside);
    Ok(runtime)
}

/// Whether this process was started with a signal ignored, as `nohup` does with the hang-up of a terminal.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (kind.as_raw_value() - 1) & 1 == 1)
}

/// Passes the run's events on until it ends.
fn follow(mut events: Events, sender: &Sender<Message>) {
    loop {
        let event = events.blocking_next();
        let last = matches!(event, None | Some(RunEvent::Ended(_)));
        let message = event.map_or(Message::EventsLost, |event| Message::Event(Box::new(event)));
        if sender.send(message).is_err() || last {
            return;
        }
    }
}

//! Commands for a live run: its coordinator is found, asked, and its answer shown.
//!
//! `lockstep run` writes `coordinator.json` into the run's folder and holds a lock on the folder while it lives; so a
//! file left by a killed run is told from a live one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_proto::domain::{MemberStatus, Outcome, RunEvent, RunStatus};
use lockstep_proto::v1;
use lockstep_proto::v1::control_client::ControlClient;
use lockstep_security::{Channel, Credentials};

use crate::cli::Target;
use crate::ending::Ending;
use crate::run::folder::{RUNS, is_in_use};
use crate::run::show;
use lockstep_proto::address::Address;

/// How long a coordinator may take to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// `lockstep status`.
pub(crate) fn status(target: &Target) -> Result<(), Ending> {
    let status = ask(target, async |mut client| {
        client.status(v1::StatusRequest { header: header() }).await
    })?;
    let status = RunStatus::try_from(status).map_err(Ending::failed)?;
    print!("{}", status_text(&status));
    Ok(())
}

/// `lockstep members`.
pub(crate) fn members(target: &Target) -> Result<(), Ending> {
    let reply = ask(target, async |mut client| {
        client.members(v1::MembersRequest { header: header() }).await
    })?;
    let members: Vec<MemberStatus> = reply.members.into_iter().map(MemberStatus::from).collect();
    print!("{}", members_text(&members));
    Ok(())
}

/// `lockstep watch`: a line per event until the run ends.
pub(crate) fn watch(target: &Target) -> Result<(), Ending> {
    let address = find(target)?;
    block_on(async {
        let mut client = connect(&address, target).await?;
        let mut events = watch_events(&mut client).await?;
        loop {
            let event = match events.message().await {
                Ok(Some(event)) => RunEvent::try_from(event).map_err(Ending::failed)?,
                Ok(None) => return Err(Ending::Failed(format!("the coordinator at {address} has gone"))),
                Err(status) => return Err(refusal(&address, &status)),
            };
            if !show::says_nothing_new(&event) {
                println!("{}", show::line(&event));
            }
            if let RunEvent::Ended(end) = event {
                return match end.outcome {
                    Outcome::Failed { .. } => Err(Ending::Failed(end.reason)),
                    _ => Ok(()),
                };
            }
        }
    })
}

/// Everything that happens in a run from now on.
pub(crate) async fn watch_events(
    client: &mut ControlClient<Channel>,
) -> Result<tonic::Streaming<v1::WatchEvent>, Ending> {
    let reply = client.watch(v1::WatchRequest { header: header() }).await;
    reply
        .map(tonic::Response::into_inner)
        .map_err(|status| Ending::Failed(status.message().to_owned()))
}

/// Connects to a coordinator, with what the operator shows to it.
pub(crate) async fn connect(address: &str, target: &Target) -> Result<ControlClient<Channel>, Ending> {
    let credentials = Credentials::of(target.credentials.clone()).map_err(Ending::bad_input)?;
    let (endpoint, bearer) = credentials.way_to(address).map_err(Ending::bad_input)?;
    let channel = endpoint.connect_timeout(PATIENCE).connect().await.map_err(|error| {
        Ending::Failed(format!(
            "no coordinator answers at {address} ({}); is the run still alive? See `lockstep status`",
            innermost(&error)
        ))
    })?;
    Ok(ControlClient::new(bearer.on(channel)))
}

/// The sentence at the bottom of a chain of causes, which says what the system said.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn ask<Reply>(
    target: &Target,
    question: impl AsyncFnOnce(ControlClient<Channel>) -> Result<tonic::Response<Reply>, tonic::Status>,
) -> Result<Reply, Ending> {
    let address = find(target)?;
    block_on(async {
        let client = connect(&address, target).await?;
        match tokio::time::timeout(PATIENCE, question(client)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(refusal(&address, &status)),
            Err(_) => Err(Ending::Failed(format!(
                "the coordinator at {address} gave no answer in {} s",
                PATIENCE.as_secs()
            ))),
        }
    })
}

pub(crate) fn refusal(address: &str, status: &tonic::Status) -> Ending {
    match status.code() {
        tonic::Code::InvalidArgument | tonic::Code::FailedPrecondition => Ending::BadInput(status.message().to_owned()),
        tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => {
            Ending::BadInput(format!("the coordinator at {address} refuses: {}", status.message()))
        }
        // A connection that breaks says why at the bottom: that the certificate was refused, for one.
        _ if std::error::Error::source(status).is_some() => Ending::Failed(format!(
            "the coordinator at {address} could not answer: {}",
            innermost(status)
        )),
        _ => Ending::Failed(format!(
            "the coordinator at {address} could not answer: {}",
            status.message()
        )),
    }
}

/// An operator knows neither run id nor term: the address says which run is meant.
pub(crate) fn header() -> Option<v1::Header> {
    Some((&lockstep_proto::domain::Header::default()).into())
}

pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Ending>>) -> Result<T, Ending> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Ending::Failed(format!("cannot wait for the network: {error}")))?
        .block_on(future)
}

/// The address of the run that is meant.
pub(crate) fn find(target: &Target) -> Result<String, Ending> {
    match (&target.coordinator, &target.run) {
        (Some(address), _) => Ok(address.clone()),
        (None, Some(run)) => {
            let folder = folder_of(run);
            live(&folder).ok_or_else(|| {
                Ending::BadInput(format!(
                    "the run {run:?} is not live ({} names no live coordinator); name a live run, or its address with --coordinator",
                    folder.join(Address::FILE).display()
                ))
            })
        }
        (None, None) => only_live(Path::new(RUNS)),
    }
}

/// A name under `runs/`, or the path of a run's folder.
fn folder_of(run: &str) -> PathBuf {
    if run.contains('/') {
        PathBuf::from(run)
    } else {
        Path::new(RUNS).join(run)
    }
}

fn live(folder: &Path) -> Option<String> {
    let address = Address::read(folder)?;
    is_in_use(folder).then_some(address.url)
}

fn only_live(runs: &Path) -> Result<String, Ending> {
    let entries = std::fs::read_dir(runs).into_iter().flatten().flatten();
    let mut found: Vec<(String, String)> = entries
        .filter_map(|entry| Some((entry.file_name().to_string_lossy().into_owned(), live(&entry.path())?)))
        .collect();
    found.sort();
    match found.len() {
        0 => Err(Ending::BadInput(
            "there is no live run under ./runs; go to the folder where `lockstep run` was started, or name the coordinator with --coordinator".to_owned(),
        )),
        1 => Ok(found.remove(0).1),
        _ => {
            let names: Vec<String> = found.into_iter().map(|(name, _)| name).collect();
            Err(Ending::BadInput(format!("several runs are live: {}; name the one you mean", names.join(", "))))
        }
    }
}

fn status_text(status: &RunStatus) -> String {
    let mut lines = vec![
        format!("run         {}", status.name),
        format!("phase       {}", status.phase),
        format!("reason      {}", status.reason),
        format!("step        {} of {}", status.step, status.total_steps),
        format!("ranks       {} ({} present)", status.ranks, status.members),
        format!("backend     {}", status.backend),
        format!("transports  {}", transports_text(&status.transports)),
        format!("term        {}", status.header.stamp.term),
        format!("generation  {}", status.header.stamp.generation),
    ];
    let numbers = [
        ("loss", status.loss, 4),
        ("validation", status.validation_loss, 4),
        ("tok/s", status.tokens_per_second, 0),
    ];
    for (name, number, digits) in numbers {
        lines.extend(number.map(|number| format!("{name:<11} {number:.digits$}")));
    }
    if let Some(reason) = &status.last_skip {
        lines.push(format!(
            "skipped     {} steps, the last one: {reason}",
            status.skipped_steps
        ));
    }
    if let Some(reason) = &status.last_rewind {
        lines.push(format!("rewinds     {}, the last one: {reason}", status.rewinds));
    }
    for alert in &status.alerts {
        lines.push(format!("{:<11} {}", alert.kind, alert.sentence));
    }
    lines.join("\n") + "\n"
}

/// As `shared memory (2 pairs), tcp (4 pairs)`.
fn transports_text(transports: &[(String, u32)]) -> String {
    let parts: Vec<String> = transports
        .iter()
        .map(|(name, pairs)| format!("{name} ({pairs} pair{})", if *pairs == 1 { "" } else { "s" }))
        .collect();
    if parts.is_empty() {
        "-".to_owned()
    } else {
        parts.join(", ")
    }
}

fn members_text(members: &[MemberStatus]) -> String {
    let mut text = format!(
        "{:>4} {:<14} {:>8} {:<16} {:>9} {:>8}  {}\n",
        "rank", "member", "pid", "host", "lanes", "step", "phase"
    );
    for member in members {
        let (rank, lanes) = match &member.place {
            Some((rank, lanes)) => (rank.to_string(), format!("{}..{}", lanes.start, lanes.end)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let info = &member.info;
        text += &format!(
            "{rank:>4} {:<14} {:>8} {:<16} {lanes:>9} {:>8}  {}{}\n",
            info.member,
            info.pid,
            info.host,
            member.reported_step,
            member.phase,
            if member.waits { " (waits)" } else { "" }
        );
    }
    text
}

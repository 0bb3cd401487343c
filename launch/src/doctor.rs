//! `lockstep doctor`: what a machine lacks for a run; and the short form of it that `lockstep run` goes through first.
//!
//! `lockstep_doctor` looks and judges; here stand who asks (the command line, a run that is about to start, one rank of several)
//! and what needs this program's own ways: a coordinator's status, and the trainer's facts.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lockstep_config::RunConfig;
use lockstep_config::place::{Place, place};
use lockstep_data::Manifest;
use lockstep_doctor::checks::{self, Expected};
use lockstep_doctor::facts::programs::answer;
use lockstep_doctor::facts::trainer::TrainerFacts;
use lockstep_doctor::facts::{Facts, Places, Said};
use lockstep_doctor::gather::{Asked, Programs};
use lockstep_doctor::pairs::meeting::{Measured, Meeting, follow, lead};
use lockstep_doctor::pairs::{Pair, echo};
use lockstep_doctor::{Finding, MemoryNeed, Report, Wanted, lines};
use lockstep_proto::domain::RunStatus;
use lockstep_proto::v1;
use serde_json::json;

use crate::cli::{DoctorArguments, Target};
use crate::control;
use crate::ending::Ending;
use crate::run::check::{Checked, ranks_of};
use crate::run::mpirun::Mpirun;
use crate::run::show::Screen;
use crate::sibling;

/// Set to `off`, a run starts whatever the short form would say.
const VARIABLE: &str = "LOCKSTEP_DOCTOR";
/// How long the measurement of the backend may take.
const BENCH: Duration = Duration::from_secs(300);
/// How long a peer may take to be reached.
const PEER: Duration = Duration::from_secs(5);

/// Which rank of how many this process is, by the words of whoever started it.
fn own_place() -> Result<Option<Place>, Ending> {
    place(&variable).map_err(Ending::BadInput)
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Carries out `lockstep doctor`.
pub(crate) fn doctor(arguments: &DoctorArguments) -> Result<(), Ending> {
    if let Some(address) = arguments.listen {
        return listen(address);
    }
    let mut sets = arguments.sets.clone();
    sets.extend(arguments.backend.map(|backend| backend.as_set().to_owned()));
    let config = arguments.config.as_ref().map(|path| RunConfig::read(path, &sets));
    let config = config.transpose().map_err(Ending::bad_input)?;
    let meeting = arguments
        .meet
        .as_ref()
        .map(|meet| meeting(meet, arguments))
        .transpose()?;
    let mut wanted = match &config {
        Some(config) => Some(wanted(config, arguments, meeting.as_ref())?),
        None => None,
    };
    let programs = sibling::programs();
    let places = Places::default();
    let asked = |wanted| Asked {
        wanted,
        config: config.as_ref(),
        programs: &programs,
        build: env!("CARGO_PKG_VERSION"),
        places: &places,
        environment: &variable,
        coordinator: arguments
            .coordinator
            .as_deref()
            .map(|url| (url, &arguments.credentials)),
        deep: arguments.deep,
    };
    let expected = Expected {
        megabits: arguments.expect_mbit,
        milliseconds: arguments.expect_ms,
    };
    if let Some(meeting) = meeting.as_ref().filter(|meeting| meeting.rank > 0) {
        let is_first = own_place()?
            .and_then(|place| place.local_rank)
            .is_none_or(|local| local == 0);
        let asked = asked(wanted.as_ref());
        let facts = if is_first { asked.all() } else { asked.processors_only() };
        let code = follow(meeting, checks::all(&facts, wanted.as_ref(), &expected)).map_err(Ending::Failed)?;
        return ended(code, || "rank 0 shows what was found".to_owned());
    }
    let mut facts = asked(wanted.as_ref()).all();
    ask_trainer(&mut facts, &mut wanted, &programs, arguments.config.as_deref(), &sets);
    facts.run = status(arguments, &facts);
    facts.pairs = arguments.peers.iter().map(|peer| way_to(peer, &facts.host)).collect();
    let mut measured = meeting.as_ref().map(lead).transpose().map_err(Ending::Failed)?;
    let mut findings = Vec::new();
    if let (Some(measured), Some(meeting)) = (&mut measured, &meeting) {
        facts.pairs = std::mem::take(&mut measured.pairs);
        facts.ranks_missing = Some((measured.missing.clone(), meeting.size)).filter(|(missing, _)| !missing.is_empty());
        findings = std::mem::take(&mut measured.findings);
    }
    findings.splice(0..0, checks::all(&facts, wanted.as_ref(), &expected));
    let mut shown = lines(&facts);
    let mut values = serde_json::to_value(&facts).map_err(Ending::failed)?;
    values["wanted"] = json!(wanted);
    if arguments.deep
        && let Some(wanted) = wanted.as_ref().filter(|wanted| wanted.backend == "host")
    {
        let bench = bench(&programs.trainer, wanted.ranks);
        shown.extend(bench.iter().map(|line| ("collectives".to_owned(), line.clone())));
        values["collectives"] = json!(bench);
    }
    let report = Report::new(values, shown, findings);
    match arguments.json {
        true => say(&format!("{}\n", report.to_json())),
        false => say(&report.to_text()),
    }
    let code = report.exit_code(arguments.strict);
    measured.into_iter().for_each(|measured: Measured| measured.end(code));
    ended(code, || match arguments.strict {
        true => format!("{} things are not as they should be", report.findings.len()),
        false => "a run cannot start like this; what to do stands beside each error".to_owned(),
    })
}

fn ended(code: u8, sentence: impl FnOnce() -> String) -> Result<(), Ending> {
    match code {
        0 => Ok(()),
        _ => Err(Ending::Failed(sentence())),
    }
}

/// A reader that went away is no failure of ours.
fn say(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Answers the measurements of others, until it is interrupted.
fn listen(address: SocketAddr) -> Result<(), Ending> {
    let failed = |error: std::io::Error| Ending::BadInput(format!("nobody can listen on {address}: {error}"));
    let listener = TcpListener::bind(address).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    say(&format!(
        "lockstep doctor answers on {bound}; measure with `lockstep doctor --peer HOST:{}`\n",
        bound.port()
    ));
    echo::serve(&listener);
    Err(Ending::Failed(format!("nobody can be answered on {bound} any more")))
}

/// Which rank this is, and where all of them meet.
fn meeting(meet: &str, arguments: &DoctorArguments) -> Result<Meeting, Ending> {
    let typed = arguments.rank.zip(arguments.size);
    let said = match typed {
        Some(_) => typed,
        None => own_place()?.and_then(|place| Some((place.rank, place.size?))),
    };
    let (rank, size) = said.ok_or_else(|| {
        Ending::BadInput(
            "--meet is for ranks, and nothing says which one this is: start it by mpirun, srun or torchrun, or give --rank and --size"
                .to_owned(),
        )
    })?;
    if rank >= size {
        return Err(Ending::BadInput(format!("--rank {rank} is not below --size {size}")));
    }
    let at = meet.to_socket_addrs().map_err(|error| {
        Ending::BadInput(format!(
            "--meet {meet} is no address of rank 0's host: {error}; write HOST:PORT"
        ))
    })?;
    Ok(Meeting {
        rank,
        size,
        host: lockstep_doctor::facts::network::own_name(),
        at: at.collect(),
        patience: Duration::from_secs(arguments.patience),
    })
}

/// What the config wants of this machine: of all ranks on it, or of the one that this process stands for.
fn wanted(config: &RunConfig, arguments: &DoctorArguments, meeting: Option<&Meeting>) -> Result<Wanted, Ending> {
    let vocabulary = Manifest::read(&config.data.path)
        .ok()
        .map(|(manifest, _)| manifest.vocab);
    let Some(meeting) = meeting else {
        return Ok(Wanted::of(config, ranks_of(arguments.ranks, config)?, vocabulary));
    };
    let here = own_place()?.and_then(|place| place.local_size).unwrap_or(1);
    Ok(Wanted {
        is_one_rank: true,
        ..Wanted::of_some(config, (here, meeting.size), vocabulary)
    })
}

/// Has the trainer say what only it can, if it starts at all; its account of memory takes the place of the least one.
fn ask_trainer(
    facts: &mut Facts,
    wanted: &mut Option<Wanted>,
    programs: &Programs,
    config: Option<&Path>,
    sets: &[String],
) {
    let over_mpi = wanted.as_ref().is_some_and(|wanted| wanted.backend == "mpi");
    let (trainer, path) = match over_mpi {
        true => (&facts.mpi_trainer, &programs.mpi_trainer),
        false => (&facts.trainer, &programs.trainer),
    };
    let version = trainer.as_ref().and_then(|trainer| trainer.version.as_ref());
    let is_ours = version.is_some_and(|said| said.as_ref().is_ok_and(|said| said.contains(&facts.build)));
    if !is_ours {
        return;
    }
    let about = config
        .zip(wanted.as_ref())
        .map(|(path, wanted)| (path, wanted.world, sets));
    let mut says = TrainerFacts::ask(path, about);
    if says.is_err() && about.is_some() {
        // A config that it cannot account for, whose data is missing for one, is judged elsewhere.
        says = TrainerFacts::ask(path, None);
    }
    if let (Ok(says), Some(wanted)) = (&says, wanted)
        && !says.memory.is_empty()
    {
        // Which of them are here nobody says; they differ little.
        let mut of_ranks = says.memory.clone();
        of_ranks.sort_unstable();
        wanted.memory = Some(MemoryNeed {
            bytes: of_ranks.iter().take(wanted.ranks as usize).sum(),
            account: "by the account of `lockstep plan`, without activations".to_owned(),
        });
    }
    facts.trainer_says = Some(says);
}

/// What the coordinator that was named says of its run, if it is one and answers at all.
fn status(arguments: &DoctorArguments, facts: &Facts) -> Option<Said> {
    let answer = facts.coordinator.as_ref()?.answer.as_ref().ok()?;
    if !answer.is_coordinator {
        return None;
    }
    let target = Target {
        run: None,
        coordinator: arguments.coordinator.clone(),
        credentials: arguments.credentials.clone(),
    };
    let address = arguments.coordinator.as_deref()?;
    let asked = control::block_on(async {
        let mut client = control::connect(address, &target).await?;
        let asked = client.status(v1::StatusRequest {
            header: control::header(),
        });
        Ok(tokio::time::timeout(control::PATIENCE, asked).await)
    });
    let reply = match asked {
        Ok(Ok(reply)) => reply,
        Ok(Err(_)) => return Some(Said::Failed("it gave no answer in time".to_owned())),
        Err(ending) => return Some(Said::Failed(ending.sentence().unwrap_or_default().to_owned())),
    };
    match reply.map(|reply| RunStatus::try_from(reply.into_inner())) {
        Ok(Ok(status)) => Some(Said::Run {
            name: status.name,
            phase: status.phase.to_string(),
        }),
        Ok(Err(error)) => Some(Said::OtherProtocol(error.to_string())),
        Err(status) => said_in_refusal(&status),
    }
}

fn said_in_refusal(status: &tonic::Status) -> Option<Said> {
    let message = status.message().to_owned();
    match status.code() {
        // A trainer is known, and may not see a status: that is as it should be.
        tonic::Code::PermissionDenied => None,
        tonic::Code::Unauthenticated => Some(Said::Refused(message)),
        tonic::Code::FailedPrecondition if message.contains("protocol") => Some(Said::OtherProtocol(message)),
        tonic::Code::Unimplemented => Some(Said::OtherProtocol(format!("it does not know the call ({message})"))),
        _ => Some(Said::Failed(message)),
    }
}

/// The way to a doctor that listens.
fn way_to(peer: &str, host: &str) -> Pair {
    let addresses = peer
        .to_socket_addrs()
        .map_err(|error| format!("{peer} is no address: {error}"));
    let way = addresses.and_then(|addresses| {
        let mut way = Err(format!("{peer} has no address"));
        for address in addresses {
            way = echo::measure(address, PEER);
            if way.is_ok() {
                break;
            }
        }
        way
    });
    Pair {
        from: host.to_owned(),
        to: peer.to_owned(),
        way,
    }
}

/// What the backend's own measurement says, a line each; its last words where it fails.
fn bench(trainer: &Path, ranks: u32) -> Vec<String> {
    let ranks = ranks.clamp(2, 64).to_string();
    let mut command = Command::new(trainer);
    command.args(["bench", "collectives", "-n", &ranks, "--largest", "16", "--rounds", "5"]);
    match answer(&mut command, BENCH) {
        Ok(text) => text.lines().map(str::to_owned).collect(),
        Err(reason) => vec![format!("could not be measured: {reason}")],
    }
}

/// The short form: what would keep a run from starting, or spoil it. Writes one small file, which is gone again.
///
/// # Errors
/// The run cannot start: the first error in one sentence, as any other bad input.
pub(crate) fn before_run(checked: &Checked, mpirun: Option<&Mpirun>) -> Result<Vec<Finding>, Ending> {
    if variable(VARIABLE).as_deref() == Some("off") {
        return Ok(Vec::new());
    }
    let wanted = Wanted {
        environment_is_set: true,
        ..Wanted::of(&checked.config, checked.ranks, Some(checked.vocabulary))
    };
    let programs = sibling::programs();
    let asked = Asked {
        wanted: Some(&wanted),
        config: Some(&checked.config),
        programs: &programs,
        build: env!("CARGO_PKG_VERSION"),
        places: &Places::default(),
        environment: &variable,
        coordinator: None,
        deep: false,
    };
    let facts = match mpirun {
        Some(mpirun) if mpirun.place.is_far() => asked.of_launcher(),
        _ => asked.short(mpirun.map(|mpirun| mpirun.flavour.to_string())),
    };
    let findings = checks::short(&facts, &wanted);
    match findings.iter().find(|finding| checks::refuses(finding)) {
        Some(error) => Err(Ending::BadInput(error.sentence())),
        None => Ok(findings),
    }
}

/// Shows what the short form found, beside the first lines of the run.
pub(crate) fn warn(findings: &[Finding], screen: &mut Screen) {
    for finding in findings {
        let sentence = finding.sentence();
        screen.tell(&format!("warning: {sentence}"));
        screen.fact(&json!({
            "event": "warning", "id": finding.id.word(), "where": finding.place, "sentence": sentence,
        }));
    }
}
